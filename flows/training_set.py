"""Chooses the crystals of a retraining, under guards against drift, and freezes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from db import queries, training
from db.session import Database, open_database
from db.training import Member, Relaxed
from flows import checkpoints, inputs
from flows.errors import ConfigError
from flows.retrain_settings import PROMOTED, RetrainConfig

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

    from symmbfn.checkpoint import Card
    from symmbfn.data import CrystalData

ALWAYS = 5
"""So many crystals of an element never are too many."""
LEAST_CAP = 0.05
"""Share of crystals that every element may have."""


def freeze(config: RetrainConfig) -> int:
    """Choose the crystals of a retraining and store which they are; return the set's row number.

    The same crystals and settings are the same set, and so is the same key, whatever was added
    to the database since.

    Raises:
        ConfigError: No crystal is left, or a file is not there.
        DatabaseError, SymmBFNError: No such database, filter or checkpoint.
    """
    database = open_database(config.campaign.database, create=False)
    card = parent(config, database)
    base = _load(config.base)
    held_out = _load(config.held_out)
    recipe = {
        **config.training_settings(),
        "parent": {"name": card.name, "sha256": card.sha256},
        "base": None if base is None else base.digest(),
        "held_out": None if held_out is None else held_out.digest(),
    }
    with database.session(write=False) as session:
        stored = None if config.key is None else training.frozen(session, config.key)
        found = training.relaxed(session, config.filter) if stored is None else []
        newest = queries.newest_candidate(session)
    if config.learn != "generator":
        now = {"by": inputs.judged_by(config.campaign), "newest": newest}
        recipe["judged"] = now if stored is None else stored.recipe.get("judged", now)
    members = _members(config, found, card, base) if stored is None else []
    with database.session() as session:
        return training.freeze(session, recipe, members, config.key).id


def parent(config: RetrainConfig, database: Database) -> Card:
    """Return the checkpoint to start from; one that a set was frozen with stays its parent."""
    from symmbfn.checkpoint import load_card

    if config.checkpoint != PROMOTED:
        return load_card(config.checkpoint)
    if config.key is not None:
        with database.session(write=False) as session:
            stored = training.frozen(session, config.key)
        if stored is not None:
            return load_card(stored.recipe["parent"]["name"])
    return load_card(checkpoints.promoted(config.campaign.database))


def _load(file: str | None) -> CrystalData | None:
    from symmbfn.data import CrystalData

    return None if file is None else CrystalData.load(file)


def _members(
    config: RetrainConfig, found: Sequence[Relaxed], card: Card, base: CrystalData | None
) -> list[Member]:
    """Return the crystals that the guards let pass, with the properties that the parent knows."""
    if not found:
        raise ConfigError(
            f"no relaxed crystal of the database fits {config.filter!r}; run `symmbfn discover`, "
            "or loosen --filter"
        )
    fitting = [one for one in found if allowed(one.structure, config)]
    caps = element_caps(config, base)
    kept = within_caps([_symbols(one.structure) for one in fitting], caps)
    if not kept:
        raise ConfigError(
            f"none of the {len(found)} crystals is left by elements and exclude; loosen them"
        )
    return [
        Member(one.relaxation_id, one.structure, properties(one, card.properties))
        for one in (fitting[place] for place in kept)
    ]


def _symbols(structure: Structure) -> set[str]:
    return {element.symbol for element in structure.composition.elements}


def allowed(structure: Structure, config: RetrainConfig) -> bool:
    """Say whether the settings let a crystal of these elements be learned from."""
    symbols = _symbols(structure)
    inside = config.elements is None or symbols <= set(config.elements)
    return inside and symbols.isdisjoint(config.exclude)


def element_caps(config: RetrainConfig, base: CrystalData | None) -> dict[str, float]:
    """Return the largest share of crystals with each element.

    A multiple of its share in the base data (MP-20 test where there are none), so that no round
    drifts to the elements that the potential is too kind to.
    """
    from symmbfn.metrics import mp20_test

    if base is None:
        counts, n = mp20_test().elements, mp20_test().n
    else:
        counts, n = _element_counts(base), len(base)
    caps = {symbol: config.element_factor * count / n for symbol, count in counts.items()}
    return {s: max(LEAST_CAP, cap) for s, cap in caps.items()} | config.element_caps


def _element_counts(data: CrystalData) -> dict[str, int]:
    from ase.data import chemical_symbols

    rows = zip(data.species.tolist(), data.orbits.tolist(), strict=True)
    numbers = Counter(number for species, orbits in rows for number in {*species[:orbits]})
    return {chemical_symbols[number + 1]: count for number, count in numbers.items()}


def within_caps(crystals: Sequence[set[str]], caps: Mapping[str, float]) -> list[int]:
    """Return the places of crystals, the first ones first, that keep every element in its cap.

    Args:
        crystals: The elements of each.
        caps: Largest share of the crystals kept with an element; 5 % where it has none here.
    """
    kept, before = list(range(len(crystals))), -1
    while len(kept) != before:
        before = len(kept)
        room = Counter[str]()
        passed = []
        for place in kept:
            if all(
                room[symbol] < max(ALWAYS, math.ceil(caps.get(symbol, LEAST_CAP) * before))
                for symbol in crystals[place]
            ):
                room.update(crystals[place])
                passed.append(place)
        kept = passed
    return kept


def properties(one: Relaxed, names: Sequence[str]) -> dict[str, float]:
    """Return those of the named properties that are known of a crystal."""
    from symmbfn.importers import DERIVED

    known: dict[str, float] = {}
    for name in names:
        value = DERIVED[name](one.structure) if name in DERIVED else one.row.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            known[name] = float(value)
    return known
