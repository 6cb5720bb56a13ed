"""Real crystals for the tests, made on the spot: one or more for each crystal family."""

import numpy as np
from pymatgen.core import Lattice, Structure

SYMBOLS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "O", "S", "Se", "F", "Cl", "Br", "I", "N", "P")
"""For cells of two atoms, any two of them."""


def make(name: str) -> Structure:
    """The crystal called `name`."""
    return _MAKERS[name]()


def _group(
    number: int, lattice: Lattice, species: list[str], coords: list[list[float]]
) -> Structure:
    return Structure.from_spacegroup(number, lattice, species, coords)


_MAKERS = {
    "triclinic P-1": lambda: _group(
        2,
        Lattice.from_parameters(4.1, 5.0, 6.2, 81, 95, 103),
        ["Na", "O"],
        [[0.1, 0.2, 0.3], [0.6, 0.7, 0.15]],
    ),
    "triclinic P1": lambda: _group(
        1,
        Lattice.from_parameters(4.1, 5.0, 6.2, 81, 95, 103),
        ["Na", "O", "F"],
        [[0.1, 0.2, 0.3], [0.6, 0.7, 0.15], [0.35, 0.9, 0.62]],
    ),
    "monoclinic C2/m": lambda: _group(
        12,
        Lattice.monoclinic(9.1, 3.4, 5.6, 107),
        ["Nb", "S"],
        [[0.15, 0, 0.23], [0.37, 0, 0.64]],
    ),
    "monoclinic Pc": lambda: _group(
        7, Lattice.monoclinic(4.2, 5.1, 6.3, 98), ["Li", "O"], [[0.2, 0.12, 0.1], [0.7, 0.3, 0.35]]
    ),
    "orthorhombic Pnma": lambda: _group(
        62,
        Lattice.orthorhombic(5.6, 7.8, 5.4),
        ["Ca", "Ti", "O", "O"],
        [[0.04, 0.25, 0.99], [0, 0, 0.5], [0.48, 0.25, 0.07], [0.29, 0.04, 0.71]],
    ),
    "orthorhombic Fddd": lambda: _group(
        70,
        Lattice.orthorhombic(6.0, 9.1, 11.3),
        ["Si", "S"],
        [[0.125, 0.125, 0.46], [0.31, 0.17, 0.22]],
    ),
    "tetragonal rutile": lambda: _group(
        136, Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    ),
    "tetragonal I4mm": lambda: _group(
        107,
        Lattice.tetragonal(3.9, 8.4),
        ["Ba", "Ni", "Sn"],
        [[0, 0, 0.0], [0, 0, 0.42], [0, 0.5, 0.26]],
    ),
    "trigonal Bi2Te3": lambda: _group(
        166,
        Lattice.hexagonal(4.38, 30.5),
        ["Bi", "Te", "Te"],
        [[0, 0, 0.4], [0, 0, 0], [0, 0, 0.209]],
    ),
    "hexagonal wurtzite": lambda: _group(
        186, Lattice.hexagonal(3.25, 5.2), ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]]
    ),
    "cubic rock salt": lambda: _group(
        225, Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ),
    "cubic perovskite": lambda: _group(
        221, Lattice.cubic(3.95), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    ),
    "cubic spinel": lambda: _group(
        227, Lattice.cubic(8.08), ["Mg", "Al", "O"], [[0.125] * 3, [0.5] * 3, [0.2624] * 3]
    ),
    "cubic pyrite": lambda: _group(205, Lattice.cubic(5.42), ["Fe", "S"], [[0, 0, 0], [0.385] * 3]),
}
NAMES = sorted(_MAKERS)


def disguise(structure: Structure, seed: int = 0) -> Structure:
    """The same crystal: sites permuted, origin moved, another choice of cell."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(structure))
    shifted = Structure(
        structure.lattice,
        [structure[int(i)].species for i in order],
        structure.frac_coords[order] + random.random(3),
    )
    shifted.make_supercell([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    return shifted


def bent(structure: Structure) -> Structure:
    """A crystal without symmetry, with forces and stress."""
    random = np.random.default_rng(0)
    made = structure.apply_strain([0.02, -0.01, 0.03], inplace=False)
    for site in range(len(made)):
        made.translate_sites([site], random.normal(scale=0.1, size=3), frac_coords=False)
    return made
