"""The settings of a campaign: one frozen model for TOML files, the command line and Prefect."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from flows.errors import ConfigError

# What tells how or where to run, but not what comes out.
_NOT_IN_IDENTITY = frozenset(
    "database workers device relax_at_once key lease_seconds dask trained_on judge".split()
)
# Told in every identity. What comes to the settings later is not added here, so that at its
# default it stays out and a campaign that began before it is still the same one.
_IN_EVERY_IDENTITY = frozenset(
    """
    n seed checkpoint steps batch_size potential hulls reference
    conditions.properties conditions.guidance conditions.elements conditions.require
    conditions.exclude conditions.space_groups conditions.crystal_systems conditions.max_atoms
    conditions.num_atoms conditions.formula
    relaxation.fmax relaxation.max_steps relaxation.timeout
    funnel.relax_budget funnel.random_share
    thresholds.stable thresholds.metastable thresholds.suspect
    """.split()
)


_NAME = "begin with a letter, digit or _, then letters, digits and . : @ _ -, in all at most"
# What the patterns below and in `flows/retrain_settings.py` mean.
_RULES = {
    r"^\w[\w.:@-]{0,99}$": f"{_NAME} 100",
    r"^\w[\w.:@-]{0,79}$": f"{_NAME} 80",
    r"^[A-Za-z_][\w.]*\.\w+$": "write module.Class, such as dask_jobqueue.SLURMCluster",
}


class _Settings(BaseModel):
    """Frozen, and strict about names: a misspelt setting must never be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def check_elements(symbols: Sequence[str]) -> list[str]:
    """Refuse what is no element; return all elements' symbols in their order.

    Raises:
        ValueError: One of them is none.
    """
    from ase.data import chemical_symbols

    known: list[str] = chemical_symbols[1:]
    for symbol in symbols:
        if symbol not in known:
            hint = symbol.capitalize() in known and f"did you mean {symbol.capitalize()!r}?"
            raise ValueError(
                f"unknown element {symbol!r}; {hint or 'write symbols such as Li, Fe, O'}"
            )
    return known


class ConditionSettings(_Settings):
    """What to ask of the generator; everything is optional."""

    properties: dict[str, float] = Field(
        default_factory=dict, description="Target values, for example band_gap = 1.5 (eV)."
    )
    guidance: dict[str, float] = Field(
        default_factory=dict, description="How strongly each target steers; 1 unless given."
    )
    elements: tuple[str, ...] | None = Field(default=None, description="Only these elements.")
    require: tuple[str, ...] = Field(default=(), description="All of these elements.")
    exclude: tuple[str, ...] = Field(default=(), description="None of these elements.")
    space_groups: tuple[int, ...] | None = Field(
        default=None, description="Only these groups, 1 to 230."
    )
    crystal_systems: tuple[str, ...] | None = Field(
        default=None, description="Only these systems, such as cubic."
    )
    max_atoms: int | None = Field(
        default=None, ge=1, le=500, description="Most atoms in the primitive cell."
    )
    num_atoms: int | None = Field(
        default=None, ge=1, le=500, description="Atoms in the primitive cell, exactly."
    )
    formula: str | None = Field(
        default=None, description="Composition, exactly, such as LiFePO4; in any number of units."
    )

    @field_validator("elements", "require", "exclude")
    @classmethod
    def _known_elements(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if not symbols:
            return symbols
        known = check_elements(symbols)
        return tuple(sorted(set(symbols), key=known.index))

    @field_validator("crystal_systems")
    @classmethod
    def _lower_case(cls, systems: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return systems if systems is None else tuple(name.lower() for name in systems)

    @field_validator("space_groups")
    @classmethod
    def _known_groups(cls, groups: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for group in groups or ():
            if not 1 <= group <= 230:
                raise ValueError(f"no space group {group}; they run from 1 to 230")
        return groups if groups is None else tuple(sorted(set(groups)))

    @model_validator(mode="after")
    def _something_is_left(self) -> ConditionSettings:
        if self.elements is not None and not set(self.elements) - set(self.exclude):
            raise ValueError("elements is empty, or exclude takes all of them away")
        if self.space_groups is not None and not self.space_groups:
            raise ValueError("space_groups is empty; leave it out to allow all 230")
        return self


class RelaxationSettings(_Settings):
    """When a relaxation ends."""

    fmax: float = Field(default=0.05, gt=0, le=10, description="Largest force left, eV/A.")
    max_steps: int = Field(
        default=500, ge=1, le=100_000, description="Steps before it is given up."
    )
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds for one crystal; None: no limit."
    )
    hopeless: float | None = Field(
        default=None,
        gt=0,
        description="Give up a crystal so far above the metastable limit, eV/atom, once it hardly "
        "falls any more; None: never.",
    )
    keep_symmetry: bool = Field(
        default=False,
        description="Relax in the space group drawn, then see whether it is a saddle.",
    )


class FunnelSettings(_Settings):
    """How much is relaxed of what was drawn; without a budget everything, in the order drawn."""

    relax_budget: int | str | None = Field(
        default=None,
        description='Relaxations, such as 300, or their time over all processes, such as "30min".',
    )
    random_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Of the relaxations, for crystals drawn by lot: the ranking is judged by them.",
    )

    @field_validator("relax_budget")
    @classmethod
    def _number_or_time(cls, budget: int | str | None) -> int | str | None:
        if isinstance(budget, str) and budget.strip().isdecimal():
            budget = int(budget)
        if isinstance(budget, int) and budget < 1:
            raise ValueError(f"{budget} relaxations; allow at least 1, or leave it out for all")
        if isinstance(budget, str) and not (_TIME.fullmatch(budget) and _seconds(budget) > 0):
            raise ValueError(f"{budget!r}; write a number such as 300, or a time such as 30min")
        return budget

    @property
    def relaxations(self) -> int | None:
        """How many relaxations the budget allows; None for any number."""
        return self.relax_budget if isinstance(self.relax_budget, int) else None

    @property
    def seconds(self) -> float | None:
        """How many seconds the relaxations may take together; None for any time."""
        return _seconds(self.relax_budget) if isinstance(self.relax_budget, str) else None


_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*")


def _seconds(text: str) -> float:
    """Return the seconds of a time such as 90s, 30min or 2h."""
    found = _TIME.fullmatch(text)
    assert found is not None  # as the settings have been checked
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]


class ThresholdSettings(_Settings):
    """Energies above the hull, eV/atom, that divide candidates into tiers."""

    stable: float = Field(default=0.0, description="At or below: stable.")
    metastable: float = Field(default=0.1, description="At or below: metastable.")
    suspect: float = Field(default=-0.3, description="Below: a hole of the potential is likelier.")

    @model_validator(mode="after")
    def _in_order(self) -> ThresholdSettings:
        if not self.suspect < self.stable <= self.metastable:
            raise ValueError("thresholds must rise: suspect < stable <= metastable")
        return self


class DaskSettings(_Settings):
    """A cluster that shares the relaxations of a campaign (`uv sync --extra dask`)."""

    jobs: int = Field(
        default=2,
        ge=1,
        le=10_000,
        description="Dask workers; each relaxes with `workers` processes.",
    )
    cluster: str = Field(
        default="distributed.LocalCluster",
        pattern=r"^[A-Za-z_][\w.]*\.\w+$",
        description="Its class, such as dask_jobqueue.SLURMCluster.",
    )
    options: dict[str, Any] = Field(
        default={"threads_per_worker": 1},
        description="Arguments of the class, one thread a worker.",
    )
    address: str | None = Field(
        default=None,
        description="Of a scheduler that runs already, instead of cluster and options.",
    )


def _our_name(potential: str) -> str:
    from relax.potentials import canonical

    return canonical(potential)


# Two names of the same weights are one setting, so that they are one campaign.
PotentialName = Annotated[str, AfterValidator(_our_name)]


class JudgeSettings(_Settings):
    """A second potential, which relaxes once more what the first one calls (meta)stable."""

    potential: PotentialName = Field(description="Its name or path.")
    hull: str | None = Field(
        default=None,
        description="What its energies are placed against, a name or file; None: the first hull.",
    )


class FileSettings(_Settings):
    """Settings that may stand in a file of their own, such as `example`."""

    example: ClassVar[str] = "examples/campaign.toml"

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a file of settings.

        Args:
            path: The TOML file.
            overrides: Settings that win over the file's; nested tables are merged.

        Raises:
            ConfigError: In one line, the file, the wrong key and the nearest right one.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}; give a TOML file such as {cls.example}"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a TOML file: {one_line(error)}") from error
        return cls.build(_merged(table, overrides or {}), where=str(path))

    @classmethod
    def build(cls, table: Mapping[str, Any], *, where: str) -> Self:
        """Check settings that came from `where`, a file or the command line.

        Raises:
            ConfigError: In one line, where, the wrong key and the remedy.
        """
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            raise ConfigError(f"{where}: {_explain(cls, error)}") from error


class CampaignConfig(FileSettings):
    """All the settings of one campaign; also the parameter schema of the Prefect flow."""

    n: int = Field(default=64, ge=1, le=10_000_000, description="How many crystals to generate.")
    seed: int | None = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="The same seed gives the same crystals. None, for schedules: each run "
        "has its own.",
    )
    checkpoint: str = Field(
        default="mp20",
        description="A shipped checkpoint's name, a folder, or promoted: the one promoted last.",
    )
    steps: int | None = Field(default=None, ge=1, le=10_000, description="Sampling steps.")
    proposals: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Arrangements of sites for each crystal, of which the checkpoint's critic "
        "chooses one that is new to it; None: 4 where it has a critic, 1 where not.",
    )
    batch_size: int = Field(default=256, ge=1, le=100_000, description="Crystals per stored batch.")
    potential: PotentialName = Field(default="chgnet", description="A potential's name or path.")
    hulls: tuple[str, ...] = Field(
        default=("chgnet",),
        min_length=1,
        description="Names or files; the first one gives the verdict.",
    )
    reference: str = Field(
        default="mp", description="Known structures that novelty is measured against."
    )
    trained_on: str | None = Field(
        default=None,
        description="The generator's training set, a name or file as for `reference`; None: that "
        "of the shipped checkpoint, and unknown for others.",
    )
    judge: JudgeSettings | None = Field(
        default=None,
        description="A second opinion, stored beside the verdicts; it may be asked for later.",
    )
    conditions: ConditionSettings = ConditionSettings()
    relaxation: RelaxationSettings = RelaxationSettings()
    funnel: FunnelSettings = FunnelSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    database: str | None = Field(
        default=None,
        description="SQLAlchemy URL; None: SYMMBFN_DB, or a file in the working folder.",
    )
    key: str | None = Field(
        default=None,
        pattern=r"^\w[\w.:@-]{0,99}$",
        description="The campaign's name and idempotency key; None: made from the settings.",
    )
    workers: int | None = Field(
        default=None, ge=0, le=1024, description="Processes; None: one per core, 0: none."
    )
    device: str = Field(
        default="cpu",
        description="That relaxes: cpu, or cuda, where crystals are relaxed in step.",
    )
    relax_at_once: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Crystals relaxed in step in one process; None: one by one in `workers` "
        "processes on the CPU, 64 in step on a GPU.",
    )
    dask: DaskSettings | None = Field(
        default=None, description="Share the relaxations on a Dask cluster; None: not."
    )
    lease_seconds: int = Field(
        default=300,
        ge=10,
        le=86_400,
        description="A claimed candidate is free again after this silence.",
    )

    @model_validator(mode="after")
    def _key_has_one_seed(self) -> CampaignConfig:
        if self.key is not None and self.seed is None:
            raise ValueError(
                f"key {self.key!r} without a seed: each run would be another campaign of that "
                "name; leave key out, or give a seed"
            )
        return self

    @property
    def training_reference(self) -> str | None:
        """Return the generator's training set; None where it is not known."""
        return self.trained_on or ("mp20-train" if self.checkpoint == "mp20" else None)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what comes out, without where and how it runs."""
        unused = {"funnel"} if self.funnel.relax_budget is None else set()
        left_out = {*_NOT_IN_IDENTITY, *unused}
        defaults = type(self)().model_dump(mode="json")
        return _without_later(self.model_dump(mode="json", exclude=left_out), defaults)

    def idempotency_key(self, *fingerprints: str) -> str:
        """Return `key`, or one made of the identity and of the hashes of what it names.

        Args:
            fingerprints: Hashes of the checkpoint, potential, hulls and reference, so that
                a retrained checkpoint under the same name is another campaign.
        """
        if self.key is not None:
            return self.key
        text = json.dumps([self.identity(), *fingerprints], sort_keys=True)
        return f"discover-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def with_run_seed(self, run_id: str) -> CampaignConfig:
        """Return self, or a copy whose missing seed follows from the id of the run."""
        if self.seed is not None:
            return self
        return self.model_copy(update={"seed": derived_seed(run_id) % 2**31})

    @property
    def number_of_batches(self) -> int:
        """How many batches the crystals are drawn in."""
        return math.ceil(self.n / self.batch_size)

    def size_of_batch(self, number: int) -> int:
        """Return how many crystals a batch has; the last one may be smaller."""
        return min(self.batch_size, self.n - number * self.batch_size)

    def batch_seed(self, number: int) -> int:
        """Return the seed of a batch, the same in every process and on every machine."""
        return derived_seed(f"{self.seed}:{number}")


def _without_later(
    table: Mapping[str, Any], defaults: Mapping[str, Any], within: str = ""
) -> dict[str, Any]:
    """Leave out the settings at their defaults that are not in every identity."""
    kept: dict[str, Any] = {}
    for name, value in table.items():
        path, default = f"{within}{name}", defaults.get(name)
        if path in _IN_EVERY_IDENTITY:
            kept[name] = value
        elif isinstance(value, Mapping) and isinstance(default, Mapping):
            inner = _without_later(value, default, f"{path}.")
            kept |= {name: inner} if inner else {}
        elif value != default:
            kept[name] = value
    return kept


def derived_seed(text: str) -> int:
    """Return 63 bits of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def nearest(word: str, known: list[str]) -> str:
    """Return '; did you mean …?' with the nearest known word, or all of them if they are few."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 25 else ""


def one_line(error: BaseException) -> str:
    """Return an exception's message with its line breaks taken out."""
    return " ".join(str(error).split()) or type(error).__name__


def parse_number(text: str, option: str, example: str) -> tuple[str, float]:
    """Return name and value of `NAME=VALUE`, as an option takes it.

    Raises:
        ConfigError: When it has another form.
    """
    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name.strip() or not equals or not math.isfinite(number):
        raise ConfigError(f"{option} {text!r}: write NAME=VALUE, for example {example}")
    return name.strip(), number


def _merged(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for name, value in overrides.items():
        old = result.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[name] = _merged(old, value)
        else:
            result[name] = value
    return result


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """Say the first of pydantic's findings in one line."""
    finding = error.errors(include_url=False)[0]
    path = [str(part) for part in finding["loc"]]
    key = ".".join(path)
    if finding["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(path[-1], _keys(model, path[:-1]))}"
    if finding["type"] == "missing":
        return f"{key} is missing; give it"
    if finding["type"] == "string_pattern_mismatch":
        return f"{key}: {_RULES[finding['ctx']['pattern']]}, not {finding['input']!r}"
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, got {finding['input']!r}"
    return f"{key}: {message}" if key else message


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Return the allowed keys of the table at `path`."""
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
