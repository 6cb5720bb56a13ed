"""Settings of a training run, and how they are read from a TOML file."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from symmbfn.data import CrystalData
from symmbfn.errors import SymmBFNError
from symmbfn.model import NETWORKS, ModelConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        out: Folder of the checkpoint, `metrics.csv`, `loss.png` and the resume file.
        minutes: Wall-clock budget, earlier parts of a resumed run counted.
        max_steps: Stop after so many steps, if that is sooner.
        batch_size: Crystals in a step.
        learning_rate: Peak, reached after `warmup` steps; cosine to 0 at the end of the budget.
        warmup: Steps of rising learning rate.
        weight_decay: AdamW's, on matrices.
        clip: Largest norm of the gradient.
        ema: Decay of the averaged weights that become the checkpoint.
        seed: Of everything.
        report_every: Seconds between rows of `metrics.csv`.
        save_every: Seconds between resume files.
        bf16: Whether matrix products run in bfloat16.
        device: Torch device.
        model: The model.
        freeze: Those of `model.NETWORKS` that are not trained.
        start_from: Checkpoint, by name or folder, whose weights the run starts from; the data may
            be other ones, and the properties more.
    """

    out: Path
    minutes: float = 60.0
    max_steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    ema: float = 0.9995
    clip: float = 1.0
    seed: int = 0
    report_every: float = 60.0
    save_every: float = 120.0
    bf16: bool = True
    device: str = "cpu"
    model: ModelConfig = field(default_factory=ModelConfig)
    freeze: tuple[str, ...] = ()
    start_from: str | Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is no training.

        Raises:
            SymmBFNError: A number is out of range.
        """
        if (self.model.critic or self.model.estimator) and self.start_from is None:
            raise SymmBFNError(
                "model.critic is made by 'symmbfn retrain', model.estimator at the end of 'symmbfn "
                "train': leave them out here"
            )
        if not set(self.freeze) < set(NETWORKS):
            raise SymmBFNError(
                f"freeze is {', '.join(self.freeze)}: it may be one of {', '.join(NETWORKS)}"
            )
        for name, least, most in (
            ("batch_size", 1, 1_000_000),
            ("warmup", 1, 2**31),
            ("max_steps", 0, 2**63),
            ("seed", 0, 2**31),
        ):
            if (value := getattr(self, name)) is not None and not least <= value <= most:
                raise SymmBFNError(f"{name} is {value}: it must be from {least} to {most}")
        for name in ("minutes", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise SymmBFNError(f"{name} is {getattr(self, name)}: it must be above 0, finite")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SymmBFNError(
                    f"{name} is {getattr(self, name)}: it must be 0 or above, finite"
                )
        if not 0 <= self.ema < 1:
            raise SymmBFNError(f"ema is {self.ema}: it must be from 0 to below 1")


_OPTIONAL = {"max_steps": int, "start_from": str}  # kinds that no default shows


def train_config(
    data: CrystalData,
    out: Path,
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """The settings given, else those of a TOML file, else the defaults.

    Keys of the file are the attributes of `TrainConfig`, with tables `[model]`, `[model.sites]` and
    `[model.geometry]`. Where it names no `model.properties`, all those of the data are conditions.

    Raises:
        SymmBFNError: the file cannot be read, or has a key or a kind of value that is none of ours.
    """
    config = TrainConfig(out=out, model=model_config(data))
    if file is not None:
        try:
            config = _changed(config, tomllib.loads(file.read_text()), str(file))
        except (OSError, ValueError) as error:
            raise SymmBFNError(
                f"{file} cannot be read as TOML ({error}): give a file such as "
                "symmbfn/checkpoints/mp20/train-1.toml"
            ) from error
    return replace(config, **{k: v for k, v in (given or {}).items() if v is not None})


def model_config(data: CrystalData, base: ModelConfig | None = None) -> ModelConfig:
    """The default model with all properties of the data as conditions."""
    return replace(base or ModelConfig(), properties=data.names)


def _changed[T: "DataclassInstance"](config: T, values: Mapping[str, Any], where: str) -> T:
    """A (nested) dataclass with other values, whose names and kinds are checked."""
    known = [one.name for one in fields(config) if one.name != "out"]
    new: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise SymmBFNError(f"{where} has {name!r}, which is not known: use {', '.join(known)}")
        now = getattr(config, name)
        if is_dataclass(now) and not isinstance(now, type) and isinstance(value, dict):
            new[name] = _changed(now, value, f"{where} [{name}]")
        elif isinstance(now, tuple) and isinstance(value, list):
            new[name] = tuple(value)
        elif isinstance(now, float) and type(value) is int:
            new[name] = float(value)
        elif type(value) is _OPTIONAL.get(name, type(now)):
            new[name] = value
        else:
            raise SymmBFNError(
                f"{where}: {name} is {value!r}, but must be "
                + (f"of the kind of {now!r}, its default" if now is not None else "another kind")
            )
    return replace(config, **new)
