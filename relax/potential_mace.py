"""MACE foundation models as potentials, by name or from a file of weights.

Batatia et al., arXiv:2401.00096 (MACE-MP), and the authors' releases. The files are pickles, which
run code when read, so they are read only if they have the SHA-256 that is pinned here, or if the
user names the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from relax.batches import batched_energies
from relax.calculator import GradientCalculator
from relax.errors import RelaxError
from relax.mace_model import MaceModel, unfit
from relax.potentials import Potential, PotentialInfo, Source, sha256_of

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from relax.calculator import Gradients
    from relax.mace_model import Graph

_ELEMENTS = frozenset(chemical_symbols[1:95]) - {"Po", "At", "Rn", "Fr", "Ra"}
_DTYPE = "float64"  # what its authors advise for relaxation
_DTYPES = ("float32", "float64")
_BATCH = 160  # atoms
_UNSAFE_LOADING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class Release:
    """Published weights.

    Attributes:
        key: Their name in mace-torch.
        file: Their name as published; mace-torch keeps it without punctuation in its cache.
        energy_scheme: See `relax.potentials.PotentialInfo`.
        sha256: Of the file, as several independent projects record it.
    """

    key: str
    file: str
    energy_scheme: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where mace-torch keeps them (mace.tools.utils.get_cache_dir)."""
        cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mace"
        return cache_folder / "".join(c for c in self.file if c.isalnum() or c == "_")


RELEASES = {
    "mace-mp-0-small": Release(
        "small",
        "2023-12-10-mace-128-L0_energy_epoch-249.model",
        "pbe-u-raw",
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736",
    ),
    "mace-mp-0-medium": Release(
        "medium",
        "2023-12-03-mace-128-L1_epoch-199.model",
        "pbe-u-raw",
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845",
    ),
    "mace-mp-0-large": Release(
        "large",
        "MACE_MPtrj_2022.9.model",
        "pbe-u-raw",
        "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
    ),
    "mace-mp-0b-small": Release(
        "small-0b",
        "mace_agnesi_small.model",
        "pbe-u-raw",
        "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
    ),
    "mace-mp-0b-medium": Release(
        "medium-0b",
        "mace_agnesi_medium.model",
        "pbe-u-raw",
        "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
    ),
    "mace-mp-0b2-small": Release(
        "small-0b2",
        "mace-small-density-agnesi-stress.model",
        "pbe-u-raw",
        "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9",
    ),
    "mace-mp-0b2-medium": Release(
        "medium-0b2",
        "mace-medium-density-agnesi-stress.model",
        "pbe-u-raw",
        "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf",
    ),
    "mace-mp-0b2-large": Release(
        "large-0b2",
        "mace-large-density-agnesi-stress.model",
        "pbe-u-raw",
        "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad",
    ),
    "mace-mp-0b3-medium": Release(
        "medium-0b3",
        "mace-mp-0b3-medium.model",
        "pbe-u-raw",
        "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
    ),
    "mace-mpa-0-medium": Release(
        "medium-mpa-0",
        "mace-mpa-0-medium.model",
        "pbe-u-raw",
        "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
    ),
    "mace-omat-0-small": Release(
        "small-omat-0",
        "mace-omat-0-small.model",
        "omat24-pbe",
        "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
    ),
    "mace-omat-0-medium": Release(
        "medium-omat-0",
        "mace-omat-0-medium.model",
        "omat24-pbe",
        "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
    ),
    "mace-matpes-pbe-0": Release(
        "mace-matpes-pbe-0",
        "MACE-matpes-pbe-omat-ft.model",
        "matpes-pbe",
        "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
    ),
    "mace-matpes-r2scan-0": Release(
        "mace-matpes-r2scan-0",
        "MACE-matpes-r2scan-omat-ft.model",
        "matpes-r2scan",
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9",
    ),
}


class MacePotential(Potential):
    """A MACE model of energies, loaded."""

    def __init__(self, model: MaceModel, info: PotentialInfo) -> None:
        """Wrap a model of the dtype that `info` says."""
        self.info = info
        self._model = model

    def calculator(self) -> Calculator:
        """Return an ASE calculator; see the base class."""
        return GradientCalculator(lambda atoms: self.gradients([atoms])[0])

    def gradients(self, atoms: Sequence[Atoms]) -> list[Gradients]:
        """Return energies, forces and strain gradients of a batch; see the base class."""
        return self._model.gradients(atoms)

    def energies_per_atom(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        """Return energies, computed in batches of crystals of like size; see the base class."""
        return batched_energies(
            structures, self.info.elements, self._graph_of, self._model.energies_per_atom, _BATCH
        )

    def _graph_of(self, structure: Structure) -> Graph:
        numbers = [site.specie.Z for site in structure]
        return self._model.graph(numbers, structure.lattice.matrix, structure.cart_coords)


def file_source(path: Path, energy_scheme: str | None, head: str = "") -> Source:
    """Make a source of a file of weights that the user names.

    Args:
        path: The file; it is unpickled when the potential is loaded, so it must be trusted.
        energy_scheme: What its energies may be compared with; None is the scheme of the published
            weights where the file is one of those, or else `self-consistent:NAME`.
        head: Which of its energies, where it has several.
    """
    info = partial(_file_info, path, energy_scheme, head)
    return Source(info, load=lambda device, dtype: _read(path, info(), device, dtype, head))


def _file_info(path: Path, energy_scheme: str | None, head: str) -> PotentialInfo:
    sha256 = sha256_of(path)
    for name, release in RELEASES.items():
        if sha256 == release.sha256 and energy_scheme in (None, release.energy_scheme):
            return _release_info(name)
    # The hash is in the name, so that retrained weights under the same file name are another one.
    name = "-".join(part for part in (path.stem, head, sha256[:8]) if part)
    return PotentialInfo(
        name=name,
        energy_scheme=energy_scheme or f"self-consistent:{name}",
        dtype=_DTYPE,
        weights_sha256=sha256,
        available=True,
        how_to_get="",
        elements=_ELEMENTS,
        dtypes=_DTYPES,
    )


def _release_info(name: str) -> PotentialInfo:
    release = RELEASES[name]
    here = release.path.is_file()
    return PotentialInfo(
        name=name,
        energy_scheme=release.energy_scheme,
        dtype=_DTYPE,
        weights_sha256=release.sha256,
        available=here,
        how_to_get="" if here else f"download {release.file} of its authors to {release.path}",
        elements=_ELEMENTS,
        dtypes=_DTYPES,
    )


def _load_release(name: str, device: str, dtype: str) -> MacePotential:
    path = RELEASES[name].path
    if not path.is_file():
        _fetch_release(name)
    if (found := sha256_of(path)) != RELEASES[name].sha256:
        raise RelaxError(
            f"{path} is not {name}: its sha256 is {found[:12]}…, not "
            f"{RELEASES[name].sha256[:12]}…; delete it, or give its path if you trust it"
        )
    return _read(path, _release_info(name), device, dtype)


def _fetch_release(name: str) -> None:
    """Let mace-torch download the weights.

    Raises:
        RelaxError: It could not.
    """
    release = RELEASES[name]
    try:
        with _mace_imported(), contextlib.redirect_stdout(io.StringIO()):
            from mace.calculators.foundations_models import download_mace_mp_checkpoint

            download_mace_mp_checkpoint(release.key)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RelaxError(
            f"the weights of {name} are not here and cannot be downloaded ({reason}); put "
            f"{release.file} of its authors at {release.path}, or give its path as the potential"
        ) from error


def _read(
    path: Path, info: PotentialInfo, device: str, dtype: str, head: str = ""
) -> MacePotential:
    with _mace_imported():
        import torch

        try:
            model = torch.load(path, map_location=device, weights_only=False)
            numbers = [int(number) for number in model.atomic_numbers]
        except Exception as error:
            raise RelaxError(
                f"{path}: no MACE weights ({type(error).__name__}); give a .model file of "
                "mace-torch"
            ) from error
        if why := unfit(model, head):
            raise RelaxError(f"{path}: {why}")
        elements = frozenset(chemical_symbols[number] for number in numbers)
        info = replace(info, dtype=dtype, elements=elements)
        return MacePotential(MaceModel(model, dtype, device, head), info)


@contextlib.contextmanager
def _mace_imported() -> Iterator[None]:
    """Import mace before all else that needs e3nn; what the two need of the process is undone.

    e3nn reads its own tables in a way that torch refuses without a variable, which mace sets for
    good when it is first imported: after that every later torch.load may run code. Both warn of
    their own old ways, which nobody who uses them here can mend.
    """
    before = os.environ.get(_UNSAFE_LOADING)
    try:
        os.environ[_UNSAFE_LOADING] = "1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mace  # noqa: F401

            yield
    finally:
        if before is None:
            os.environ.pop(_UNSAFE_LOADING, None)
        else:
            os.environ[_UNSAFE_LOADING] = before


def _source(name: str) -> Source:
    return Source(
        info=partial(_release_info, name),
        load=partial(_load_release, name),
        fetch=partial(_fetch_release, name),
        alias=RELEASES[name].key,
    )


SOURCES = {name: _source(name) for name in RELEASES}
