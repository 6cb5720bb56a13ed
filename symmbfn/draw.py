"""The two samplers: first all sites, one after another, then the geometry of all at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from symmbfn.group_tables import expand
from symmbfn.layers import Template
from symmbfn.model import Geometry, SymmBFN
from symmbfn.occupation import fixed_positions, possible_positions
from symmbfn.packing import possible_elements
from symmbfn.site_network import HIDDEN_ELEMENT, HIDDEN_LETTER, Sites
from symmbfn.wyckoff import space_group

MAX_LATTICE = 10.0  # standard deviations of the data


@dataclass
class Rules:
    """What no crystal may break; the site sampler draws among what is left.

    Attributes:
        elements: (100,) those that may occur.
        required: (100,) those that must.
        num_atoms: Those that the primitive cell may have, see `occupation`.
        formula: Atoms of each element (0 = H) in one formula unit, where it is given.
        same_symmetry: Whether the finished crystal must have the space group that was drawn; a
            higher one could have a smaller primitive cell.
    """

    elements: Tensor
    required: Tensor
    num_atoms: int
    formula: dict[int, int] | None = None
    same_symmetry: bool = False


@torch.no_grad()
def draw_sites(
    model: SymmBFN,
    template: Template,
    rules: Rules,
    generator: torch.Generator,
    *,
    guidance: Tensor | None = None,
) -> tuple[Sites, Tensor]:
    """Draw positions and elements of B crystals, one message after another (`ErasureFlow`).

    Args:
        model: The generator.
        template: What is given.
        rules: What may be drawn.
        generator: Source of all randomness.
        guidance: (P,) strength of each property, see `_guided`.

    Returns:
        The sites, and (B,) log-weights: how likely the network, left alone, would have kept the
        rules on the way; -inf where they are broken at a dead end. Draws under a formula, taken
        again with these weights, are draws of the crystals that have this formula.
    """
    mask = template.mask
    weights = torch.zeros(len(mask), device=mask.device)
    here = torch.arange(mask.shape[1], device=mask.device)
    sites = Sites(
        torch.full(mask.shape, HIDDEN_LETTER, device=mask.device),
        torch.full(mask.shape, HIDDEN_ELEMENT, device=mask.device),
    )

    def estimates() -> tuple[Tensor, ...]:
        return _guided(lambda given: model.site_estimates(sites, given), template, guidance)

    for orbit in range(mask.shape[1]):
        arrives = mask & (here == orbit)
        possible = _possible_letters(template, sites.letters, orbit, rules.num_atoms)
        message, weight = _draw(estimates()[0][:, orbit], possible, generator)
        sites.letters = model.letter_flow.update(sites.letters, message[:, None], arrives)
        weights += weight.masked_fill(~arrives[:, orbit], 0.0)
    if rules.formula is None:
        _place_required(lambda: estimates()[1], template, sites, rules.required, generator)
    for orbit in range(mask.shape[1]):
        arrives = mask & (here == orbit) & (sites.species == HIDDEN_ELEMENT)
        if rules.formula is None:
            possible = _possible_elements(template, sites.species, rules.elements)
        else:
            possible = _fitting_elements(template, sites, orbit, rules.formula)
        message, weight = _draw(estimates()[1][:, orbit], possible, generator)
        sites.species = model.element_flow.update(sites.species, message[:, None], arrives)
        weights += weight.masked_fill(~arrives[:, orbit], 0.0)
    return Sites(sites.letters.masked_fill(~mask, 0), sites.species.masked_fill(~mask, 0)), weights


@torch.no_grad()
def draw_geometry(
    model: SymmBFN,
    sites: Sites,
    template: Template,
    steps: int,
    generator: torch.Generator,
    *,
    guidance: Tensor | None = None,
) -> Geometry:
    """Draw coordinates and lattice of B crystals (Graves et al., algorithm 3).

    Args:
        model: The generator.
        sites: What the crystals consist of.
        template: What is given.
        steps: Bayesian updates n; n + 1 network calls.
        generator: Source of all randomness.
        guidance: (P,) strength of each property, see `_guided`.

    Returns:
        Coordinates (B, N, 3) as fractions on their positions, and k-parameters (B, 6).
    """
    group, mask = template.group, template.mask
    atoms = expand(model.tables, group, sites.letters, mask)
    beliefs = Geometry(
        torch.zeros(*mask.shape, 3, device=mask.device),
        torch.zeros(len(group), 6, device=mask.device),
    )

    def estimate(time: float) -> tuple[Tensor, Tensor]:
        t = torch.full((len(group),), time, device=mask.device)

        def call(given: Template) -> tuple[Tensor, Tensor]:
            x = model.estimate(beliefs, t, sites, atoms, given)
            return x.coordinates, x.lattice

        coordinates, lattice = _guided(call, template, guidance)
        points = model.on_positions((coordinates + 1) / 2, sites.letters, group)
        # strong guidance may point to cells that no computer holds
        return points, lattice.clamp(-MAX_LATTICE, MAX_LATTICE) * model.lattice_free[group]

    for step in range(1, steps + 1):
        points, lattice = estimate((step - 1) / steps)
        beliefs = Geometry(
            model.coordinate_flow.update(
                beliefs.coordinates, 2 * points - 1, step, steps, generator
            ),
            model.lattice_flow.update(beliefs.lattice, lattice, step, steps, generator),
        )
    points, lattice = estimate(1.0)
    return Geometry(points, model.lattice_parameters(lattice, group))


def _guided(
    call: Callable[[Template], tuple[Tensor, ...]], template: Template, guidance: Tensor | None
) -> tuple[Tensor, ...]:
    """Classifier-free guidance: joint + Σₚ (wₚ - 1) (estimate given p alone - given nothing).

    With all strengths w at 1 it is the network's own estimate given all targets.
    """
    joint = call(template)
    if guidance is None:
        return joint
    nothing = torch.full_like(template.properties, torch.nan)
    free = None
    for index, strength in enumerate(guidance.tolist()):
        if strength == 1 or bool(template.properties[:, index].isnan().all()):
            continue
        alone = nothing.clone()
        alone[:, index] = template.properties[:, index]
        free = free if free is not None else call(replace(template, properties=nothing))
        given = call(replace(template, properties=alone))
        joint = tuple(
            j + (strength - 1) * (g - f).nan_to_num()  # impossible positions: -inf - -inf
            for j, g, f in zip(joint, given, free, strict=True)
        )
    return joint


def _possible_letters(template: Template, letters: Tensor, orbit: int, wanted: int) -> Tensor:
    """(B, 27) positions that this orbit may take."""
    possible = torch.zeros(len(letters), HIDDEN_LETTER, dtype=torch.bool)
    orbits = template.mask.sum(1).tolist()
    for row, (group, known) in enumerate(
        zip(template.group.tolist(), letters[:, :orbit].tolist(), strict=True)
    ):
        if orbit < orbits[row]:
            atoms = int(space_group(group + 1).primitive_multiplicities[known].sum())
            taken = fixed_positions(group + 1).intersection(known)
            legal = possible_positions(group + 1, taken, atoms, orbits[row] - orbit - 1, wanted)
            possible[row, : len(legal)] = torch.from_numpy(legal)
    return possible.to(letters.device)


def _place_required(
    estimate: Callable[[], Tensor],
    template: Template,
    sites: Sites,
    required: Tensor,
    generator: torch.Generator,
) -> None:
    """Give each required element one orbit, where the network finds it likeliest."""
    for element in required.nonzero()[:, 0].tolist():
        hidden = template.mask & (sites.species == HIDDEN_ELEMENT)
        orbit, _ = _draw(estimate()[..., element], hidden, generator)
        sites.species[torch.arange(len(orbit), device=orbit.device), orbit] = element


def _possible_elements(template: Template, species: Tensor, allowed: Tensor) -> Tensor:
    """(B, 100) elements that the next orbit may be, so that their number comes out as asked."""
    used = torch.zeros(len(species), HIDDEN_ELEMENT + 1, dtype=torch.bool, device=species.device)
    used = used.scatter_(1, species, True)[:, :HIDDEN_ELEMENT]
    wanted = template.kinds - used.sum(1)
    to_come = (template.mask & (species == HIDDEN_ELEMENT)).sum(1)
    given = template.kinds > 0
    only_used = given & (wanted <= 0)
    only_new = given & (wanted >= to_come)
    return allowed & ~(only_used[:, None] & ~used) & ~(only_new[:, None] & used)


def _fitting_elements(
    template: Template, sites: Sites, orbit: int, formula: dict[int, int]
) -> Tensor:
    """(B, 100) elements that this orbit may be, so that the formula comes out as asked."""
    possible = torch.zeros(len(sites.species), HIDDEN_ELEMENT, dtype=torch.bool)
    unit = sum(formula.values())
    orbits = template.mask.sum(1).tolist()
    for row, (group, letters, species) in enumerate(
        zip(template.group.tolist(), sites.letters.tolist(), sites.species.tolist(), strict=True)
    ):
        if orbit < orbits[row]:
            multiplicities = space_group(group + 1).primitive_multiplicities
            atoms = multiplicities[letters[: orbits[row]]].tolist()
            units = sum(atoms) // unit
            missing = {element: units * count for element, count in formula.items()}
            for element, count in zip(species[:orbit], atoms, strict=False):
                missing[element] = missing.get(element, 0) - count
            fitting = possible_elements(atoms[orbit], atoms[orbit + 1 :], missing)
            possible[row, fitting] = True
    return possible.to(sites.species.device)


def _draw(logits: Tensor, possible: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B,) classes drawn among the possible (or all, where there is none), and log of their share.

    The share is the probability of all the possible ones together.
    """
    share = logits.log_softmax(-1).masked_fill(~possible, -math.inf).logsumexp(-1)
    open_ = possible | share.isneginf()[:, None]
    chosen = torch.multinomial(
        logits.masked_fill(~open_, -math.inf).softmax(-1), 1, generator=generator
    )
    return chosen[:, 0], share
