"""The choice among proposals: which of several arrangements of sites gets a geometry.

What is known already comes last. Of the others, the critic wants the lowest above the hull, or the
nearest to the energy above hull asked for, and the estimator the nearest to all other targets.
"""

from collections import defaultdict
from functools import cache

import torch
from pymatgen.core import Composition
from pymatgen.core.periodic_table import Element
from torch import Tensor

from symmbfn import critic, metrics
from symmbfn.elements import NUM_ELEMENTS
from symmbfn.layers import Template
from symmbfn.model import SymmBFN
from symmbfn.site_network import Sites

# What makes an arrangement worse than the critic finds it, eV/atom:
FAR = 100.0  # a training crystal, or another one to avoid, has the same sites
UNBALANCED = 0.05  # no oxidation states are neutral
MISSED = 0.5  # each standard deviation of the data between a target and what is expected
BY_MASS = 0.01  # each e-fold of the mean atomic mass, or the choice drifts to heavy elements
BALANCE = "composition_valid"
_SYMBOLS = [Element.from_Z(number).symbol for number in range(1, NUM_ELEMENTS + 1)]


@torch.no_grad()
def badness(
    model: SymmBFN, template: Template, sites: Sites, guidance: Tensor | None = None
) -> Tensor:
    """(B,) how little each arrangement is wanted, eV/atom.

    Args:
        model: The generator.
        template: What is given, the targets too.
        sites: The arrangements.
        guidance: (P,) strengths of the targets, None where all are 1.
    """
    bad = _is_known(sites.codes(template.group, template.mask), model.known_sites) * FAR
    asked = _left_to_estimator(model, template)
    if model.critic is None and not asked:
        return bad
    summaries = model.site_summaries(sites, template)
    if asked:
        misses = (model.expected_properties(summaries) - template.properties).abs()
        weights = MISSED * model.estimator_skill * (1.0 if guidance is None else guidance)
        bad = bad + (misses * weights)[:, asked].sum(1)
    if model.critic is not None:
        atoms = model.tables.atoms_of(template.group, sites.letters, template.mask)
        bad = bad + _distances(model.energies_above_hull(summaries), _target(model, template))
        bad = bad + BY_MASS * _mean_masses(atoms, sites.species).log()
        may_be_unbalanced = _target(model, template, BALANCE) < 0.5
        bad = bad + UNBALANCED * _unbalanced(atoms, sites.species) * ~may_be_unbalanced
    return bad


def _is_known(codes: Tensor, known: Tensor) -> Tensor:
    """(B,) whether codes (B,) are among the known ones (K,), which ascend; `isin` would sort."""
    return torch.searchsorted(known, codes, right=True) > torch.searchsorted(known, codes)


def _left_to_estimator(model: SymmBFN, template: Template) -> list[int]:
    """Columns of the properties asked for that the critic does not speak about."""
    if model.estimator is None:
        return []
    spoken = {BALANCE, critic.TARGET} if model.critic is not None else set()
    asked = (~template.properties.isnan()).all(0).tolist()  # of every crystal or of none
    names = model.config.properties
    return [i for i, name in enumerate(names) if asked[i] and name not in spoken]


def _target(model: SymmBFN, template: Template, name: str = critic.TARGET) -> Tensor:
    """(B,) what is asked of a property, in its own unit; NaN where nothing is."""
    if name not in model.config.properties:
        return template.properties.new_full((len(template.group),), torch.nan)
    column = model.config.properties.index(name)
    scale, shift = model.property_std[column], model.property_mean[column]
    return template.properties[:, column] * scale + shift


def _distances(energies: Tensor, targets: Tensor) -> Tensor:
    """(B,) energies above the hull themselves, or from a target above it."""
    return torch.where(targets > 1e-3, (energies - targets).abs(), energies)


def _mean_masses(atoms: Tensor, species: Tensor) -> Tensor:
    """(B,) mean atomic masses, u, of `atoms` (B, N) of `species` (B, N)."""
    return (atoms * _atomic_masses().to(atoms.device)[species]).sum(1) / atoms.sum(1)


@cache
def _atomic_masses() -> Tensor:
    """(100,) of the elements, in u."""
    return torch.tensor([float(Element.from_Z(z + 1).atomic_mass) for z in range(NUM_ELEMENTS)])


def _unbalanced(atoms: Tensor, species: Tensor) -> Tensor:
    """(B,) 1 where the composition, of `atoms` (B, N) of `species` (B, N), is not valid, else 0."""
    flaws = []
    for counts, elements in zip(atoms.tolist(), species.tolist(), strict=True):
        amounts: dict[str, int] = defaultdict(int)
        for count, element in zip(counts, elements, strict=True):
            if count:
                amounts[_SYMBOLS[element]] += count
        flaws.append(not metrics.composition_valid(Composition(amounts)))
    return torch.tensor(flaws, dtype=torch.float, device=atoms.device)
