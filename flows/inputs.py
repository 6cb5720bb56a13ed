"""What a campaign needs before it starts: its checkpoint, potential, hulls and known structures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flows.errors import ConfigError
from flows.settings import CampaignConfig, JudgeSettings

if TYPE_CHECKING:
    from relax.hull import Hull
    from relax.matching import Reference
    from relax.potentials import PotentialInfo
    from symmbfn.checkpoint import Card
    from symmbfn.conditions import Conditions


@dataclass(frozen=True)
class Inputs:
    """Everything that the settings name, found and checked."""

    card: Card
    potential: PotentialInfo
    hulls: tuple[Hull, ...]
    reference: Reference

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each of them: other content under the same name is another campaign."""
        return {
            "checkpoint": self.card.sha256,
            "potential": self.potential.weights_sha256 or self.potential.name,
            **{f"hull {number}": hull.sha256 for number, hull in enumerate(self.hulls, 1)},
            "reference": self.reference.sha256,
        }


def check(config: CampaignConfig) -> Inputs:
    """Find all that the settings name, before anything is written.

    Raises:
        ConfigError: An element that the potential does not know.
        SymmBFNError: A checkpoint that is not there or not ours, or cannot meet the conditions.
        RelaxError: No such potential, hull or reference, or energies that cannot be compared.
    """
    card = check_generator(config)
    potential, hull, reference = check_stability(config)
    for symbol in _asked_for(config):
        if potential.elements and symbol not in potential.elements:
            raise ConfigError(f"potential {potential.name!r} knows no element {symbol}; drop it")
    others = tuple(load_hull(name) for name in config.hulls[1:])
    if config.training_reference is not None:
        load_reference(config.training_reference)
    if config.judge is not None:
        judge(config, config.judge)
    return Inputs(card, potential, (hull, *others), reference)


def _asked_for(config: CampaignConfig) -> list[str]:
    """Return the elements that the conditions name; their formula must be a good one."""
    from pymatgen.core.composition import Composition

    asked = config.conditions
    formula = Composition(asked.formula).chemical_system_set if asked.formula else ()
    return [*(asked.elements or ()), *asked.require, *sorted(formula)]


def check_generator(config: CampaignConfig) -> Card:
    """Check that the checkpoint is there and can meet the conditions.

    Raises:
        SymmBFNError: It is not, or cannot.
    """
    from symmbfn.checkpoint import load_card, load_model
    from symmbfn.conditions import Templates

    card = load_card(config.checkpoint)
    Templates(load_model(card), card, conditions(config), seed=0)  # raises if nothing is left
    return card


def check_stability(config: CampaignConfig) -> tuple[PotentialInfo, Hull, Reference]:
    """Find potential, first hull and known structures; all hulls must fit the potential.

    Raises:
        RelaxError: One of them is not there or cannot be read, or the energies of potential and
            hull cannot be compared.
    """
    potential = potential_info(config.potential)
    hulls = [load_hull(name) for name in config.hulls]
    for hull in hulls:
        hull.scheme_for(potential, with_structures=True)
    return potential, hulls[0], load_reference(config.reference)


def judge(config: CampaignConfig, settings: JudgeSettings) -> tuple[PotentialInfo, Hull]:
    """Find the potential of the second opinion, and the hull that its energies are placed against.

    Raises:
        ConfigError: It is the potential of the first one.
        RelaxError: One of them is not there, or their energies cannot be compared.
    """
    potential = potential_info(settings.potential)
    if potential == potential_info(config.potential):
        raise ConfigError(
            f"judge: {potential.name} has given the first verdict; name another potential"
        )
    hull = load_hull(settings.hull or config.hulls[0])
    hull.scheme_for(potential, with_structures=True)
    return potential, hull


def judged_by(config: CampaignConfig) -> list[str]:
    """Return the hashes, and what else tells one from another, of potential, hulls and reference.

    Raises:
        RelaxError: As `check_stability`.
    """
    potential, _, reference = check_stability(config)
    return [
        f"{potential.name}@{potential.dtype} {potential.weights_sha256}",
        *(load_hull(name).sha256 for name in config.hulls),
        reference.sha256,
    ]


def potential_info(name: str) -> PotentialInfo:
    """Return what is known of a potential whose weights are there.

    Raises:
        RelaxError: When there is no such potential, or how to get its weights.
    """
    from relax.potentials import find

    return find(name)


@lru_cache(maxsize=8)
def load_hull(name: str) -> Hull:
    """Load a hull once per process."""
    from relax.hull import Hull

    return Hull.load(name)


@lru_cache(maxsize=4)
def load_reference(name: str) -> Reference:
    """Load known structures once per process: an index by name or file, or any structures.

    Raises:
        ConfigError: A structure cannot be read; left out, it would make its likes novel.
        RelaxError, SymmBFNError: There is no such index or file, or it cannot be read at all.
    """
    from relax.matching import INDEXES, Reference
    from symmbfn.files import read_structures

    path = Path(name).expanduser()
    if name in INDEXES or path.suffix == ".npz" or not path.exists():
        return Reference.load(name)
    known = []
    for entry in read_structures(path):
        if entry.structure is None:
            raise ConfigError(f"{path}: {entry.name}: {entry.error}; mend it or take it out")
        known.append(entry.structure)
    return Reference.from_structures(known, path.stem)


def conditions(config: CampaignConfig) -> Conditions:
    """Turn the table of settings into the generator's own type."""
    from symmbfn.conditions import Conditions

    return Conditions(**config.conditions.model_dump(exclude_none=True))
