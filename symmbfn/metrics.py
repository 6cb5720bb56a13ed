"""How good a set of crystals is: validity, and distances of its distributions to a reference's."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure

from symmbfn.crystal import symmetry_dataset
from symmbfn.errors import SymmBFNError

if TYPE_CHECKING:
    from moyopy import MoyoDataset

MIN_DISTANCE = 0.5  # Å
MIN_VOLUME = 0.1  # Å^3
SYMPREC = 0.1  # Å
MAX_KINDS = 8  # with more, the search over oxidation states takes seconds to hours
_NUM_QUANTILES = 500
_AMU_PER_A3 = 1.66053907  # g/cm³


@dataclass(frozen=True)
class Metrics:
    """Fractions of all n crystals, and distances; None where not computed.

    Attributes:
        n: Crystals, also those that could not be read or built.
        structural_validity: Fraction without `structural_flaw`.
        composition_validity: Fraction with `composition_valid`.
        space_group_jsd: Jensen-Shannon distance (base e) between the frequencies of space groups.
        density_wasserstein: Wasserstein distance between densities, g/cm³.
        n_elements_wasserstein: The same between numbers of different elements.
        uniqueness: Fraction that is the first of its kind.
        novelty: Fraction that is in no reference set.
        coverage_recall: Fraction of the reference that is covered, see `symmbfn.coverage`.
        coverage_precision: Fraction of the crystals that lies in the reference's reach.
        stable: Fraction at or below the convex hull.
        metastable: Fraction within the metastable limit.
        sun: Fraction that is stable, unique and novel.
        msun: Fraction that is metastable, unique and novel.
    """

    n: int
    structural_validity: float
    composition_validity: float
    space_group_jsd: float | None
    density_wasserstein: float | None
    n_elements_wasserstein: float | None
    uniqueness: float | None = None
    novelty: float | None = None
    coverage_recall: float | None = None
    coverage_precision: float | None = None
    stable: float | None = None
    metastable: float | None = None
    sun: float | None = None
    msun: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """All of it by name."""
        return asdict(self)


@dataclass(frozen=True)
class Traits:
    """What the distributions look at in one crystal.

    Attributes:
        space_group: International number, detected at 0.1 Å; None if none is.
        n_atoms: In the primitive cell; None without a space group.
        elements: The different ones, symbols.
        density: g/cm³.
        volume_per_atom: Å³.
    """

    space_group: int | None
    n_atoms: int | None
    elements: tuple[str, ...]
    density: float
    volume_per_atom: float


@dataclass(frozen=True)
class Summary:
    """Distributions of a set of crystals.

    Attributes:
        n: Crystals in it.
        space_groups: How many have each space group (number, detected at 0.1 Å).
        n_elements: How many have each number of different elements.
        n_atoms: How many have each number of atoms in the primitive cell.
        elements: How many contain each element, by symbol.
        densities: (q,) evenly spaced quantiles of the density, g/cm³, ascending.
        volumes_per_atom: (q,) the same of the volume per atom, Å³.
    """

    n: int
    space_groups: dict[int, int]
    n_elements: dict[int, int]
    n_atoms: dict[int, int]
    elements: dict[str, int]
    densities: tuple[float, ...]
    volumes_per_atom: tuple[float, ...]

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Summary":
        """Read what `save` wrote.

        Raises:
            SymmBFNError: The file is missing or something else.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                n=int(document["n"]),
                space_groups={int(k): int(v) for k, v in document["space_groups"].items()},
                n_elements={int(k): int(v) for k, v in document["n_elements"].items()},
                n_atoms={int(k): int(v) for k, v in document["n_atoms"].items()},
                elements={str(k): int(v) for k, v in document["elements"].items()},
                densities=tuple(map(float, document["densities"])),
                volumes_per_atom=tuple(map(float, document["volumes_per_atom"])),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SymmBFNError(
                f"{path} holds no summary of crystals ({error}); make one with Summary.save"
            ) from error


@cache
def mp20_test() -> Summary:
    """The summary of MP-20's 9,046 test crystals, which is shipped."""
    return Summary.load(str(files("symmbfn") / "tables" / "mp20_test.json"))


def evaluate(
    structures: Sequence[Structure | None],
    *,
    reference: Summary | None = None,
    unique: Sequence[bool] | None = None,
    novel: Sequence[bool] | None = None,
    stable: Sequence[bool] | None = None,
    metastable: Sequence[bool] | None = None,
) -> Metrics:
    """Measure a set of crystals.

    Distances are between the structurally valid crystals and the reference; space groups are
    detected again in the finished crystals. Fractions are of all crystals.

    Args:
        structures: n crystals; None for one that could not be made or read, a failure everywhere.
        reference: `summarise` of crystals to compare with. Default: MP-20's test set.
        unique: n flags, True for the first of each kind.
        novel: n flags, True for what no reference set has.
        stable: n flags, True at or below the hull, after a relaxation that converged.
        metastable: n flags, True within the metastable limit; includes the stable ones.

    Raises:
        SymmBFNError: No crystals, or flags of another length.
    """
    n = len(structures)
    if n == 0:
        raise SymmBFNError("no crystals to evaluate; give at least one")
    reference = reference or mp20_test()
    valid = [s for s in structures if s is not None and structural_flaw(s) is None]
    charged = sum(s is not None and composition_valid(s.composition) for s in structures)
    return Metrics(
        n=n,
        structural_validity=len(valid) / n,
        composition_validity=charged / n,
        **distances([traits_of(structure) for structure in valid], reference),
        uniqueness=_fraction(n, unique),
        novelty=_fraction(n, novel),
        stable=_fraction(n, stable),
        metastable=_fraction(n, metastable),
        sun=_fraction(n, stable, unique, novel),
        msun=_fraction(n, metastable, unique, novel),
    )


def _fraction(n: int, *flags: Sequence[bool] | None) -> float | None:
    """Fraction of n for which all flags hold; None if one of them is missing."""
    together = np.ones(n, dtype=bool)
    for flag in flags:
        if flag is None:
            return None
        if len(flag) != n:
            raise SymmBFNError(f"{len(flag)} flags for {n} crystals; give one for each")
        together &= np.asarray(flag, dtype=bool)
    return float(together.mean())


def distances(crystals: Sequence[Traits], reference: Summary) -> dict[str, float | None]:
    """The three distances of `Metrics`; None each where there is no crystal to compare."""
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    names = ("space_group_jsd", "density_wasserstein", "n_elements_wasserstein")
    if not crystals:
        return dict.fromkeys(names)
    groups = Counter(one.space_group for one in crystals)
    shares = [[c.get(g, 0) for g in range(1, 231)] for c in (groups, reference.space_groups)]
    kinds = (Counter(len(one.elements) for one in crystals), reference.n_elements)
    values = (
        jensenshannon(*shares) if any(shares[0]) else None,
        wasserstein_distance([one.density for one in crystals], reference.densities),
        wasserstein_distance(*map(list, kinds), *(list(counts.values()) for counts in kinds)),
    )
    return {n: None if v is None else float(v) for n, v in zip(names, values, strict=True)}


def summarise(structures: Iterable[Structure]) -> Summary:
    """Distributions of crystals; one whose symmetry cannot be found counts in no space group.

    Raises:
        SymmBFNError: No crystals.
    """
    return summary_of([traits_of(structure) for structure in structures])


def summary_of(crystals: Sequence[Traits]) -> Summary:
    """Distributions of crystals whose traits are known.

    Raises:
        SymmBFNError: No crystals.
    """
    if not crystals:
        raise SymmBFNError("no crystals to summarise; give at least one")
    symbols = Counter(symbol for one in crystals for symbol in one.elements)
    return Summary(
        n=len(crystals),
        space_groups=_counts(one.space_group for one in crystals),
        n_elements=_counts(len(one.elements) for one in crystals),
        n_atoms=_counts(one.n_atoms for one in crystals),
        elements=dict(sorted(symbols.items())),
        densities=_quantiles([one.density for one in crystals]),
        volumes_per_atom=_quantiles([one.volume_per_atom for one in crystals]),
    )


def _counts(values: Iterable[int | None]) -> dict[int, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    midpoints = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    quantiles = np.quantile(values, midpoints, method="inverted_cdf")
    return tuple(quantiles.round(4).tolist())


def traits_of(structure: Structure) -> Traits:
    """What the distributions look at in one crystal, which must have no `structural_flaw`."""
    symmetry = symmetry_of(structure, SYMPREC)
    volume, composition = structure.volume, structure.composition
    return Traits(
        space_group=int(symmetry.number) if symmetry else None,
        n_atoms=len(symmetry.prim_std_cell.numbers) if symmetry else None,
        elements=tuple(element.symbol for element in composition),
        # pymatgen's own density goes through unit objects, fifty times as slow
        density=float(composition.weight) / volume * _AMU_PER_A3,
        volume_per_atom=volume / len(structure),
    )


def space_group(structure: Structure, symprec: float = SYMPREC) -> int | None:
    """International number of the space group found at `symprec` (Å); None if none is."""
    symmetry = symmetry_of(structure, symprec)
    return int(symmetry.number) if symmetry else None


def symmetry_of(structure: Structure, symprec: float) -> "MoyoDataset | None":
    """Symmetry found at `symprec` (Å) in the standard setting; None if none is."""
    import moyopy

    cell = moyopy.Cell(
        structure.lattice.matrix.tolist(),
        structure.frac_coords.tolist(),
        list(structure.atomic_numbers),
    )
    try:
        return symmetry_dataset(cell, symprec)
    except ValueError:
        return None


def structural_flaw(structure: Structure) -> str | None:
    """Why a crystal is no crystal, in a few words; None if nothing is wrong.

    As in CDVAE (Xie et al. 2022): atoms at least 0.5 Å apart, periodic images included, and a cell
    of at least 0.1 Å^3. An atom must keep that distance to its own images too.
    """
    matrix, coords = structure.lattice.matrix, structure.frac_coords
    if not (np.isfinite(matrix).all() and np.isfinite(coords).all()):
        return "a lattice vector or coordinate is not a finite number"
    if (volume := structure.volume) < MIN_VOLUME:
        return f"the cell's volume is {volume:.2g} Å^3, below {MIN_VOLUME}"
    distance = _nearest(structure)
    if distance < MIN_DISTANCE:
        return f"two atoms are {distance:.2f} Å apart, less than {MIN_DISTANCE}"
    return None


def _nearest(structure: Structure) -> float:
    """The shortest distance between atoms of a crystal, Å."""
    shortest = min(structure.lattice.get_lll_reduced_lattice().abc)
    if len(structure) == 1:
        return shortest
    distances: NDArray[np.float64] = structure.distance_matrix
    return min(shortest, float(distances[np.triu_indices(len(structure), 1)].min()))


def composition_valid(composition: Composition) -> bool:
    """True if oxidation states exist that are neutral and fit the electronegativities.

    SMACT's test with the choices of CDVAE (Xie et al. 2022): the oxidation states of 2014 (what
    smact 2 called `oxidation_states`), Pauling's test, one state for each element; single elements
    and alloys of metals are valid. More than 8 different elements, not all of them metals, are not
    searched and count as invalid (MP-20 has at most 7).
    """
    counts = {element.symbol: amount for element, amount in composition.items()}
    divisor = math.gcd(*(round(amount) for amount in counts.values()))
    return _neutral(tuple(sorted((s, round(a) // divisor) for s, a in counts.items())))


@lru_cache(maxsize=100_000)
def _neutral(counts: tuple[tuple[str, int], ...]) -> bool:
    from smact import metals
    from smact.screening import smact_validity

    if len(counts) > MAX_KINDS and not all(symbol in metals for symbol, _ in counts):
        return False
    return bool(smact_validity(Composition(dict(counts)), oxidation_states_set="smact14"))
