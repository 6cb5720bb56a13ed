"""Sampling: `sample(checkpoint, n, seed=…)` returns crystals that meet the conditions.

Space group, number of orbits and number of elements are drawn from the training frequencies, as
far as the conditions allow; the flow draws the rest. Every crystal returned has only legal Wyckoff
positions, none without free coordinates twice, the number of elements drawn first and only allowed
ones, at most `max_atoms` atoms in its primitive cell, and no two atoms closer than 0.5 Å. What
breaks a rule is drawn again: the same space group and numbers at first, then others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from symmbfn.checkpoint import DEFAULT_CHECKPOINT, Card, load_card, load_model
from symmbfn.crystal import Crystal
from symmbfn.data import num_operations
from symmbfn.errors import SymmBFNError
from symmbfn.model import Draw, SymmBFN, Template
from symmbfn.network import MAX_KINDS, NUM_ELEMENTS
from symmbfn.wyckoff import FloatArray, IntArray, space_group

DEFAULT_STEPS = 30
DEFAULT_BATCH_SIZE = 256
MAX_ATOMS = 20  # of the training data
MIN_DISTANCE = 0.5  # Å
MAX_PAIRS = 1_000_000  # of orbits and symmetry images in a batch
MAX_TURNS = 20  # draws for each crystal asked for, before giving up
TURNS_PER_TEMPLATE = 4


@dataclass(frozen=True)
class Conditions:
    """What the crystals must be.

    Attributes:
        properties: Targets by name in the checkpoint's units (eV, eV/atom); these steer.
        elements: Only these symbols, where given; a hard rule, as are all below.
        exclude: None of these symbols.
        space_groups: One of these international numbers, where given.
        max_atoms: In the primitive cell.
    """

    properties: Mapping[str, float] = field(default_factory=dict)
    elements: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    space_groups: tuple[int, ...] | None = None
    max_atoms: int = MAX_ATOMS


@dataclass
class Tally:
    """How many draws were made, and why those not returned were refused."""

    drawn: int = 0
    accepted: int = 0
    too_many_atoms: int = 0
    other_number_of_elements: int = 0
    no_legal_positions: int = 0
    overlapping: int = 0


def sample(
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    n: int = 16,
    *,
    seed: int,
    steps: int | None = None,
    conditions: Conditions | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    tally: Tally | None = None,
) -> list[Crystal]:
    """Draw n crystals; the same seed on the same machine gives the same crystals.

    Fewer come back where a condition is so hard to meet that `MAX_TURNS` draws did not do.

    Args:
        checkpoint: Name of a shipped one, or a folder.
        n: How many.
        seed: Of all randomness.
        steps: Bayesian updates; 30 unless given.
        conditions: What they must be.
        device: Torch device; the GPU where there is one.
        batch_size: Crystals drawn together.
        on_batch: Called after each batch with the number of crystals accepted so far.
        tally: Filled in with the number of draws, where given.

    Raises:
        SymmBFNError: the checkpoint is bad, a condition is unknown to it or impossible, or no
            crystal at all meets them.
    """
    card = load_card(checkpoint)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(card, device)
    model.network.use_bf16()
    conditions = conditions or Conditions()
    tally = tally if tally is not None else Tally()
    generator = torch.Generator(device).manual_seed(seed)
    templates = Templates(model, card, conditions, seed)
    rows = templates.choose(n)
    crystals: list[Crystal | None] = [None] * n
    pending = np.arange(n)
    for turn in range(1, MAX_TURNS + 1):
        for chunk, template in templates.batches(rows[pending], batch_size or DEFAULT_BATCH_SIZE):
            draw = model.sample(template, steps or DEFAULT_STEPS, generator)
            finished = _finish(draw, template, conditions.max_atoms, tally)
            for slot, crystal in zip(pending[chunk], finished, strict=True):
                crystals[slot] = crystal
            if on_batch is not None:
                on_batch(n - crystals.count(None))
        pending = np.flatnonzero([crystal is None for crystal in crystals])
        if not len(pending):
            break
        if turn % TURNS_PER_TEMPLATE == 0:
            rows[pending] = templates.choose(len(pending))
    done = [crystal for crystal in crystals if crystal is not None]
    if not done:
        raise SymmBFNError(
            f"no crystal met the conditions in {tally.drawn} draws: "
            "loosen the elements, space groups or atom count"
        )
    return done


class Templates:
    """The training data's (space group, orbits, distinct elements) that the conditions allow."""

    def __init__(self, model: SymmBFN, card: Card, conditions: Conditions, seed: int) -> None:
        self.allowed = _allowed_elements(model, card, conditions)
        self.table = _allowed_templates(model, card, conditions, int(self.allowed.sum()))
        self.targets = _targets(card, conditions)
        self.random = np.random.default_rng(seed)
        self.device = model.elements.device

    def choose(self, n: int) -> IntArray:
        """(n,) rows of the table, by their frequencies in the training data."""
        weights = self.table[:, 3] / self.table[:, 3].sum()
        rows: IntArray = self.random.choice(len(self.table), n, p=weights)
        return rows

    def batches(self, rows: IntArray, batch_size: int) -> Iterator[tuple[IntArray, Template]]:
        """Cut rows into batches of like size, so that padding costs little.

        Yields:
            Which of the rows, and the templates they stand for.
        """
        group, orbits, kinds, _ = self.table[rows].T
        operations = num_operations().numpy()[group]
        order = np.lexsort((operations, orbits))
        for chunk in _chunks(orbits[order], operations[order], batch_size):
            chosen = order[chunk]
            sizes = torch.from_numpy(orbits[chosen])
            yield (
                chosen,
                Template(
                    group=torch.from_numpy(group[chosen]).to(self.device),
                    mask=(torch.arange(int(sizes.max())) < sizes[:, None]).to(self.device),
                    kinds=torch.from_numpy(kinds[chosen]).to(self.device),
                    properties=self.targets.expand(len(chosen), -1).to(self.device),
                    allowed=self.allowed.to(self.device),
                ),
            )


def _chunks(orbits: IntArray, operations: IntArray, batch_size: int) -> Iterator[slice]:
    """Cut sorted crystals where a batch is full: in number, or in padded pairs to look at."""
    start = 0
    for stop in range(1, len(orbits) + 1):
        pairs = int(orbits[stop - 1]) ** 2 * int(operations[start:stop].max())
        size = stop - start
        if size > 1 and (size > batch_size or size * pairs > MAX_PAIRS):
            yield slice(start, stop - 1)
            start = stop - 1
    yield slice(start, len(orbits))


def _allowed_elements(model: SymmBFN, card: Card, conditions: Conditions) -> Tensor:
    """(100,) elements that the model knows and the conditions allow."""
    known = model.elements.cpu()
    allowed = known.clone()
    if conditions.elements is not None:
        allowed &= _mask(conditions.elements, known, card)
    allowed &= ~_mask(conditions.exclude, known, card, strict=False)
    if not allowed.any():
        raise SymmBFNError("no element is left: loosen --elements or --exclude")
    return allowed


def _mask(symbols: tuple[str, ...], known: Tensor, card: Card, strict: bool = True) -> Tensor:
    from pymatgen.core.periodic_table import Element

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
    model: SymmBFN, card: Card, conditions: Conditions, num_elements: int
) -> IntArray:
    """(R, 4) rows of (space group - 1, orbits, distinct elements, count) that can be met."""
    table: IntArray = model.templates.cpu().numpy()
    if conditions.space_groups is not None:
        for number in conditions.space_groups:
            if not 1 <= number <= 230:
                raise SymmBFNError(f"space group {number} does not exist: choose 1-230")
        table = table[np.isin(table[:, 0] + 1, conditions.space_groups)]
        if not len(table):
            raise SymmBFNError(
                f"no crystal of space group {', '.join(map(str, conditions.space_groups))} in the "
                f"training data of checkpoint {card.name}: choose others"
            )
    fewest = np.array([_fewest_atoms(int(g) + 1, int(o)) for g, o in table[:, :2]])
    table = table[(table[:, 2] <= num_elements) & (fewest <= conditions.max_atoms)]
    if not len(table):
        raise SymmBFNError(
            "no crystal of the training data has so few atoms or elements: loosen the conditions"
        )
    return table


def _fewest_atoms(number: int, orbits: int) -> int:
    """Least number of atoms in the primitive cell that so many orbits can make."""
    group = space_group(number)
    fixed = np.sort(group.primitive_multiplicities[group.degrees_of_freedom == 0])
    free = group.primitive_multiplicities[group.degrees_of_freedom > 0]
    least = np.sort(np.concatenate([fixed, np.full(orbits, free.min() if len(free) else 10**6)]))
    return int(least[:orbits].sum())


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


def _finish(
    draw: Draw, template: Template, max_atoms: int, tally: Tally
) -> Iterator[Crystal | None]:
    """The crystals of a batch, None for one that breaks a rule."""
    elements = draw.elements.argmax(-1).cpu().numpy() + 1
    letters = draw.letters.double().cpu().numpy()
    coordinates = draw.coordinates.double().cpu().numpy()
    lattice = draw.lattice.double().cpu().numpy()
    groups = template.group.cpu().numpy() + 1
    kinds = template.kinds.tolist()
    for row, orbits in enumerate(template.mask.sum(1).tolist()):
        tally.drawn += 1
        group = space_group(int(groups[row]))
        species = elements[row, :orbits]
        chosen = _choose_letters(letters[row, :orbits], group.degrees_of_freedom)
        crystal = None
        if min(len(set(species)), MAX_KINDS) != kinds[row]:
            tally.other_number_of_elements += 1
        elif chosen is None:
            tally.no_legal_positions += 1
        elif group.primitive_multiplicities[chosen].sum() > max_atoms:
            tally.too_many_atoms += 1
        else:
            points = np.einsum("nij,nj->ni", group.projectors[chosen], coordinates[row, :orbits])
            points += group.offsets[chosen]
            crystal = Crystal(group.number, lattice[row], species, chosen, points)
            if not crystal.shortest_distance() >= MIN_DISTANCE:
                tally.overlapping += 1
                crystal = None
        tally.accepted += crystal is not None
        yield crystal


def _choose_letters(log_probabilities: FloatArray, freedom: IntArray) -> IntArray | None:
    """(N,) likeliest positions, surest orbit first; a position without freedom only once."""
    table = log_probabilities[:, : len(freedom)].copy()
    chosen = np.zeros(len(table), int)
    for orbit in np.argsort(-table.max(1), kind="stable"):
        letter = int(table[orbit].argmax())
        if not np.isfinite(table[orbit, letter]):
            return None
        chosen[orbit] = letter
        if freedom[letter] == 0:
            table[:, letter] = -np.inf
    return chosen
