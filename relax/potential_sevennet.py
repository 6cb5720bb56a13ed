"""SevenNet-0, which cannot share an environment with MACE: listed, with the way to run it.

Park et al., J. Chem. Theory Comput. 20, 4857 (2024); trained on the raw PBE(+U) energies of MPtrj.
"""

from __future__ import annotations

from typing import NoReturn

from ase.data import chemical_symbols

from relax.errors import RelaxError
from relax.potentials import PotentialInfo, Source

_INFO = PotentialInfo(
    name="sevennet-0",
    energy_scheme="pbe-u-raw",
    dtype="float32",
    weights_sha256="7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
    available=False,
    how_to_get="its package needs e3nn >= 0.5, mace-torch 0.3.16 needs e3nn 0.4.4: install sevenn "
    "in an environment of its own, then --potential examples/sevennet.toml (docs/potentials.md)",
    elements=frozenset(chemical_symbols[1:95]) - {"Po", "At", "Rn", "Fr", "Ra"},
)


def _refuse(*_: str) -> NoReturn:
    raise RelaxError(f"{_INFO.name} cannot run in this environment: {_INFO.how_to_get}")


SOURCES = {_INFO.name: Source(info=lambda: _INFO, load=_refuse, fetch=_refuse)}
