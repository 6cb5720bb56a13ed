"""What a finished calculation says, checked before anything of it is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from db.dft import Result
from db.documents import structure_to_dict

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

STRETCH = 0.3
"""Largest relative change of any length in the cell that still counts as the same crystal."""
CP2K_SCHEME = "cp2k-pbe-gth"
OTHER_SCHEME = "vasp-other"
_CP2K = (None, CP2K_SCHEME, f"no verdict: no hull has energies of scheme {CP2K_SCHEME}")
_PBE = ("GGA", "GGA+U", "PBE", "PBE+U")
"""Names that releases of emmet-core gave to the runs that MP2020 corrects."""


class UnusableError(Exception):
    """A calculation that must not become a label; the message says why."""


def read(code: str, document: Mapping[str, Any], sent: Structure) -> Result:
    """Read atomate2's task document of the last job of a flow.

    Args:
        code: `vasp` or `cp2k`.
        document: The task document.
        sent: The crystal that the calculation was given.

    Raises:
        UnusableError: It did not converge, lacks a number, or is of another crystal.
    """
    try:
        return _read(code, document, sent)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnusableError(
            f"its task document cannot be read ({type(error).__name__}: {error})"
        ) from error


def _read(code: str, document: Mapping[str, Any], sent: Structure) -> Result:
    import numpy as np
    from pymatgen.core.structure import Structure

    state = str(document["state"])
    if state != "successful":
        raise UnusableError(f"it did not converge (its state is {state})")
    output = document["output"]
    structure = Structure.from_dict(output["structure"])
    check_same(sent, structure)
    if output["forces"] is None:
        raise UnusableError("it has no forces")
    forces = np.array(output["forces"], dtype=float)
    energy = float(output["energy"]) / len(structure)
    if forces.shape != (len(structure), 3) or not np.isfinite([energy, *forces.ravel()]).all():
        raise UnusableError("its energy or forces are not finite, or not one for each site")
    last = document["calcs_reversed"][0]
    correction, scheme, reason = _correction(structure, last) if code == "vasp" else _CP2K
    return Result(
        structure=structure_to_dict(structure),
        energy_per_atom=energy + (correction or 0.0),
        energy_scheme=scheme,
        correction_per_atom=correction,
        band_gap=output.get("bandgap"),
        max_force=float(np.linalg.norm(forces, axis=1).max()),
        forces=forces.tolist(),
        code_version=last.get("vasp_version") or last.get("cp2k_version"),
        reason=reason,
    )


def check_same(sent: Structure, returned: Structure) -> None:
    """Make sure that a returned structure can be the relaxed form of the one that was sent.

    Raises:
        UnusableError: Other atoms, numbers that are not finite, or a cell beyond the limit
            `STRETCH`. Turned axes do not count, only changes of lengths.
    """
    import numpy as np

    if returned.composition != sent.composition:
        raise UnusableError(
            f"another crystal came back: {returned.composition.formula}, not "
            f"{sent.composition.formula}"
        )
    deformation = np.linalg.solve(sent.lattice.matrix, returned.lattice.matrix)
    if not np.isfinite(returned.frac_coords).all() or not np.isfinite(deformation).all():
        raise UnusableError("the returned structure has coordinates that are not finite")
    stretches = np.linalg.svd(deformation, compute_uv=False)
    if not 1 - STRETCH <= stretches.min() <= stretches.max() <= 1 + STRETCH:
        raise UnusableError(
            f"another cell came back: lengths changed by factors of {stretches.min():.2f} to "
            f"{stretches.max():.2f}, the limit is {STRETCH:.0%}"
        )


def _correction(
    structure: Structure, last: Mapping[str, Any]
) -> tuple[float | None, str, str | None]:
    """Return MP2020's correction in eV/atom, the scheme of the corrected energy, and any doubt."""
    from relax.corrections import CORRECTED, RAW, correction, hubbard_u

    run_type = str(last["run_type"])
    used = {symbol: float(u) for symbol, u in (last["input"].get("hubbards") or {}).items() if u}
    wanted = hubbard_u(structure.composition)
    if run_type not in _PBE or used != wanted:
        found = f"{run_type} with U {used}" if used else run_type
        return (
            None,
            OTHER_SCHEME,
            f"no verdict: not PBE with the Materials Project's U {wanted}: {found}",
        )
    found_correction = correction(structure)
    if math.isnan(found_correction.per_atom):
        return None, RAW, found_correction.reason
    return found_correction.per_atom, CORRECTED, None
