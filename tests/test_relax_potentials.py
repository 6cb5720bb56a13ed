"""The registry of potentials, and CHGNet against its own calculator."""

import os
import warnings

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from relax import potentials
from relax.errors import RelaxError
from relax.optimize import RelaxConfig, relax
from relax.potential_mace import RELEASES, _mace_imported
from tests.crystals import make
from tests.relax_support import TOY_MODULE, add_entry_point


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet")


def rocksalt(a=5.69):
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()


def distorted():
    structure = make("tetragonal rutile") * (1, 1, 2)
    structure.perturb(0.2)
    return structure.apply_strain([0.02, -0.01, 0.03], inplace=False)


def test_listing_tells_what_is_here_and_how_to_get_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = {info.name: info for info in potentials.list_potentials()}
    assert listed["chgnet"].available and listed["chgnet"].energy_scheme == "mp2020"
    mace = listed["mace-mpa-0-medium"]
    assert not mace.available and mace.energy_scheme == "pbe-u-raw"
    assert str(tmp_path / "mace" / "macempa0mediummodel") in mace.how_to_get
    assert listed["mace-omat-0-small"].energy_scheme == "omat24-pbe"
    assert listed["mace-matpes-r2scan-0"].energy_scheme == "matpes-r2scan"
    assert "Po" not in mace.elements and {"H", "Pu"} <= mace.elements


def test_unknown_names_and_paths_say_what_there_is(tmp_path):
    with pytest.raises(RelaxError, match=r"no potential 'chgnot'; there are chgnet"):
        potentials.find("chgnot")
    with pytest.raises(RelaxError, match="no such file of weights"):
        potentials.find(str(tmp_path / "none.model"))
    with pytest.raises(RelaxError, match="float32, not float64"):
        potentials.load("chgnet", dtype="float64")
    with pytest.raises(RelaxError, match="of scheme mp2020, not pbe-u-raw"):
        potentials.load("chgnet", energy_scheme="pbe-u-raw")


def test_a_file_of_weights_gets_a_scheme_of_its_own_unless_one_is_stated(tmp_path):
    path = tmp_path / "ours.model"
    path.write_bytes(b"weights")
    info = potentials.find(str(path))
    assert info.name.startswith("ours-") and info.weights_sha256.startswith(info.name[5:])
    assert info.energy_scheme == f"self-consistent:{info.name}"
    assert potentials.find(str(path), energy_scheme="pbe-u-raw").energy_scheme == "pbe-u-raw"


def test_cached_weights_that_are_not_the_published_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = RELEASES["mace-mpa-0-medium"].path
    path.parent.mkdir()
    path.write_bytes(b"not the weights")
    with pytest.raises(RelaxError, match="is not mace-mpa-0-medium: its sha256 is"):
        potentials.load("mace-mpa-0-medium")


def test_a_package_adds_a_potential_by_an_entry_point(tmp_path, monkeypatch):
    add_entry_point(monkeypatch, tmp_path, "toy", TOY_MODULE)
    assert "toy" in {info.name for info in potentials.list_potentials()}
    energies = potentials.load("toy").energies_per_atom([rocksalt(), rocksalt(5.0)])
    assert np.isfinite(energies).all() and energies[0] != energies[1]


def test_energies_do_not_depend_on_batch_cell_order_or_origin(chgnet):
    rutile = make("tetragonal rutile")
    shuffled = Structure.from_sites(list(reversed((rutile * (2, 1, 1)).sites)))
    shuffled.translate_sites(range(len(shuffled)), [0.13, 0.4, 0.77])
    given = [rocksalt(), rutile, shuffled, make("triclinic P1")]
    before = [structure.copy() for structure in given]
    together = chgnet.energies_per_atom(given)
    alone = [chgnet.energies_per_atom([structure])[0] for structure in given]
    assert together[0] == pytest.approx(-3.667, abs=0.003)  # the package's own figure
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[1] == pytest.approx(together[2], abs=1e-5)
    assert given == before


def test_a_structure_without_an_energy_costs_only_itself(chgnet):
    lonely = Structure(Lattice.cubic(9), ["Na"], [[0, 0, 0]])
    broken = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [np.nan, 0, 0]])
    strange = rocksalt()
    strange.replace_species({"Na": "Fm"})  # no element of CHGNet's
    energies = chgnet.energies_per_atom([lonely, rocksalt(), broken, strange])
    assert np.isnan(energies).tolist() == [True, False, True, True]


@pytest.mark.parametrize("hand", [1, -1])
def test_energy_forces_and_stress_are_those_of_chgnets_own_calculator(chgnet, hand):
    from chgnet.model import CHGNet, CHGNetCalculator

    structure = distorted()
    structure = Structure(
        hand * structure.lattice.matrix, structure.species, hand * structure.frac_coords
    )
    ours = AseAtomsAdaptor.get_atoms(structure)
    theirs = ours.copy()
    ours.calc = chgnet.calculator()
    theirs.calc = CHGNetCalculator(
        CHGNet.load(use_device="cpu", verbose=False), use_device="cpu", on_isolated_atoms="error"
    )
    assert ours.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), abs=1e-4)
    assert ours.get_forces() == pytest.approx(theirs.get_forces(), abs=1e-4)
    # theirs has the wrong sign for a left-handed cell, whose volume it takes as negative
    with_sign = hand * theirs.get_stress()
    assert ours.get_stress() == pytest.approx(with_sign, abs=1e-5)


def test_forces_are_the_gradient_of_the_energy(chgnet):
    atoms = AseAtomsAdaptor.get_atoms(distorted())
    atoms.calc = chgnet.calculator()
    forces = atoms.get_forces()
    step = 0.01
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert forces[2, 1] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=0.02)


@pytest.mark.slow  # importing mace takes most of a minute where the machine is busy
def test_mace_names_agree_with_its_package_and_leave_the_process_safe(tmp_path, monkeypatch):
    junk = tmp_path / "junk.model"
    junk.write_bytes(b"junk")
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    with pytest.raises(RelaxError, match="no MACE weights"):
        potentials.load(str(junk))
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    with warnings.catch_warnings(), _mace_imported():
        warnings.simplefilter("ignore")  # e3nn and mace read their own tables in old ways
        from mace.calculators.foundations_models import mace_mp_urls
        from mace.tools.utils import get_cache_dir
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ

    for release in RELEASES.values():
        assert mace_mp_urls[release.key].endswith(f"/{release.file}")
        assert release.path.parent == get_cache_dir()


@pytest.mark.slow  # the same
def test_a_file_of_mace_weights_gives_energies_and_relaxes(tmp_path):
    with warnings.catch_warnings(), _mace_imported():
        warnings.simplefilter("ignore")
        import torch
        from e3nn import o3
        from mace import modules

        torch.manual_seed(0)
        block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        model = modules.ScaleShiftMACE(
            r_max=4.0,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=1,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=2,
            hidden_irreps=o3.Irreps("8x0e"),
            MLP_irreps=o3.Irreps("4x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.array([-1.0, -2.0]),
            avg_num_neighbors=8,
            atomic_numbers=[11, 17],
            correlation=2,
            radial_type="bessel",
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        ).double()
        path = tmp_path / "tiny.model"
        torch.save(model, path)
        potential = potentials.load(str(path), energy_scheme="pbe-u-raw")
        assert potential.info.elements == {"Na", "Cl"}
        assert potential.info.energy_scheme == "pbe-u-raw"
        single = potential.energies_per_atom([rocksalt()])[0]
        double = potential.energies_per_atom([rocksalt() * (2, 1, 1)])[0]
        assert single == pytest.approx(double, abs=1e-6) and np.isfinite(single)
        (result,) = relax([rocksalt()], potential, RelaxConfig(max_steps=3))
    assert result.steps > 0 or result.status == "converged"
    assert result.energy_per_atom <= result.initial_energy_per_atom + 1e-6
