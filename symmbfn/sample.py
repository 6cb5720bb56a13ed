"""Sampling: `sample(checkpoint, n, seed=…)` returns crystals that meet the conditions.

Space group, number of orbits and number of elements are drawn from the training frequencies, as
far as the conditions allow; the flow draws the rest. Where the checkpoint has a critic or an
estimator, several arrangements of sites are proposed for each crystal, and the one that they expect
nearest to the hull, and to the properties asked for, gets a geometry; those of training crystals,
and of others that are known, come last.

Every crystal returned has only legal Wyckoff positions, none without free coordinates twice, the
number of elements drawn first and only allowed ones, at most `max_atoms` atoms in its primitive
cell, and no two atoms closer than 0.5 Å. What breaks a rule is drawn again: the same space group
and numbers at first, then others.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pymatgen.core.periodic_table import Element
from torch import Tensor

from symmbfn import metrics
from symmbfn.checkpoint import DEFAULT_CHECKPOINT, Card, load_card, load_model
from symmbfn.choice import badness
from symmbfn.conditions import Conditions, Templates
from symmbfn.crystal import Crystal
from symmbfn.draw import Rules, draw_geometry, draw_sites
from symmbfn.elements import NUM_ELEMENTS
from symmbfn.errors import SymmBFNError
from symmbfn.layers import MAX_KINDS, Template
from symmbfn.model import Geometry, SymmBFN
from symmbfn.occupation import exactly, fixed_positions
from symmbfn.site_network import Sites
from symmbfn.wyckoff import IntArray, space_group

DEFAULT_STEPS = 20
DEFAULT_PROPOSALS = 4  # with a critic or an estimator
MOST_SITES = 4096  # arrangements of sites drawn together, whatever the size of a batch
DEFAULT_BATCH_SIZE = 256
MAX_TURNS = 20  # draws for each crystal asked for, before giving up
TURNS_PER_TEMPLATE = 4
FORMULA_TRIES = 512  # templates to fill with a given formula


@dataclass
class Tally:
    """How many draws were made, and why those not returned were refused."""

    drawn: int = 0
    accepted: int = 0
    impossible_sites: int = 0
    other_symmetry: int = 0
    overlapping: int = 0
    not_chosen: int = 0  # have the formula asked for, but others are likelier


def sample(
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    n: int = 16,
    *,
    seed: int,
    steps: int | None = None,
    proposals: int | None = None,
    conditions: Conditions | None = None,
    avoid: Tensor | None = None,
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
        steps: Bayesian updates of the geometry; `DEFAULT_STEPS` unless given.
        proposals: Arrangements of sites for each crystal, of which one is chosen: one that no
            training crystal has if there is any, and of those the one that the critic expects
            lowest above the hull and the estimator nearest to the targets. `DEFAULT_PROPOSALS`
            unless given, and 1 without either. Under a formula the likeliest arrangements are taken
            instead.
        conditions: What they must be.
        avoid: (K,) `Sites.codes` to pass by beside those of the training crystals, where several
            arrangements are proposed.
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
    model.use_bf16()
    if avoid is not None:
        model.known_sites = torch.cat([model.known_sites, avoid.to(device)]).unique()
    proposals = proposals_of(card, proposals)
    conditions = conditions or Conditions()
    tally = tally if tally is not None else Tally()
    generator = torch.Generator(device).manual_seed(seed)
    templates = Templates(model, card, conditions, seed)
    crystals: list[Crystal | None] = [None] * n
    pending = np.arange(n)
    rows = templates.choose(n)
    for turn in range(1, MAX_TURNS + 1):
        size = batch_size or DEFAULT_BATCH_SIZE
        drawn = (
            _sites(model, templates, rows[pending], size, generator, proposals)
            if templates.rules.formula is None
            else _sites_of_formula(model, templates, len(pending), size, generator, tally)
        )
        for chunk, template, sites, _ in drawn:
            geometry = draw_geometry(
                model,
                sites,
                template,
                steps or DEFAULT_STEPS,
                generator,
                guidance=templates.guidance,
            )
            finished = _finish(sites, geometry, template, templates.rules, tally)
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


def proposals_of(card: Card, asked: int | None = None) -> int:
    """How many arrangements of sites are proposed for each crystal, where so many are asked for.

    Raises:
        SymmBFNError: none at all.
    """
    if asked is None:
        return DEFAULT_PROPOSALS if card.model.critic or card.model.estimator else 1
    if asked < 1:
        raise SymmBFNError(f"{asked} proposals for each crystal: give at least 1")
    return asked


def _sites(
    model: SymmBFN,
    templates: Templates,
    rows: IntArray,
    batch_size: int,
    generator: torch.Generator,
    proposals: int = 1,
) -> Iterator[tuple[IntArray, Template, Sites, Tensor]]:
    """Batches of sites: which of the rows, what was given, what was drawn, and log-weights.

    Each crystal's are the best of some proposals.
    """
    size = min(batch_size, max(1, MOST_SITES // proposals))
    for chunk, template in templates.batches(rows, size):
        places = torch.arange(len(chunk), device=template.group.device)
        every = template.take(places.repeat_interleave(proposals))
        sites, weights = draw_sites(
            model, every, templates.rules, generator, guidance=templates.guidance
        )
        if proposals > 1:
            bad = badness(model, every, sites, templates.guidance)
            bad = bad.masked_fill(weights.isneginf(), torch.inf)
            best = places * proposals + bad.view(-1, proposals).argmin(1)
            sites, weights = sites.take(best), weights[best]
        yield chunk, template, sites, weights


def _sites_of_formula(
    model: SymmBFN,
    templates: Templates,
    count: int,
    batch_size: int,
    generator: torch.Generator,
    tally: Tally,
) -> Iterator[tuple[IntArray, Template, Sites, Tensor]]:
    """Batches of `count` sites that have the formula, as `_sites` gives them.

    Many templates are filled; of the arrangements that came out, the likeliest are taken.
    """
    tried = templates.choose(max(FORMULA_TRIES, 4 * count))
    pool = list(_sites(model, templates, tried, batch_size, generator))
    log_weights = torch.cat([weights for *_, weights in pool])
    fitting = log_weights.isfinite()
    tally.impossible_sites += int((~fitting).sum())
    tally.drawn += int((~fitting).sum())
    if not fitting.any():
        return
    arrangements = [key for _, template, sites, _ in pool for key in _arrangements(template, sites)]
    likeliest = _likeliest(arrangements, log_weights)
    chosen = torch.tensor(likeliest, device=log_weights.device).repeat(-(-count // len(likeliest)))[
        :count
    ]
    not_chosen = int(fitting.sum()) - min(count, len(likeliest))
    tally.drawn, tally.not_chosen = tally.drawn + not_chosen, tally.not_chosen + not_chosen
    start, slots = 0, np.arange(count)
    for _, template, sites, weights in pool:
        mine = (chosen >= start) & (chosen < start + len(weights))
        if mine.any():
            index = chosen[mine] - start
            taken = template.take(index), sites.take(index), weights[index]
            yield slots[mine.cpu().numpy()], *taken
        start += len(weights)


def _arrangements(template: Template, sites: Sites) -> Iterator[Hashable]:
    """The `arrangement` of each crystal."""
    orbits = template.mask.sum(1).tolist()
    for group, n, letters, species in zip(
        template.group.tolist(), orbits, sites.letters.tolist(), sites.species.tolist(), strict=True
    ):
        yield arrangement(group, letters[:n], species[:n])


def arrangement(group: int, letters: Iterable[int], species: Iterable[int]) -> Hashable:
    """What a crystal consists of, equal for equal ones: the group, and which element is where."""
    return group, *sorted(zip(letters, species, strict=True))


def _likeliest(arrangements: Sequence[Hashable], log_weights: Tensor) -> list[int]:
    """One draw of each arrangement, those with the largest sum of weights first."""
    first: dict[Hashable, int] = {}
    total: dict[Hashable, float] = defaultdict(float)
    weights = (log_weights - log_weights.max()).exp().tolist()
    for index, (key, weight) in enumerate(zip(arrangements, weights, strict=True)):
        if weight > 0:
            first.setdefault(key, index)
            total[key] += weight
    return [first[key] for key in sorted(first, key=lambda key: -total[key])]


def _finish(
    sites: Sites, geometry: Geometry, template: Template, rules: Rules, tally: Tally
) -> Iterator[Crystal | None]:
    """The crystals of a batch, None for one that breaks a rule."""
    rules = replace(rules, elements=rules.elements.cpu(), required=rules.required.cpu())
    elements = sites.species.cpu().numpy() + 1
    letters = sites.letters.cpu().numpy()
    coordinates = geometry.coordinates.double().cpu().numpy()
    lattice = geometry.lattice.double().cpu().numpy()
    groups = template.group.cpu().numpy() + 1
    kinds = template.kinds.tolist()
    for row, orbits in enumerate(template.mask.sum(1).tolist()):
        tally.drawn += 1
        group = space_group(int(groups[row]))
        species, chosen = elements[row, :orbits], letters[row, :orbits]
        points = np.einsum("nij,nj->ni", group.projectors[chosen], coordinates[row, :orbits])
        points += group.offsets[chosen]
        crystal = Crystal(group.number, lattice[row], species, chosen, points)
        if not _keeps_rules(crystal, kinds[row], rules):
            tally.impossible_sites += 1
            yield None
        elif not crystal.shortest_distance() >= metrics.MIN_DISTANCE:
            tally.overlapping += 1
            yield None
        elif rules.same_symmetry and not _has_its_symmetry(crystal):
            tally.other_symmetry += 1
            yield None
        else:
            tally.accepted += 1
            yield crystal


def _has_its_symmetry(crystal: Crystal) -> bool:
    """Whether it has the space group that was drawn, and no smaller primitive cell."""
    found = metrics.symmetry_of(crystal.to_structure(), metrics.SYMPREC)
    return (
        found is not None
        and found.number == crystal.space_group
        and len(found.prim_std_cell.numbers) == crystal.num_atoms
    )


def _keeps_rules(crystal: Crystal, kinds: int, rules: Rules) -> bool:
    """Whether the sites are as asked; the site sampler cannot always avoid a dead end."""
    fixed = [n for n in crystal.letters.tolist() if n in fixed_positions(crystal.space_group)]
    present = np.zeros(NUM_ELEMENTS, dtype=bool)
    present[crystal.species - 1] = True
    if rules.formula is not None:
        units, rest = divmod(crystal.num_atoms, sum(rules.formula.values()))
        amounts = crystal.composition.get_el_amt_dict()
        wanted = {Element.from_Z(z + 1).symbol: units * n for z, n in rules.formula.items()}
        if rest or amounts != wanted:
            return False
    return (
        not (present & ~rules.elements.numpy()).any()
        and bool(present[rules.required.numpy()].all())
        and min(len(set(crystal.species)), MAX_KINDS) == kinds
        and len(set(fixed)) == len(fixed)
        and bool(exactly(crystal.num_atoms) & rules.num_atoms)
    )
