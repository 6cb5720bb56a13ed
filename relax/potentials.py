"""The registry of interatomic potentials: what each is, whether its weights are here, loading it.

A potential is added without touching this file, in one of two ways (docs/potentials.md): a TOML
file that names any ASE calculator, whose path is given as the potential; or a package with an
entry point

    [project.entry-points."symmbfn.potentials"]
    my-potential = "my_package.my_module:SOURCE"      # a relax.potentials.Source

which has it listed, loaded and used by name. `NAME@float64` or `NAME@float32` is a potential in
another precision than its own, and `FILE.model#HEAD` one head of MACE weights that have several.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relax.errors import RelaxError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from relax.calculator import Gradients

_DTYPES = ("float32", "float64")
ENTRY_POINT_GROUP = "symmbfn.potentials"
_BUILT_IN = (  # each has SOURCES: name -> Source
    "relax.potential_chgnet",
    "relax.potential_mace",
    "relax.potential_sevennet",
)


@dataclass(frozen=True)
class PotentialInfo:
    """What is known of a potential without loading it.

    Attributes:
        name: What it is asked for by, and what its relaxations are stored under.
        energy_scheme: What its energies may be compared with: `mp2020` (Materials Project
            corrections included), `pbe-u-raw`, `omat24-pbe`, `mp-r2scan`, `matpes-pbe`,
            `matpes-r2scan`, or `self-consistent:NAME` (only with energies of the potential NAME).
        dtype: Of its arithmetic, `float32` or `float64`; as loaded, or its own choice.
        weights_sha256: Of the file of weights; None where there is no such file.
        available: Whether the weights are on this machine.
        how_to_get: What to do where they are not; empty where they are.
        elements: Symbols that it was trained on.
        dtypes: All that it can compute in; empty for `dtype` alone.
    """

    name: str
    energy_scheme: str
    dtype: str
    weights_sha256: str | None
    available: bool
    how_to_get: str
    elements: frozenset[str]
    dtypes: tuple[str, ...] = ()


class Potential(ABC):
    """A loaded potential."""

    info: PotentialInfo

    @abstractmethod
    def calculator(self) -> Calculator:
        """Return an ASE calculator: energy (eV), forces (eV/Å), stress (eV/Å³, Voigt order)."""

    def gradients(self, atoms: Sequence[Atoms]) -> list[Gradients]:
        """Return energies, forces and strain gradients of several crystals, in one batch if it can.

        Args:
            atoms: Periodic in all directions; nothing in them is changed.

        Raises:
            Exception: Whatever the model or its library dislikes of any of them.
        """
        from relax.calculator import gradients_by

        calculator = self.calculator()
        return [gradients_by(calculator, one) for one in atoms]

    def energies_per_atom(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        """Return the energies of structures as they are.

        Args:
            structures: Of any size; nothing in them is changed.

        Returns:
            Energies in eV/atom, shape (len(structures),); NaN where there is none to be had.
        """
        from pymatgen.io.ase import AseAtomsAdaptor

        calculator = self.calculator()
        energies = np.full(len(structures), np.nan)
        for index, structure in enumerate(structures):
            if not np.isfinite([*structure.lattice.matrix, *structure.frac_coords]).all():
                continue  # some calculators give an energy for what is left
            try:
                atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
                atoms.calc = calculator
                energies[index] = atoms.get_potential_energy() / len(atoms)
            except Exception:  # whatever a model or its library dislikes costs one structure only
                continue
        return energies


@dataclass(frozen=True)
class Source:
    """Where a potential comes from.

    Attributes:
        info: Tells what is known of it; cheap, imports and loads nothing heavy.
        load: Loads it; arguments are the device and the dtype, one of those that `info` tells.
        fetch: Gets its weights, or raises a RelaxError that says how; None where they ship.
        python: The interpreter of the environment that it needs, where that is another one; its
            relaxations run in worker processes of that interpreter.
        alias: Another name, that of the weights in their own library.
    """

    info: Callable[[], PotentialInfo]
    load: Callable[[str, str], Potential]
    fetch: Callable[[], None] | None = None
    python: Path | None = None
    alias: str = ""


def list_potentials() -> list[PotentialInfo]:
    """Describe every registered potential, the built-in ones first."""
    return [source.info() for source in _sources().values()]


def find(name_or_path: str, *, energy_scheme: str | None = None) -> PotentialInfo:
    """Describe a potential and make sure that its weights are here.

    Args:
        name_or_path: A registered name, a file of MACE weights, or a TOML file that names an ASE
            calculator; with `#HEAD` for one of the heads of MACE weights, and with `@float32` or
            `@float64` for that precision instead of its own.
        energy_scheme: For a file only: what its energies may be compared with. The default is
            that of the published weights where the file is such, or else
            `self-consistent:NAME`, so that it needs a hull of its own (`symmbfn hull build`).

    Raises:
        RelaxError: There is no such potential, its weights cannot be had, or it cannot compute in
            this dtype.
    """
    source, dtype = _located(name_or_path, energy_scheme)
    return replace(source.info(), dtype=dtype)


def canonical(name_or_path: str) -> str:
    """Return our name of a potential that is asked for by its library's; all else as it is."""
    asked, dtype = _split(name_or_path)
    names = {source.alias: name for name, source in _sources().items() if source.alias}
    name = names.get(asked, asked)
    return f"{name}@{dtype}" if dtype else name


def python_of(name_or_path: str) -> Path | None:
    """Return the interpreter that a potential needs, or None where ours will do.

    Raises:
        RelaxError: As `find`.
    """
    source, _ = _located(name_or_path, None)
    return source.python


def load(name_or_path: str, *, device: str = "cpu", energy_scheme: str | None = None) -> Potential:
    """Load a potential.

    Args:
        name_or_path: As in `find`.
        device: Of torch, such as `cpu` or `cuda`.
        energy_scheme: As in `find`.

    Raises:
        RelaxError: There is no such potential, its weights cannot be had or are not what they
            should be, or it cannot compute in this dtype.
    """
    source, dtype = _located(name_or_path, energy_scheme)
    return source.load(device, dtype)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _located(name_or_path: str, energy_scheme: str | None) -> tuple[Source, str]:
    """Return where a potential comes from, and the dtype that is asked for or its own."""
    name, dtype = _split(canonical(name_or_path))
    named = _sources().get(name)
    source = named or _file_source(name, energy_scheme)
    info = source.info()
    possible = info.dtypes or (info.dtype,)
    if dtype and dtype not in possible:
        raise RelaxError(
            f"potential {name!r} computes in {' or '.join(possible)}, not {dtype}; "
            f"leave out @{dtype}"
        )
    if named and energy_scheme not in (None, info.energy_scheme):
        raise RelaxError(
            f"potential {name!r} gives energies of scheme {info.energy_scheme}, not "
            f"{energy_scheme}; leave the scheme out"
        )
    if source.fetch and not info.available:
        source.fetch()
    return source, dtype or info.dtype


def _file_source(name_or_path: str, energy_scheme: str | None) -> Source:
    path, head = Path(name_or_path).expanduser(), ""
    if not path.is_file() and "#" in name_or_path:
        file, _, head = name_or_path.rpartition("#")
        path = Path(file).expanduser()
    if path.is_file() and path.suffix == ".toml":
        from relax.potential_ase import configured_source

        if head:
            raise RelaxError(
                f"potential {name_or_path!r}: #{head} is for MACE weights; leave it out"
            )
        return configured_source(path, energy_scheme)
    if path.is_file():
        from relax.potential_mace import file_source

        return file_source(path, energy_scheme, head)
    if path.suffix in (".model", ".toml") or "/" in name_or_path:
        raise RelaxError(f"potential {name_or_path!r}: no such file; check the path")
    raise RelaxError(
        f"no potential {name_or_path!r}; there are {', '.join(_sources())}, or give the path of "
        "a file of MACE weights (.model), or of a TOML file that names an ASE calculator"
    )


def _split(name_or_path: str) -> tuple[str, str]:
    name, at, dtype = name_or_path.rpartition("@")
    return (name, dtype) if at and dtype in _DTYPES else (name_or_path, "")


@cache
def _sources() -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for module in _BUILT_IN:
        sources |= import_module(module).SOURCES
    for point in entry_points(group=ENTRY_POINT_GROUP):
        source = point.load()
        if point.name in sources:
            raise RelaxError(
                f"two potentials are called {point.name!r}; rename the one of {point.value}"
            )
        if not isinstance(source, Source):
            raise RelaxError(
                f"entry point {point.name} = {point.value} is no relax.potentials.Source; "
                "uninstall or mend its package"
            )
        sources[point.name] = source
    return sources
