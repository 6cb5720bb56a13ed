"""The registry of potentials, and CHGNet against its own calculator."""

import os
import re
import sys
import venv
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from flows.settings import CampaignConfig
from relax import contract, potential_ase, potential_chgnet, potentials
from relax.contract import CHECKS
from relax.errors import RelaxError
from relax.mace_model import unfit
from relax.optimize import RelaxConfig, relax
from relax.potential_mace import RELEASES, _mace_imported
from relax.relaxation import to_atoms
from tests.crystals import bent, make
from tests.mace_support import mace_of_two_heads, rock_salt, train_small_mace
from tests.relax_support import TOY_MODULE, add_entry_point

loaded = cache(potentials.load)
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def chgnet():
    return loaded("chgnet")


@pytest.fixture(scope="module")
def small_mace(tmp_path_factory):
    return train_small_mace(loaded("chgnet"), tmp_path_factory.mktemp("mace"))


CRYSTALS = [bent(make("tetragonal rutile")), bent(rock_salt())]


def write_toml(folder, file="emt.toml", **keys):
    """A file that names ASE's EMT, with other keys where they are given."""
    table = {
        "calculator": "ase.calculators.emt:EMT",
        "elements": ["Cu", "Au"],
        "dtype": "float64",
    } | keys
    path = folder / file
    path.write_text("\n".join(f"{key} = {_toml(value)}" for key, value in table.items()))
    return path


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return repr(value) if not isinstance(value, bool) else str(value).lower()


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
    for name in ("none.model", "none.toml"):
        with pytest.raises(RelaxError, match="no such file; check the path"):
            potentials.find(str(tmp_path / name))
    with pytest.raises(RelaxError, match="computes in float32, not float64; leave out @float64"):
        potentials.find(f"{write_toml(tmp_path, dtype='float32')}@float64")
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


def test_weights_that_cannot_be_downloaded_say_what_to_put_where(tmp_path, monkeypatch):
    def offline(key):
        raise OSError(f"no route to {key}\nat all")

    foundations = SimpleNamespace(download_mace_mp_checkpoint=offline)
    monkeypatch.setitem(sys.modules, "mace.calculators", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mace.calculators.foundations_models", foundations)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("mace-mp-0-medium", "medium"):  # the second is mace-torch's
        with pytest.raises(RelaxError) as told:
            potentials.find(name)
        assert str(told.value) == (
            "the weights of mace-mp-0-medium are not here and cannot be downloaded (OSError: no "
            "route to medium); put 2023-12-03-mace-128-L1_epoch-199.model of its authors at "
            f"{tmp_path}/mace/20231203mace128L1_epoch199model, or give its path as the potential"
        )


def test_two_names_of_the_same_weights_are_one_campaign():
    one, other = (
        CampaignConfig(potential=name, judge={"potential": "chgnet"}, seed=1)
        for name in ("medium@float32", "mace-mp-0-medium@float32")
    )
    assert one.idempotency_key() == other.idempotency_key()
    assert one.judge.potential == "chgnet" and potentials.canonical("any/path@2") == "any/path@2"


def test_a_package_adds_a_potential_by_an_entry_point(tmp_path, monkeypatch):
    add_entry_point(monkeypatch, tmp_path, "toy", TOY_MODULE)
    assert "toy" in {info.name for info in potentials.list_potentials()}
    energies = potentials.load("toy").energies_per_atom([rock_salt(), rock_salt(5.0)])
    assert np.isfinite(energies).all() and energies[0] != energies[1]


def test_a_package_adds_an_ase_calculator_by_one_call(tmp_path, monkeypatch):
    module = """
from ase.calculators.emt import EMT
from relax.potential_ase import ase_source

SOURCE = ase_source("ours", EMT, elements=frozenset({"Cu"}))
"""
    add_entry_point(monkeypatch, tmp_path, "ours", module)
    info = {info.name: info for info in potentials.list_potentials()}["ours"]
    assert info.energy_scheme == "self-consistent:ours" and info.available
    copper = Structure.from_spacegroup(225, Lattice.cubic(3.7), ["Cu"], [[0, 0, 0]])
    gold = Structure.from_spacegroup(225, Lattice.cubic(4.1), ["Au"], [[0, 0, 0]])
    one, other = relax([copper, gold], "ours", RelaxConfig(workers=1))
    assert one.status == "converged" and one.potential == info
    assert other.status == "unsupported_element"


def test_energies_do_not_depend_on_batch_cell_order_or_origin(chgnet):
    rutile = make("tetragonal rutile")
    shuffled = Structure.from_sites(list(reversed((rutile * (2, 1, 1)).sites)))
    shuffled.translate_sites(range(len(shuffled)), [0.13, 0.4, 0.77])
    given = [rock_salt(), rutile, shuffled, make("triclinic P1")]
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
    strange = rock_salt()
    strange.replace_species({"Na": "Fm"})  # no element of CHGNet's
    energies = chgnet.energies_per_atom([lonely, rock_salt(), broken, strange])
    assert np.isnan(energies).tolist() == [True, False, True, True]


@pytest.mark.parametrize("hand", [1, -1])
def test_energy_forces_and_stress_are_those_of_chgnets_own_calculator(chgnet, hand):
    from chgnet.model import CHGNet, CHGNetCalculator

    structure = bent(make("tetragonal rutile"))
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


@pytest.mark.parametrize("name", ["chgnet", "chgnet@float64", "chgnet-r2scan"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_chgnet_keeps_the_contract(name, check):
    check(loaded(name), CRYSTALS)


@pytest.mark.slow  # importing and training mace takes most of a minute
@pytest.mark.filterwarnings("ignore")  # of e3nn and mace
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_mace_keeps_the_contract(check, dtype, small_mace):
    check(loaded(f"{small_mace}@{dtype}"), [one for one in CRYSTALS if "Na" in one.symbol_set])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_ase_calculator_keeps_the_contract(tmp_path, check):
    copper = Structure.from_spacegroup(225, Lattice.cubic(3.7), ["Cu"], [[0, 0, 0]])
    copper[0] = "Au"
    check(potentials.load(str(write_toml(tmp_path))), [bent(copper)])


class Wrong(potentials.Potential):
    """CHGNet with a mistake in it."""

    def __init__(self, mistake):
        self.info = loaded("chgnet").info
        self.mistake = mistake

    def calculator(self):
        """CHGNet's, spoilt."""
        made = loaded("chgnet").calculator()
        right = made.calculate

        def calculate(atoms=None, properties=None, system_changes=()):
            right(atoms, properties, system_changes)
            self.mistake(made.results, atoms)

        made.calculate = calculate
        return made


def total_for_per_atom(results, atoms):
    results["energy"] /= len(atoms)


def wrong_sign(results, atoms):
    results["forces"] = -results["forces"]


def stress_in_gpa(results, atoms):
    results["stress"] = results["stress"] * 160.2


def forces_on_fewer_axes(results, atoms):
    results["forces"] = results["forces"][:, :2]


def bound_to_the_origin(results, atoms):
    results["energy"] += 0.05 * np.linalg.norm(atoms.positions[0])


def bound_to_an_axis(results, atoms):
    results["energy"] += 0.02 * atoms.cell.array[0, 0]


def moves_atoms(results, atoms):
    atoms.positions += 0.1


@pytest.mark.parametrize(
    ("mistake", "check", "told"),
    [
        (moves_atoms, contract.inputs_stay_as_they_are, "changes the atoms"),
        (total_for_per_atom, contract.shapes_and_units, "twice as large"),
        (forces_on_fewer_axes, contract.shapes_and_units, r"forces: shape \(6, 2\)"),
        (bound_to_the_origin, contract.origin_order_and_image_do_not_matter, "a shifted crystal"),
        (bound_to_an_axis, contract.forces_and_stress_turn_with_the_crystal, "a turned crystal"),
        (wrong_sign, contract.forces_are_the_slope_of_the_energy, "minus the force"),
        (stress_in_gpa, contract.stress_is_the_slope_of_the_energy, "stress under a strain"),
    ],
)
def test_the_contract_finds_mistakes(mistake, check, told):
    with pytest.raises(contract.ContractError, match=told):
        check(Wrong(mistake), CRYSTALS[:1])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda right: right[::-1], "in a batch"),
        (lambda right: right[1:], "3 of 4 crystals"),
        (lambda right: [(e, f, s / 2) for e, f, s in right], "stress in a batch"),
    ],
)
def test_the_contract_finds_mistakes_in_batches(wrong, told):
    class Careless(Wrong):
        def gradients(self, atoms):
            return wrong(loaded("chgnet").gradients(atoms))

    with pytest.raises(contract.ContractError, match=told):
        contract.gradients_are_those_of_the_calculator(Careless(lambda *_: None), CRYSTALS)


def test_a_batch_that_fails_is_halved_and_the_rest_is_computed(chgnet, monkeypatch):
    import torch

    right, tried = potential_chgnet._energy_per_atom, []

    def too_large(model, graphs):
        tried.append(len(graphs))
        if sum(len(graph.atomic_number) for graph in graphs) > 10:
            raise torch.OutOfMemoryError("no memory left on the device")
        return right(model, graphs)

    given = [rock_salt(), make("tetragonal rutile"), make("triclinic P1"), make("cubic spinel")]
    expected = chgnet.energies_per_atom(given)
    monkeypatch.setattr(potential_chgnet, "_energy_per_atom", too_large)
    energies = chgnet.energies_per_atom(given)
    assert energies[:3] == pytest.approx(expected[:3], abs=1e-5)
    assert np.isnan(energies[3]) and max(tried) > 1  # spinel alone has more than ten atoms


def test_precision_is_part_of_what_a_potential_is_stored_as():
    info = potentials.find("chgnet@float64")
    assert (info.name, info.dtype) == ("chgnet", "float64")
    single, double = (
        loaded(name).energies_per_atom(CRYSTALS) for name in ("chgnet", "chgnet@float64")
    )
    assert single == pytest.approx(double, abs=2e-5) and (single != double).any()


def test_any_ase_calculator_is_a_potential_by_a_toml_file(tmp_path):
    path = write_toml(tmp_path)
    info = potentials.find(str(path))
    assert info.name.startswith("emt-") and info.energy_scheme == f"self-consistent:{info.name}"
    assert info.elements == {"Cu", "Au"} and info.dtype == "float64"
    other = potentials.find(str(write_toml(tmp_path, arguments={"asap_cutoff": True})))
    assert other.name != info.name  # other settings, other energies
    scheme = potentials.find(str(write_toml(tmp_path, energy_scheme="pbe-u-raw")))
    assert scheme.energy_scheme == "pbe-u-raw"


def test_a_method_may_make_the_calculator_and_is_given_the_path_of_the_weights(
    tmp_path, monkeypatch
):
    (tmp_path / "has_a_factory.py").write_text(
        "from pathlib import Path\n"
        "from ase.calculators.emt import EMT\n"
        "class Made(EMT):\n"
        "    @classmethod\n"
        "    def of(cls, files):\n"
        "        assert Path(files['one'][0]).read_text() == 'weights'\n"
        "        return cls()\n"
    )
    (tmp_path / "my.pt").write_text("weights")
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"weights": "my.pt", "arguments": {"files": {"one": ["{weights}"]}}}
    path = write_toml(tmp_path, calculator="has_a_factory:Made.of", **keys)
    assert type(potentials.load(str(path)).calculator()).__name__ == "Made"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"calc": "ase:EMT"}, "calc: no such key; the keys are calculator, arguments"),
        ({"calculator": "EMT"}, 'write "module:name"'),
        ({"elements": ["Xx"]}, "elements: Xx are none"),
        ({"elements": "Cu"}, "elements: list, not 'Cu'"),
        ({"calculator": "no.such:EMT"}, "No module named 'no'"),
        ({"calculator": "ase.calculators.emt:NONE"}, "cannot make ase.calculators.emt:NONE"),
        ({"weights": "none.pt", "weights_from": "its authors"}, "none.pt, from its authors"),
        ({"python": "none/bin/python"}, "is no file; make its environment"),
    ],
)
def test_a_wrong_toml_file_is_told_in_one_line(tmp_path, keys, told):
    path = write_toml(tmp_path, **keys)
    with pytest.raises(RelaxError, match=re.escape(told)) as raised:
        potentials.load(str(path))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_potential_of_another_environment_computes_and_relaxes_there(tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "ours.pth").write_text("\n".join(one for one in sys.path if "site-packages" in one))
    (tmp_path / "files").mkdir()
    path = write_toml(tmp_path / "files", python="../env/bin/python")
    copper = Structure.from_spacegroup(225, Lattice.cubic(3.7), ["Cu"], [[0, 0, 0]])
    potential = potentials.load(str(path))
    here = potentials.load(str(write_toml(tmp_path, file="emt_here.toml")))
    assert potential.energies_per_atom([copper]) == here.energies_per_atom([copper])
    with pytest.raises(RelaxError, match="environment of its own"):
        potential.calculator()
    (result,) = relax([copper], str(path), RelaxConfig(workers=0))
    assert result.status == "converged" and result.structure.volume < copper.volume


def test_sevennet_says_why_it_cannot_run_here():
    with pytest.raises(RelaxError, match=r"needs e3nn >= 0.5, mace-torch 0.3.16 needs e3nn 0.4.4"):
        potentials.load("sevennet-0")


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

    several_heads = {"mh-0", "mh-1"}  # given by path, with the head that is meant
    assert {release.key for release in RELEASES.values()} == mace_mp_urls.keys() - several_heads
    for release in RELEASES.values():
        assert mace_mp_urls[release.key].endswith(f"/{release.file}")
        assert release.path.parent == get_cache_dir()


@pytest.mark.slow  # the same
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_mace_weights_relaxes(small_mace):
    info = potentials.find(str(small_mace), energy_scheme="pbe-u-raw")
    assert info.energy_scheme == "pbe-u-raw" and info.name.startswith("tiny-")
    potential = potentials.load(str(small_mace))
    assert potential.info.elements == {"Na", "Cl"}
    (result,) = relax([bent(rock_salt(5.6))], potential, RelaxConfig(fmax=0.005))
    assert result.status == "converged" and result.steps > 0
    assert result.energy_per_atom < result.initial_energy_per_atom


@pytest.mark.slow  # the same
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "within"), [("float64", 1e-9), ("float32", 1e-4)])
def test_mace_gives_the_numbers_of_its_own_calculator(small_mace, dtype, within):
    ours = loaded(f"{small_mace}@{dtype}").calculator()
    with _mace_imported():
        from mace.calculators import MACECalculator

        theirs = MACECalculator(model_paths=str(small_mace), device="cpu", default_dtype="float64")
    for a in (5.2, 5.7, 6.4):
        atoms = to_atoms(bent(rock_salt(a)))
        numbers = []
        for calculator in (ours, theirs):
            atoms.calc = calculator
            numbers.append(
                [atoms.get_potential_energy(), *atoms.get_forces().ravel(), *atoms.get_stress()]
            )
        assert numbers[0] == pytest.approx(numbers[1], abs=within)


@pytest.mark.slow  # it compiles
@pytest.mark.filterwarnings("ignore")
def test_mace_may_be_compiled_by_a_file(small_mace, tmp_path):
    arguments = {"model_paths": "{weights}", "default_dtype": "float64", "compile_mode": "default"}
    keys = {"weights": str(small_mace), "arguments": arguments, "elements": ["Na", "Cl"]}
    compiled = write_toml(tmp_path, calculator="mace.calculators:MACECalculator", **keys)
    crystals = [bent(rock_salt(a)) for a in (5.4, 5.9)]
    config = RelaxConfig(fmax=0.005, workers=1)
    ends = [relax(crystals, name, config) for name in (str(compiled), str(small_mace))]
    for one, other in zip(*ends, strict=True):
        assert one.status == other.status == "converged"
        assert one.energy_per_atom == pytest.approx(other.energy_per_atom, abs=1e-5)


@pytest.mark.parametrize("name", ["orb", "mattersim", "fairchem", "sevennet", "mace-compiled"])
def test_the_examples_are_files_of_potentials(name):
    table = potential_ase._read(EXAMPLES / f"{name}.toml")
    assert table.weights and ":" in table.calculator


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("PolarMACE", {}, "a PolarMACE"),
        ("ScaleShiftMACE", {"joint_embedding": 1}, "asks for charges, spins or fields"),
        ("ScaleShiftMACE", {"heads": ["pbe", "r2scan"]}, "of its heads pbe, r2scan name one"),
        ("ScaleShiftMACE", {"heads": ["pbe", "Default"]}, ""),
        ("MACE", {}, ""),
    ],
)
def test_a_mace_of_something_else_is_told_apart(kind, fields, told):
    model = type(kind, (), fields)()
    assert told in unfit(model) and bool(unfit(model)) == bool(told)


@pytest.mark.filterwarnings("ignore")  # of e3nn and torch
def test_one_of_several_heads_is_asked_for_by_its_name(tmp_path):
    file = mace_of_two_heads(tmp_path)
    atoms = to_atoms(bent(rock_salt(5.6)))
    with _mace_imported():
        from mace.calculators import MACECalculator

        theirs = {
            head: MACECalculator(str(file), device="cpu", default_dtype="float64", head=head)
            for head in ("pbe", "r2scan")
        }
    energies = {}
    for head, calculator in theirs.items():
        potential = potentials.load(f"{file}#{head}")
        assert re.fullmatch(rf"two-{head}-[0-9a-f]{{8}}", potential.info.name)
        (ours,) = potential.gradients([atoms])
        atoms.calc = calculator
        assert ours[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert ours[1] == pytest.approx(atoms.get_forces(), abs=1e-9)
        energies[head] = ours[0]
    assert energies["pbe"] != pytest.approx(energies["r2scan"])
    for wrong in (str(file), f"{file}#scan"):
        with pytest.raises(RelaxError, match=r"of its heads pbe, r2scan name one as FILE\.model#"):
            potentials.load(wrong)
    numbered = tmp_path / "#1.model"
    numbered.write_bytes(file.read_bytes())
    assert potentials.load(f"{numbered}#pbe").info.name.startswith("#1-pbe-")
    with pytest.raises(RelaxError, match="of its heads"):  # a file, not a head
        potentials.load(str(numbered))
    with pytest.raises(RelaxError, match="#pbe is for MACE weights"):
        potentials.find(f"{write_toml(tmp_path)}#pbe")
