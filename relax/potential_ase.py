"""Any ASE calculator as a potential, by one call or by a TOML file; in another environment, too."""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

from relax.errors import RelaxError
from relax.potentials import Potential, PotentialInfo, Source, sha256_of

if TYPE_CHECKING:
    import numpy as np
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray
    from pymatgen.core import Structure

_ALL_ELEMENTS = frozenset(chemical_symbols[1:])


class AsePotential(Potential):
    """An ASE calculator, which is used for one structure after the other."""

    def __init__(self, calculator: Calculator, info: PotentialInfo) -> None:
        """Wrap a calculator of energy, forces and stress."""
        self.info = info
        self._calculator = calculator

    def calculator(self) -> Calculator:
        """Return the calculator; see the base class."""
        return self._calculator


class PotentialElsewhere(Potential):
    """A potential of another environment: its worker processes do all the work."""

    def __init__(self, name_or_path: str, info: PotentialInfo, device: str) -> None:
        """Note what the workers will load."""
        self.info = info
        self._name = name_or_path
        self._device = device

    def calculator(self) -> Calculator:
        """Refuse, as its packages cannot be imported here.

        Raises:
            RelaxError: Always.
        """
        raise RelaxError(
            f"potential {self.info.name!r} runs in an environment of its own, in worker "
            "processes; give its name to relax() instead of loading it"
        )

    def energies_per_atom(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        """Return energies, computed by worker processes; see the base class."""
        import numpy as np

        from relax.optimize import RelaxConfig, relax_iter

        energies = np.full(len(structures), np.nan)
        config = RelaxConfig(max_steps=0, device=self._device)
        for index, result in relax_iter(structures, self._name, config):
            if result.initial_energy_per_atom is not None:
                energies[index] = result.initial_energy_per_atom
        return energies


def ase_source(
    name: str,
    make: Callable[[], Calculator],
    *,
    elements: frozenset[str] = _ALL_ELEMENTS,
    energy_scheme: str | None = None,
    dtype: str = "float64",
    weights: Path | None = None,
) -> Source:
    """Make a potential of an ASE calculator, for an entry point of the group `symmbfn.potentials`.

    Args:
        name: The entry point's name.
        make: Makes the calculator; called when the potential is loaded, once in each process.
        elements: That it was made for.
        energy_scheme: See `PotentialInfo`; None is `self-consistent:NAME`, so that it needs a hull
            of its own (`symmbfn hull build`).
        dtype: That the calculator computes in.
        weights: Its file, if there is one; its SHA-256 is kept with every energy.
    """

    def info() -> PotentialInfo:
        here = weights is None or weights.is_file()
        return PotentialInfo(
            name=name,
            energy_scheme=energy_scheme or f"self-consistent:{name}",
            dtype=dtype,
            weights_sha256=sha256_of(weights) if weights is not None and here else None,
            available=here,
            how_to_get="" if here else f"put its weights at {weights}",
            elements=elements,
        )

    return Source(info=info, load=lambda device, dtype: AsePotential(make(), info()))


@dataclass(frozen=True)
class _Configured:
    """The keys of a TOML file that names an ASE calculator.

    Attributes:
        calculator: Where it is, `module:class`, `module:function` or `module:class.method`.
        arguments: Given to it by name; "{weights}" in them is the path of `weights`.
        device_argument: Name of the argument that takes the torch device, if there is one.
        energy_scheme: See `PotentialInfo`.
        elements: Symbols; empty for all.
        dtype: That it computes in.
        weights: File of its weights, from the TOML file's folder; its SHA-256 is kept with every
            energy.
        weights_from: Where to get them, for whoever lacks them.
        python: Interpreter of the environment that has it, from the TOML file's folder.
    """

    calculator: str
    arguments: dict[str, Any] = field(default_factory=dict)
    device_argument: str = ""
    energy_scheme: str = ""
    elements: list[str] = field(default_factory=list)
    dtype: str = "float32"
    weights: str = ""
    weights_from: str = ""
    python: str = ""

    def path_of_weights(self, folder: Path) -> Path | None:
        """Return where the weights are, or would be; None where there is no such file."""
        return _absolute(folder / Path(self.weights).expanduser()) if self.weights else None


def configured_source(path: Path, energy_scheme: str | None = None) -> Source:
    """Make a source of a TOML file that the user names; it is trusted to run code.

    Args:
        path: The file; docs/potentials.md tells its keys.
        energy_scheme: Wins over the file's.

    Raises:
        RelaxError: The file is not such a one.
    """
    table = _read(path)
    if energy_scheme:
        table = replace(table, energy_scheme=energy_scheme)
    python = _absolute(path.parent / Path(table.python).expanduser()) if table.python else None
    if python is not None and not python.is_file():
        raise RelaxError(f"{path}: python = {table.python!r} is no file; make its environment")
    return Source(
        info=partial(_info, path, table),
        load=partial(_load, path, table, python),
        python=python,
    )


def _absolute(path: Path) -> Path:
    """Without `..`, but links stay: the interpreter of an environment is one."""
    return Path(os.path.abspath(path))


def _read(path: Path) -> _Configured:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RelaxError(f"{path}: not a TOML file: {error}") from error
    types = {one.name: str(one.type).partition("[")[0] for one in fields(_Configured)}
    for key, value in table.items():
        if type(value).__name__ != types.get(key):
            told = f"{types[key]}, not {value!r}" if key in types else "no such key"
            raise RelaxError(f"{path}: {key}: {told}; the keys are {', '.join(types)}")
    if ":" not in table.get("calculator", ""):
        raise RelaxError(f'{path}: calculator: write "module:name", for example ase\'s "emt:EMT"')
    if unknown := set(table.get("elements", [])) - _ALL_ELEMENTS:
        raise RelaxError(f"{path}: elements: {', '.join(sorted(map(str, unknown)))} are none")
    return _Configured(**table)


def _info(path: Path, table: _Configured) -> PotentialInfo:
    weights = table.path_of_weights(path.parent)
    here = weights is None or weights.is_file()
    sha256 = sha256_of(weights) if weights is not None and here else None
    # What decides the energies is in the name, so that another setting is another potential.
    what = f"{table.calculator} {sorted(table.arguments.items())} {sha256}"
    name = f"{path.stem}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    source = f", from {table.weights_from}" if table.weights_from else ""
    return PotentialInfo(
        name=name,
        energy_scheme=table.energy_scheme or f"self-consistent:{name}",
        dtype=table.dtype,
        weights_sha256=sha256,
        available=here,
        how_to_get="" if here else f"put its weights at {weights}{source}",
        elements=frozenset(table.elements) or _ALL_ELEMENTS,
    )


def _load(
    path: Path, table: _Configured, python: Path | None, device: str, dtype: str
) -> Potential:
    info = _info(path, table)
    if not info.available:
        raise RelaxError(f"{path}: {info.how_to_get}")
    if python is not None and _absolute(Path(sys.executable)) != python:
        return PotentialElsewhere(str(path), info, device)
    module, _, name = table.calculator.partition(":")
    weights = table.path_of_weights(path.parent)
    arguments = _with_weights(table.arguments, str(weights or "{weights}"))
    if table.device_argument:
        arguments[table.device_argument] = device
    try:
        made = attrgetter(name)(import_module(module))(**arguments)
    except Exception as error:  # whatever a package dislikes of its import or its arguments
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RelaxError(
            f"{path}: cannot make {table.calculator} with {sys.executable} ({reason:.200})"
        ) from error
    return AsePotential(made, info)


def _with_weights(value: Any, weights: str) -> Any:
    """Put the path of the weights wherever `{weights}` stands."""
    if isinstance(value, dict):
        return {key: _with_weights(one, weights) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_weights(one, weights) for one in value]
    return weights if value == "{weights}" else value
