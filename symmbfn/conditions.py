"""Conditions on crystals: what may be asked of a checkpoint, and what is drawn under it."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Composition, Element
from torch import Tensor

from symmbfn.checkpoint import Card
from symmbfn.draw import Rules
from symmbfn.elements import NUM_ELEMENTS
from symmbfn.errors import SymmBFNError
from symmbfn.layers import Template
from symmbfn.model import SymmBFN
from symmbfn.occupation import exactly, orbits_for, totals, up_to
from symmbfn.wyckoff import FloatArray, IntArray

MAX_ATOMS = 20  # of the training data
REACH = 20.0  # standard deviations of the data that a target may lie from their mean
SMALL_BATCH = 24  # crystals; with fewer, padding costs less than another batch
NEIGHBOURS = 500  # training crystals near a target
CRYSTAL_SYSTEMS = {
    "triclinic": range(1, 3),
    "monoclinic": range(3, 16),
    "orthorhombic": range(16, 75),
    "tetragonal": range(75, 143),
    "trigonal": range(143, 168),
    "hexagonal": range(168, 195),
    "cubic": range(195, 231),
}


@dataclass(frozen=True)
class Conditions:
    """What the crystals must be.

    Attributes:
        properties: Targets by name in the checkpoint's units (eV, eV/atom); these steer.
        guidance: How strongly each target steers (classifier-free guidance), 1 unless given.
        elements: Only these symbols, where given; a hard rule, as are all below.
        require: All of these symbols.
        exclude: None of these symbols.
        space_groups: One of these international numbers, where given.
        crystal_systems: One of these `CRYSTAL_SYSTEMS`, where given.
        max_atoms: In the primitive cell.
        num_atoms: In the primitive cell, exactly, where given.
        formula: Such as LiFePO4, where given: the composition exactly, in any number of units.
    """

    properties: Mapping[str, float] = field(default_factory=dict)
    guidance: Mapping[str, float] = field(default_factory=dict)
    elements: tuple[str, ...] | None = None
    require: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    space_groups: tuple[int, ...] | None = None
    crystal_systems: tuple[str, ...] | None = None
    max_atoms: int = MAX_ATOMS
    num_atoms: int | None = None
    formula: str | None = None


class Templates:
    """Space group, orbits and distinct elements of training crystals that the conditions allow.

    Where a property has a target, crystals that are near it are taken more often.

    Attributes:
        rules: What the site sampler may draw.
        guidance: (P,) strengths of the targets, None where all are 1.

    Raises:
        SymmBFNError: a condition is unknown to the checkpoint, or nothing is left.
    """

    def __init__(self, model: SymmBFN, card: Card, conditions: Conditions, seed: int) -> None:
        self.device = model.elements.device
        self.rules = _rules(model, card, conditions)
        self.guidance = _guidance(card, conditions)
        self._targets = model.standardise(_targets(card, conditions).to(self.device))
        _check_reach(self._targets, model, card, conditions)
        self._table = model.templates.cpu().numpy().astype(int)
        rows = _allowed_templates(self._table, card, conditions, self.rules)
        properties = model.standardise(model.template_properties)[rows].cpu().numpy()
        self._rows, self._weights = rows, nearness(properties, self._targets.cpu().numpy())
        self._random = np.random.default_rng(seed)

    def choose(self, n: int) -> IntArray:
        """(n,) templates, each of a training crystal that is as the conditions want it."""
        rows: IntArray = self._random.choice(self._rows, n, p=self._weights)
        return rows

    def batches(self, rows: IntArray, batch_size: int) -> Iterator[tuple[IntArray, Template]]:
        """Cut rows into batches of like size, so that padding costs little.

        Yields:
            Which of the rows, and the templates they stand for.
        """
        group, orbits, kinds = self._table[rows].T
        order = np.argsort(orbits, kind="stable")
        for chosen in np.split(order, _cuts(orbits[order], batch_size)):
            sizes = torch.from_numpy(orbits[chosen])
            yield (
                chosen,
                Template(
                    group=torch.from_numpy(group[chosen]).to(self.device),
                    mask=(torch.arange(int(sizes.max())) < sizes[:, None]).to(self.device),
                    kinds=torch.from_numpy(kinds[chosen]).to(self.device),
                    properties=self._targets.expand(len(chosen), -1),
                ),
            )


def _cuts(orbits: IntArray, batch_size: int) -> list[int]:
    """Where to cut ascending (n,) numbers of orbits: at each new one, unless a batch is small."""
    cuts, start = [], 0
    for index in range(1, len(orbits)):
        more = orbits[index] > orbits[index - 1] and index - start >= SMALL_BATCH
        if more or index - start == batch_size:
            cuts.append(index)
            start = index
    return cuts


def _rules(model: SymmBFN, card: Card, conditions: Conditions) -> Rules:
    known = model.elements.cpu()
    allowed = known.clone()
    if conditions.elements is not None:
        allowed &= _mask(conditions.elements, known, card)
    allowed &= ~_mask(conditions.exclude, known, card, strict=False)
    if not allowed.any():
        raise SymmBFNError("no element is left: loosen --elements or --exclude")
    required = _mask(conditions.require, known, card)
    if (required & ~allowed).any():
        missing = [Element.from_Z(z + 1).symbol for z in (required & ~allowed).nonzero()[:, 0]]
        raise SymmBFNError(
            f"required element {', '.join(missing)} is excluded, or not among --elements: loosen "
            "one of them"
        )
    if conditions.num_atoms is not None and conditions.num_atoms > conditions.max_atoms:
        raise SymmBFNError(
            f"--num-atoms {conditions.num_atoms} is more than the {conditions.max_atoms} atoms "
            "allowed: lower it, or raise --max-atoms"
        )
    wanted = conditions.num_atoms
    rules = Rules(
        elements=allowed.to(model.elements.device),
        required=required.to(model.elements.device),
        num_atoms=up_to(conditions.max_atoms) if wanted is None else exactly(wanted),
        same_symmetry=wanted is not None
        or conditions.space_groups is not None
        or conditions.crystal_systems is not None,
    )
    if conditions.formula is None:
        return rules
    formula = _formula(conditions.formula)
    unit = sum(formula.values())
    of_formula = torch.zeros_like(known)
    of_formula[list(formula)] = True
    if (of_formula & ~known).any():
        strange = [Element.from_Z(z + 1).symbol for z in (of_formula & ~known).nonzero()[:, 0]]
        raise SymmBFNError(
            f"formula {conditions.formula} has {', '.join(strange)}, which does not occur in the "
            f"training data of checkpoint {card.name}: ask for another"
        )
    if (of_formula & ~allowed).any() or (required & ~of_formula).any():
        raise SymmBFNError(
            f"formula {conditions.formula} has other elements than asked for: drop --elements, "
            "--require and --exclude, or change it"
        )
    sizes = sum(exactly(atoms) for atoms in range(unit, conditions.max_atoms + 1, unit))
    if not sizes & rules.num_atoms:
        raise SymmBFNError(
            f"formula {conditions.formula} has {unit} atoms, which does not go into "
            f"{wanted or f'at most {conditions.max_atoms}'} atoms: change --num-atoms or "
            "--max-atoms"
        )
    required = of_formula.to(model.elements.device)
    return replace(
        rules,
        elements=required,
        required=required,
        num_atoms=sizes & rules.num_atoms,
        formula=formula,
    )


def _formula(text: str) -> dict[int, int]:
    """Atoms of each element (0 = H) in the smallest formula unit."""
    named = set(re.findall("[A-Z][a-z]?", text))
    hydrate = re.search(r"\d\.\d+H2O", text)  # CuSO4.5H2O, which pymatgen takes for O4.5
    if hydrate or not re.fullmatch(r"(?:[A-Z][a-z]?|[\d.()\[\]\s])+", text):
        raise SymmBFNError(f"formula {text!r} cannot be read: write such as LiFePO4 or CuSO4(H2O)5")
    try:
        composition, _ = Composition(text).get_integer_formula_and_factor()
        counts = Composition(composition).get_el_amt_dict()
        unit = math.gcd(*(round(count) for count in counts.values()))  # pymatgen keeps O2
        formula = {Element(symbol).Z - 1: round(n) // unit for symbol, n in counts.items()}
    except (ValueError, KeyError, IndexError) as error:
        raise SymmBFNError(f"formula {text!r} cannot be read: write such as LiFePO4") from error
    # pymatgen leaves out what is there 0 times, and takes deuterium for an element
    if named != set(counts) or named & {"D", "T"} or max(formula) >= NUM_ELEMENTS:
        raise SymmBFNError(f"formula {text!r} cannot be made: write such as LiFePO4")
    return formula


def _mask(symbols: tuple[str, ...], known: Tensor, card: Card, strict: bool = True) -> Tensor:
    mask = torch.zeros(NUM_ELEMENTS, dtype=torch.bool)
    for symbol in symbols:
        if not Element.is_valid_symbol(symbol):
            raise SymmBFNError(f"unknown element {symbol!r}: give symbols such as Li,Fe,O")
        index = Element(symbol).Z - 1
        if index < NUM_ELEMENTS:
            mask[index] = True
        if strict and (index >= NUM_ELEMENTS or not known[index]):
            raise SymmBFNError(
                f"element {symbol} does not occur in the training data of checkpoint {card.name}"
            )
    return mask


def _allowed_templates(
    table: IntArray, card: Card, conditions: Conditions, rules: Rules
) -> IntArray:
    """Rows of (n, 3) space groups - 1, orbits and distinct elements that can be met."""
    groups = _space_groups(conditions)
    fits = np.isin(table[:, 0] + 1, groups)
    if not fits.any():
        raise SymmBFNError(
            f"no crystal of {_group_names(groups)} in the training data of checkpoint "
            f"{card.name}: choose others"
        )
    fits &= [bool(totals(int(g) + 1, int(orbits)) & rules.num_atoms) for g, orbits, _ in table]
    if not fits.any():
        asked = f"at most {conditions.max_atoms}"
        raise SymmBFNError(
            f"{_group_names(groups)} cannot be made of {conditions.num_atoms or asked} atoms, as "
            "crystals of the training data are: loosen the number of atoms or the space groups"
        )
    if rules.formula is not None:
        fits &= _can_hold(table, rules.formula, rules.num_atoms)
        if not fits.any():
            raise SymmBFNError(
                f"no Wyckoff positions of {_group_names(groups)} hold {conditions.formula} in "
                f"{conditions.num_atoms or f'at most {conditions.max_atoms}'} atoms, with as many "
                "orbits as crystals of the training data have: loosen the space groups or the "
                "number of atoms"
            )
    most, least = int(rules.elements.sum()), int(rules.required.sum())
    fits &= (table[:, 2] <= most) & (table[:, 2] >= least)
    if not fits.any():
        raise SymmBFNError(
            f"no crystal of the training data that fits otherwise has {least} to {most} elements: "
            "loosen the elements, the space groups or the number of atoms"
        )
    return np.flatnonzero(fits)


def _can_hold(table: IntArray, formula: Mapping[int, int], num_atoms: int) -> NDArray[np.bool_]:
    """(n,) whether group and orbits of (n, 3) templates can hold the formula, in so many atoms."""
    unit = sum(formula.values())
    units = [n for n in range(1, num_atoms.bit_length()) if num_atoms & exactly(n * unit)]
    amounts = [tuple(n * count for count in formula.values()) for n in units]
    orbits = {
        group: [orbits_for(group + 1, one) for one in amounts]
        for group in np.unique(table[:, 0]).tolist()
    }
    return np.array([any(o >> k & 1 for o in orbits[group]) for group, k, _ in table.tolist()])


def nearness(properties: FloatArray, targets: FloatArray) -> FloatArray:
    """(n,) probabilities of crystals, higher where they are near the targets.

    For each target a Gaussian, so wide that its standard deviation is the distance to the
    `NEIGHBOURS`-th nearest crystal; a crystal without the property counts as that one does.

    Args:
        properties: (n, P), NaN where unknown.
        targets: (P,), NaN where left open.
    """
    weights = np.ones(len(properties))
    for column, target in zip(properties.T, targets, strict=True):
        distances = np.abs(column - target)
        if np.isnan(distances).all():  # no target, or nothing known
            continue
        nearest = np.sort(distances)  # NaN last
        width = nearest[min(NEIGHBOURS, np.isfinite(nearest).sum() - 1)]
        weights *= np.exp(-0.5 * (np.nan_to_num(distances, nan=width) / max(width, 1e-6)) ** 2)
    probabilities: FloatArray = weights / weights.sum()
    return probabilities


def _space_groups(conditions: Conditions) -> list[int]:
    groups = set(range(1, 231))
    if conditions.space_groups is not None:
        for number in conditions.space_groups:
            if not 1 <= number <= 230:
                raise SymmBFNError(f"space group {number} does not exist: choose 1-230")
        groups &= set(conditions.space_groups)
    if conditions.crystal_systems is not None:
        for name in conditions.crystal_systems:
            if name not in CRYSTAL_SYSTEMS:
                raise SymmBFNError(
                    f"unknown crystal system {name!r}: choose {', '.join(CRYSTAL_SYSTEMS)}"
                )
        groups &= {n for name in conditions.crystal_systems for n in CRYSTAL_SYSTEMS[name]}
    if not groups:
        raise SymmBFNError("none of the space groups is of these crystal systems: loosen one")
    return sorted(groups)


def _group_names(groups: list[int]) -> str:
    if len(groups) == 230:
        return "any space group"
    shown = ", ".join(map(str, groups[:8])) + (", …" if len(groups) > 8 else "")
    return f"space group {shown}"


def _targets(card: Card, conditions: Conditions) -> Tensor:
    """(P,) wanted properties, NaN where left open."""
    for name, value in conditions.properties.items():
        if name not in card.properties:
            raise SymmBFNError(
                f"unknown property {name}: checkpoint {card.name} knows "
                f"{', '.join(card.properties) or 'none'}"
            )
        if not np.isfinite(value):
            raise SymmBFNError(f"property {name} is {value}: give a finite number")
    return torch.tensor([conditions.properties.get(name, torch.nan) for name in card.properties])


def _check_reach(targets: Tensor, model: SymmBFN, card: Card, conditions: Conditions) -> None:
    for index, name in enumerate(card.properties):
        if abs(float(targets[index])) > REACH:
            raise SymmBFNError(
                f"property {name} is {conditions.properties[name]:g}, far from the training data "
                f"of checkpoint {card.name} ({float(model.property_mean[index]):.2f} ± "
                f"{float(model.property_std[index]):.2f}): give a nearer value"
            )


def _guidance(card: Card, conditions: Conditions) -> Tensor | None:
    """(P,) strengths, None where all are 1."""
    for name, strength in conditions.guidance.items():
        if name not in conditions.properties:
            raise SymmBFNError(f"guidance for {name}, which has no target: give --property too")
        if not 0 <= strength <= 100:
            raise SymmBFNError(f"guidance {name} is {strength}: give a number from 0 to 100")
    strengths = torch.tensor([conditions.guidance.get(name, 1.0) for name in card.properties])
    return strengths if (strengths != 1).any() else None
