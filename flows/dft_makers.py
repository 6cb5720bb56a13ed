"""What is computed: settings of density-functional calculations, and atomate2's flows for them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING, Any, Literal

from flows.errors import ConfigError

if TYPE_CHECKING:
    from jobflow import Flow, Job
    from pymatgen.core.structure import Structure

Code = Literal["vasp", "cp2k"]
Workflow = Literal["relax", "static"]
Policy = Literal["stable", "uncertain", "quarantined"]
RunnerName = Literal["local", "jobflow-remote", "fireworks"]

GTH_POTENTIAL, FUNCTIONAL = "GTH-PBE", "PBE"
_PROGRAMS = {"VASP": "vasp_std", "CP2K": "cp2k.psmp"}


@dataclass(frozen=True)
class Cp2kSettings:
    """What CP2K computes with; the functional is PBE, the potentials are GTH's.

    Attributes:
        workflow: `relax`: cell and positions, then a static calculation; `static`: that alone.
        basis: Name of the basis set, the same for every element.
        kpoint_density: K-points per Å⁻³ of the reciprocal cell.
    """

    workflow: Workflow = "relax"
    basis: str = "DZVP-MOLOPT-SR-GTH"
    kpoint_density: float = 64.0

    code = "cp2k"

    def flow(self, structure: Structure) -> Flow:
        """Lay out the jobs for one crystal; the output of the flow is that of the last job."""
        from atomate2.cp2k.jobs.core import CellOptMaker, StaticMaker
        from atomate2.cp2k.sets.core import CellOptSetGenerator, StaticSetGenerator

        inputs: dict[str, Any] = {
            "user_input_settings": {
                "xc_functionals": FUNCTIONAL,
                "basis_and_potential": {
                    element.symbol: {
                        "basis": self.basis,
                        "potential": GTH_POTENTIAL,
                        "aux_basis": None,  # of hybrid functionals only; atomate2 names one
                    }
                    for element in structure.composition.elements
                },
            },
            "user_kpoints_settings": {"reciprocal_density": self.kpoint_density},
        }
        static = StaticMaker(input_set_generator=StaticSetGenerator(**inputs))
        if self.workflow == "static":
            return _flow([static.make(structure)])
        relax = CellOptMaker(input_set_generator=CellOptSetGenerator(**inputs)).make(structure)
        return _flow([relax, static.make(relax.output.structure)])

    def check_here(self) -> None:
        """Make sure that this machine can run CP2K.

        Raises:
            ConfigError: What is missing.
        """
        from atomate2 import SETTINGS

        _check_here("CP2K", "PMG_CP2K_DATA_DIR", SETTINGS.CP2K_CMD)


@dataclass(frozen=True)
class VaspSettings:
    """What VASP computes: exactly the Materials Project's PBE(+U), so that its hull applies.

    Attributes:
        workflow: `relax`: two relaxations, then a static calculation; `static`: that alone.
    """

    workflow: Workflow = "relax"

    code = "vasp"

    def flow(self, structure: Structure) -> Flow:
        """Lay out the jobs for one crystal; the output of the flow is that of the last job."""
        from atomate2.vasp.flows.mp import MPGGADoubleRelaxStaticMaker
        from atomate2.vasp.jobs.mp import MPGGAStaticMaker

        if self.workflow == "static":
            return _flow([MPGGAStaticMaker().make(structure)])
        flow: Flow = MPGGADoubleRelaxStaticMaker().make(structure)
        return flow

    def check_here(self) -> None:
        """Make sure that this machine can run VASP.

        Raises:
            ConfigError: What is missing.
        """
        from atomate2 import SETTINGS

        _check_here("VASP", "PMG_VASP_PSP_DIR", SETTINGS.VASP_CMD)


DftSettings = VaspSettings | Cp2kSettings


def document(settings: DftSettings) -> dict[str, Any]:
    """Return the settings as the database stores them; equal ones are one calculation."""
    return asdict(settings)


def _flow(jobs: Sequence[Job]) -> Flow:
    from jobflow import Flow

    return Flow(list(jobs), output=jobs[-1].output)


def _check_here(code: str, data: str, command: str) -> None:
    from pymatgen.core import SETTINGS

    if not SETTINGS.get(data):
        raise ConfigError(f"{code} runs here need {data}, which is not set; see docs/dft.md")
    program = shlex.split(command)[0]
    if which(os.path.expandvars(program)) is None:
        raise ConfigError(
            f"{code}'s command {program!r} is not found; set ATOMATE2_{code}_CMD, such as "
            f'ATOMATE2_{code}_CMD="mpirun -n 8 {_PROGRAMS[code]}"; see docs/dft.md'
        )


def require_atomate2() -> None:
    """Make sure that the optional extra is installed.

    Raises:
        ConfigError: It is not, and the command that installs it.
    """
    if find_spec("atomate2") is None or find_spec("jobflow") is None:
        raise ConfigError(
            "density-functional calculations need atomate2, which is not installed: "
            "`uv sync --extra dft`, or `pip install 'atomate2>=0.1.6,<0.2'`"
        )
