"""Outputs of VASP written by hand, for atomate2's own testing module to replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pymatgen.core.structure import Structure
from pymatgen.io.vasp.inputs import Poscar

VERSION = "5.4.4"


def _rows(name: str, rows: Sequence[Sequence[float]]) -> str:
    lines = "".join(f"<v>{' '.join(f'{x:.8f}' for x in row)}</v>\n" for row in rows)
    return f'<varray name="{name}">\n{lines}</varray>\n'


def _structure(structure: Structure, name: str = "") -> str:
    label = f' name="{name}"' if name else ""
    return (
        f"<structure{label}>\n<crystal>\n{_rows('basis', structure.lattice.matrix)}"
        f'<i name="volume">{structure.volume:.8f}</i>\n'
        f"{_rows('rec_basis', structure.lattice.reciprocal_lattice_crystallographic.matrix)}"
        f"</crystal>\n{_rows('positions', structure.frac_coords)}</structure>\n"
    )


def _atoms(structure: Structure) -> str:
    symbols = [site.specie.symbol for site in structure]
    types = list(dict.fromkeys(symbols))
    atoms = "".join(f"<rc><c>{s}</c><c>{types.index(s) + 1}</c></rc>\n" for s in symbols)
    kinds = "".join(
        f"<rc><c>{symbols.count(s)}</c><c>{s}</c><c>1.0</c><c>6.0</c><c>PAW_PBE {s} 01Jan2000</c>"
        "</rc>\n"
        for s in types
    )
    return (
        f"<atominfo>\n<atoms>{len(symbols)}</atoms>\n<types>{len(types)}</types>\n"
        '<array name="atoms">\n<dimension dim="1">ion</dimension>\n'
        '<field type="string">element</field>\n<field type="int">atomtype</field>\n'
        f"<set>\n{atoms}</set>\n</array>\n"
        '<array name="atomtypes">\n<dimension dim="1">type</dimension>\n'
        '<field type="int">atomspertype</field>\n<field type="string">element</field>\n'
        "<field>mass</field>\n<field>valence</field>\n"
        f'<field type="string">pseudopotential</field>\n<set>\n{kinds}</set>\n</array>\n'
        "</atominfo>\n"
    )


def _parameters(u: Sequence[float], steps: int) -> str:
    values = " ".join(f"{value:.2f}" for value in u)
    ldau = (
        f'<i type="logical" name="LDAU">T</i>\n<i type="int" name="LDAUTYPE">2</i>\n'
        f'<v type="int" name="LDAUL">{" ".join("2" if value else "0" for value in u)}</v>\n'
        f'<v name="LDAUU">{values}</v>\n<v name="LDAUJ">{" ".join("0.00" for _ in u)}</v>\n'
        if any(u)
        else '<i type="logical" name="LDAU">F</i>\n'
    )
    return (
        '<i name="ENMAX">520.0</i>\n<i type="int" name="ISPIN">1</i>\n'
        f'<i type="int" name="NSW">{steps}</i>\n<i type="int" name="IBRION">2</i>\n'
        '<i type="int" name="ISIF">3</i>\n<i type="int" name="NELM">100</i>\n'
        '<i type="int" name="ISMEAR">-5</i>\n<i name="SIGMA">0.05</i>\n'
        '<i type="string" name="GGA">PE</i>\n<i type="string" name="METAGGA">--</i>\n'
        '<i type="logical" name="LHFCALC">F</i>\n<i name="NELECT">12.0</i>\n'
        f'<i type="int" name="LORBIT">11</i>\n<i type="int" name="NBANDS">8</i>\n{ldau}'
    )


def vasprun(
    structure: Structure,
    energy: float,
    forces: Sequence[Sequence[float]],
    *,
    gap: float,
    u: Sequence[float],
    steps: int,
) -> str:
    """Write a vasprun.xml of one converged ionic step.

    Args:
        structure: Before and after it.
        energy: Of the cell, eV.
        forces: eV/Å, shape (nsites, 3).
        gap: Between the sixth and the seventh band at both k-points, eV.
        u: Hubbard U of each kind of atom, eV.
        steps: NSW.
    """
    energies = "".join(
        f'<i name="{name}">{energy:.8f}</i>\n'
        for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    )
    bands = [*(-6.0 + band for band in range(6)), -1.0 + gap, gap]
    points = "".join(
        f'<set comment="kpoint {point}">\n'
        + "".join(f"<r>{e:.4f} {1.0 if n < 6 else 0.0:.4f}</r>\n" for n, e in enumerate(bands))
        + "</set>\n"
        for point in (1, 2)
    )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator>\n'
        '<i name="program" type="string">vasp</i>\n'
        f'<i name="version" type="string">{VERSION}</i>\n<i name="subversion" type="string"></i>\n'
        '<i name="platform" type="string">test</i>\n<i name="date" type="string">2026 01 01</i>\n'
        '<i name="time" type="string">00:00:00</i>\n</generator>\n'
        f"<incar>\n{_parameters(u, steps)}</incar>\n"
        '<kpoints>\n<generation param="Gamma">\n<v type="int" name="divisions">2 1 1</v>\n'
        '<v name="usershift">0 0 0</v>\n</generation>\n'
        f"{_rows('kpointlist', [[0, 0, 0], [0.5, 0, 0]])}{_rows('weights', [[0.5], [0.5]])}"
        f"</kpoints>\n<parameters>\n{_parameters(u, steps)}</parameters>\n{_atoms(structure)}"
        f"{_structure(structure, 'initialpos')}<calculation>\n<scstep>\n"
        f'<time name="total">1.0 1.0</time>\n<energy>\n{energies}</energy>\n</scstep>\n'
        f"{_structure(structure)}{_rows('forces', forces)}"
        f"{_rows('stress', [[0.0] * 3] * 3)}<energy>\n{energies}</energy>\n"
        '<eigenvalues>\n<array>\n<dimension dim="1">band</dimension>\n'
        '<dimension dim="2">kpoint</dimension>\n<dimension dim="3">spin</dimension>\n'
        "<field>eigene</field>\n<field>occ</field>\n"
        f'<set>\n<set comment="spin 1">\n{points}</set>\n</set>\n</array>\n</eigenvalues>\n'
        '<dos>\n<i name="efermi">-0.9</i>\n<total>\n<array>\n'
        '<dimension dim="1">gridpoints</dimension>\n<dimension dim="2">spin</dimension>\n'
        "<field>energy</field>\n<field>total</field>\n<field>integrated</field>\n"
        '<set>\n<set comment="spin 1">\n<r>-1.0 1.0 6.0</r>\n<r>4.0 0.0 12.0</r>\n</set>\n</set>\n'
        "</array>\n</total>\n</dos>\n</calculation>\n"
        f"{_structure(structure, 'finalpos')}</modeling>\n"
    )


OUTCAR = f""" vasp.{VERSION} test
 running on    1 total cores
   k-points           NKPTS =      2   number of bands    NBANDS=      8
   total plane-waves  NPLWV =   1000
   IBRION =      2    ionic relax: 0-MD 1-quasi-New 2-CG
   NELECT =      12.0000    total number of electrons
 E-fermi :  -0.9000     XC(G=0):  -9.0000     alpha+bet : -9.0000
  free  energy   TOTEN  =       {{energy:.8f}} eV
  energy  without entropy=      {{energy:.8f}}  energy(sigma->0) =      {{energy:.8f}}
 number of electron      12.0000000 magnetization
                  Total CPU time used (sec):        1.000
                            User time (sec):        1.000
                          System time (sec):        0.000
                         Elapsed time (sec):        1.000
                   Maximum memory used (kb):        1000.
                   Average memory used (kb):           0.
"""


def write_job(
    folder: Path,
    incar: str,
    potcars: Sequence[str],
    sent: Structure,
    returned: Structure,
    energy: float,
    forces: Sequence[Sequence[float]],
    *,
    gap: float,
    u: Sequence[float],
    steps: int,
) -> None:
    """Write what one job must be given (`inputs`), and what it leaves (`outputs`)."""
    inputs, outputs = folder / "inputs", folder / "outputs"
    for place, structure in ((inputs, sent), (outputs, returned)):
        place.mkdir(parents=True)
        (place / "INCAR").write_text(incar)
        (place / "POTCAR.spec").write_text("\n".join(potcars))
        Poscar(sent).write_file(place / "POSCAR")
        (place / "KPOINTS").write_text("test\n0\nGamma\n2 1 1\n")
        Poscar(structure).write_file(place / "CONTCAR")
    (outputs / "vasprun.xml").write_text(
        vasprun(returned, energy, forces, gap=gap, u=u, steps=steps)
    )
    (outputs / "OUTCAR").write_text(OUTCAR.format(energy=energy))
    for name in ("WAVECAR", "CHGCAR"):
        (outputs / name).touch()
