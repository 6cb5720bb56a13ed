"""Relaxation: every structure gets a result, whatever becomes of it or of its process."""

from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from relax import potentials, workers
from relax.cell_filter import CellAndAtoms
from relax.errors import RelaxError
from relax.optimize import RelaxConfig, Status, relax, relax_iter, standing_by
from relax.relaxation import _Ended, _Run, to_atoms
from relax.symmetrize import symmetrized
from relax.symmetry import dataset
from tests.crystals import make
from tests.relax_support import TOY_MODULE, add_entry_point


@pytest.fixture
def toy(tmp_path, monkeypatch):
    add_entry_point(monkeypatch, tmp_path, "toy", TOY_MODULE)
    yield "toy"
    potentials._sources.cache_clear()


def fcc(symbol, a=4.6):
    return Structure(Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]), [symbol],
                     [[0, 0, 0]])  # fmt: skip


def rocksalt(a):
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()


def overlapping():
    return Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.1, 0, 0]])


def not_finite():
    return Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [np.nan, 0, 0]])


def test_bad_structures_cost_nothing_but_themselves():
    polonium = Structure(Lattice.cubic(3.3), ["Po"], [[0, 0, 0]])
    disordered = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    flat = Structure(np.diag([4.0, 4.0, 1e-3]), ["Na"], [[0, 0, 0]])
    given = [overlapping(), not_finite(), polonium, disordered, flat, rocksalt(5.9)]
    config = RelaxConfig(workers=0)
    results = relax(given, "chgnet", config)
    assert [result.status for result in results] == [
        Status.OVERLAP,
        Status.NON_FINITE,
        Status.UNSUPPORTED_ELEMENT,
        Status.FAILED,
        Status.OVERLAP,
        Status.CONVERGED,
    ]
    assert results[0].reason == "two atoms 0.40 Å apart"
    assert "Po" in results[2].reason
    assert all(result.structure is None and result.reason for result in results[:5])
    good = results[5]
    assert good.structure.volume * 4 == pytest.approx(5.69**3, rel=0.02)
    assert good.energy_per_atom == pytest.approx(-3.668, abs=0.003)
    assert good.energy_per_atom < good.initial_energy_per_atom
    assert good.max_force < config.fmax and good.steps > 0 and good.reason == ""
    assert good.space_group_before == good.space_group_after == 225
    assert good.stress.shape == (3, 3) and abs(good.stress).max() < 0.02
    assert good.rmsd == pytest.approx(0, abs=1e-3)
    assert good.potential == potentials.find("chgnet")
    assert given[5] == rocksalt(5.9)


def test_atoms_find_their_places_and_the_displacement_is_measured():
    shifted = make("tetragonal rutile")
    shifted.translate_sites([0], [0, 0, 0.05])  # Ti off its place by 0.15 Å
    (result,) = relax([shifted], "chgnet", RelaxConfig(workers=0, fmax=0.01))
    assert result.status == Status.CONVERGED
    assert result.space_group_before != 136 and result.space_group_after == 136
    assert 0.03 < result.rmsd < 0.15


def test_the_step_limit_leaves_the_last_state():
    (result,) = relax([rocksalt(6.4)], "chgnet", RelaxConfig(workers=0, max_steps=2))
    assert result.status == Status.STEP_LIMIT and result.steps == 2
    assert "allow more" in result.reason
    assert result.energy_per_atom < result.initial_energy_per_atom
    assert result.structure.volume != pytest.approx(rocksalt(6.4).volume)


def test_left_handed_cells_relax_to_the_same_crystal():
    right = rocksalt(5.9)
    left = Structure(right.lattice.matrix[[1, 0, 2]], right.species, right.frac_coords)
    assert np.linalg.det(left.lattice.matrix) * np.linalg.det(right.lattice.matrix) < 0
    one, other = relax([left, right], "chgnet", RelaxConfig(workers=0))
    assert one.status == other.status == Status.CONVERGED
    assert one.energy_per_atom == pytest.approx(other.energy_per_atom, abs=1e-4)
    assert np.linalg.det(one.structure.lattice.matrix) * np.linalg.det(left.lattice.matrix) > 0


def test_what_a_model_does_wrong_is_the_structures_outcome(toy):
    config = RelaxConfig(workers=0, max_volume_ratio=1.2)
    raised, not_a_number, infinite, grown, fine = relax(
        [fcc("He"), fcc("Ne"), fcc("H"), fcc("Ar", 4.0), fcc("Ar")], toy, config
    )
    assert (raised.status, raised.reason) == (Status.FAILED, "RuntimeError: no helium, please")
    assert not_a_number.status == Status.NON_FINITE and not_a_number.structure is None
    assert infinite.status == Status.NON_FINITE and infinite.energy_per_atom is None
    assert grown.status == Status.EXPLODED and "times the input's" in grown.reason
    assert grown.structure is not None
    assert fine.status == Status.CONVERGED


def test_a_collapsing_and_a_stretching_cell_are_exploded_with_their_last_sane_state(toy):
    wide, thin = fcc("Ar", 5.6), fcc("Ar", 5.2).apply_strain([0, 0, 0.4], inplace=False)
    (collapsed,) = relax([wide], toy, RelaxConfig(workers=0, max_volume_ratio=1.1))
    assert collapsed.status == Status.EXPLODED and "times the input's" in collapsed.reason
    assert collapsed.structure.volume < wide.volume
    (stretched,) = relax([thin], toy, RelaxConfig(workers=0, max_stretch=1.05))
    assert stretched.status == Status.EXPLODED and "principal axes" in stretched.reason
    assert stretched.structure is not None


def test_a_cell_without_volume_or_with_nan_is_told_before_it_is_computed():
    given = [
        Structure([[4, 0, 0], [0, 4, 0], [4, 4, 1e-12]], ["Na"], [[0, 0, 0]]),
        Structure([[4, 0, 0], [0, np.nan, 0], [0, 0, 4]], ["Na"], [[0, 0, 0]]),
        Structure([[4, 0, 0], [0, np.inf, 0], [0, 0, 4]], ["Na"], [[0, 0, 0]]),
    ]
    results = relax(given, "chgnet", RelaxConfig(workers=0))
    statuses = [Status.OVERLAP, Status.NON_FINITE, Status.NON_FINITE]
    assert [result.status for result in results] == statuses


def test_one_atom_five_hundred_and_no_symmetry_all_relax(toy):
    large = fcc("Ar", 4.6) * (8, 8, 8)
    chain = Structure(
        Lattice.from_parameters(4.4, 4.6, 4.9, 81, 95, 103),
        ["Ar", "Ar"],
        [[0, 0, 0], [0.4, 0.5, 0.6]],
    )
    one, many, low = relax([fcc("Ar"), large, chain], toy, RelaxConfig(workers=0))
    assert one.status == many.status == low.status == Status.CONVERGED
    assert len(many.structure) == 512 and low.space_group_before in (1, 2)
    assert one.energy_per_atom == pytest.approx(many.energy_per_atom, abs=1e-3)


def test_a_saddle_that_symmetry_holds_is_told_from_a_minimum(toy):
    config = RelaxConfig(workers=0, keep_symmetry=True, fmax=0.005)  # it is soft, too
    simple = Structure(Lattice.cubic(3.3), ["Ar"], [[0, 0, 0]])
    minimum, saddle = relax([fcc("Ar", 4.4), simple], toy, config)
    assert minimum.status == Status.CONVERGED and minimum.reason == ""
    assert minimum.saddle_depth == pytest.approx(0, abs=1e-3)
    assert minimum.space_group_after == 225
    assert saddle.status == Status.SADDLE and "relax it freely" in saddle.reason
    assert saddle.saddle_depth > 0.01 and saddle.space_group_after == 221
    (free,) = relax([fcc("Ar", 4.4)], toy, RelaxConfig(workers=0))
    assert free.saddle_depth is None
    again = relax([simple], toy, config)[0]
    assert again.saddle_depth == saddle.saddle_depth  # the rattle is always the same


@pytest.mark.parametrize(
    ("limit", "status"),
    [({"max_steps": 1}, Status.STEP_LIMIT), ({"max_volume_ratio": 1.001}, Status.EXPLODED)],
)
def test_symmetry_let_go_without_an_end_is_no_minimum(toy, limit, status):
    (found,) = relax([fcc("Ar", 4.4)], toy, RelaxConfig(workers=0, keep_symmetry=True, fmax=0.005))
    assert found.status == Status.CONVERGED
    again = RelaxConfig(workers=0, keep_symmetry=True, fmax=0.005, **limit)
    (result,) = relax([found.structure], toy, again)
    assert result.status == status and result.saddle_depth is None
    assert result.reason.startswith("once its symmetry was let go: ")
    assert result.energy_per_atom == pytest.approx(found.energy_per_atom)
    assert result.space_group_after == 225


@pytest.mark.parametrize("name", ["tetragonal rutile", "trigonal Bi2Te3", "triclinic P1"])
def test_kept_symmetry_is_exact_from_a_distorted_start(name):
    structure = make(name)
    group = dataset(structure, 0.01).number
    random = np.random.default_rng(0)
    for site in range(len(structure)):
        structure.translate_sites([site], random.normal(scale=0.01, size=3), frac_coords=False)
    before = structure.copy()
    exact, symmetry = symmetrized(structure, 0.1)
    assert structure == before and dataset(exact, 1e-3).number == group
    forces = random.normal(size=(len(structure), 3))
    kept = symmetry.of_vectors(forces)
    assert kept == pytest.approx(symmetry.of_vectors(kept), abs=1e-9)
    (result,) = relax([structure], "chgnet", RelaxConfig(workers=0, keep_symmetry=True))
    assert result.status in (Status.CONVERGED, Status.SADDLE)
    assert dataset(result.structure, 1e-3).number == group


def test_forces_on_cell_and_atoms_are_the_slope_of_the_energy(toy):
    atoms = to_atoms(fcc("Ar", 4.4) * (2, 1, 1))
    random = np.random.default_rng(0)
    atoms.calc = potentials.load(toy).calculator()
    variables = CellAndAtoms(atoms)
    start = variables.get_positions() + random.normal(scale=0.1, size=(len(variables), 3))
    start[-3:] += start[-3:].T
    variables.set_positions(start)
    assert variables.get_positions() == pytest.approx(start, abs=1e-9)
    forces = variables.get_forces()
    way = random.normal(size=start.shape)
    way[-3:] += way[-3:].T
    energies = []
    for sign in (1, -1):
        variables.set_positions(start + sign * 1e-4 * way)
        energies.append(atoms.get_potential_energy())
    assert (forces * way).sum() == pytest.approx((energies[1] - energies[0]) / 2e-4, rel=1e-4)


def test_a_killed_or_late_worker_loses_only_its_structure(toy):
    given = [fcc("Ar"), fcc("Xe"), overlapping(), fcc("Kr"), fcc("Ar", 4.5), fcc("Xe"), fcc("Ar")]
    results = relax(given, toy, RelaxConfig(workers=2, timeout=8))
    statuses = [result.status for result in results]
    assert [statuses[index] for index in (0, 4, 6)] == [Status.CONVERGED] * 3
    assert statuses[2] == Status.OVERLAP
    for index in (1, 5):
        assert statuses[index] == Status.FAILED and "memory" in results[index].reason
    assert statuses[3] == Status.FAILED and results[3].reason == "not done after 8 s"
    assert results[0].energy_per_atom == pytest.approx(results[4].energy_per_atom, abs=1e-3)


def test_workers_do_as_the_calling_process_does(toy):
    given = [fcc("Ar", a) for a in (4.4, 4.6, 4.8)]
    alone = relax(given, toy, RelaxConfig(workers=0))
    spread = relax(given, toy, RelaxConfig(workers=2))
    assert [one.energy_per_atom for one in alone] == [one.energy_per_atom for one in spread]
    some = relax_iter(given, toy, RelaxConfig(workers=1))
    assert next(some)[0] in range(3)
    some.close()  # ends the worker, too
    assert relax([], toy) == []


def test_processes_that_stand_by_are_used_again_and_those_that_died_replaced(toy, monkeypatch):
    started, start = [], workers._start
    monkeypatch.setattr(workers, "_start", lambda *to: started.append(start(*to)) or started[-1])
    config = RelaxConfig(workers=1)
    argon = [fcc("Ar", 5.1)]
    with standing_by(toy, config):
        (first,) = relax(argon, toy, config)
        (looked_at,) = relax(argon, toy, replace(config, max_steps=0))
        assert (first.status, looked_at.status, len(started)) == ("converged", "step_limit", 1)
        started[0].process.kill()
        started[0].process.wait()
        (again,) = relax(argon, toy, config)
        assert again.energy_per_atom == first.energy_per_atom and len(started) == 2
        (lost,) = relax([fcc("Xe")], toy, config)  # which takes its process with it
        (again,) = relax(argon, toy, config)
        assert (lost.status, again.status, len(started)) == ("failed", "converged", 3)
    assert all(one.process.poll() is not None for one in started)
    for in_this_process in (RelaxConfig(workers=0), RelaxConfig(at_once=2)):
        with standing_by(toy, in_this_process):
            assert len(started) == 3


def test_a_potential_that_cannot_be_loaded_is_an_error_not_a_loss(toy):
    with pytest.raises(RelaxError, match="float64, not float32"):
        relax([rocksalt(5.7)], "toy@float32", RelaxConfig(workers=1))
    with pytest.raises(RelaxError, match="no potential"):
        relax([rocksalt(5.7)], "chgnot")


@pytest.mark.parametrize(
    "wrong",
    [
        {"fmax": 0},
        {"max_steps": -1},
        {"timeout": 0},
        {"max_volume_ratio": 1.0},
        {"max_stretch": 0.5},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(RelaxError, match=next(iter(wrong))):
        RelaxConfig(**wrong)


@pytest.mark.parametrize("where", [{"workers": 0}, {"workers": 1}, {"at_once": 2}])
def test_what_is_too_high_and_hardly_falls_is_given_up(toy, where):
    slow = {"fmax": 1e-12, "max_steps": 60}  # long after the energy has settled
    start = Structure(Lattice.cubic(4.4), ["Na", "Cl"], [[0, 0, 0], [0.45, 0.52, 0.5]])
    (whole,) = relax([start], toy, RelaxConfig(**slow, workers=0))
    low = whole.energy_per_atom

    def ended(limit, hopeless=0.3):
        config = RelaxConfig(**slow, **where, hopeless=hopeless)
        ((_, result),) = relax_iter([start], toy, config, lambda structure: limit)
        return result

    stopped = ended(low - 0.5)
    assert stopped.status == Status.HOPELESS and 10 <= stopped.steps < whole.steps
    lacks = stopped.energy_per_atom - low + 0.5
    assert stopped.reason.startswith(f"{lacks:.2f} eV/atom too high after {stopped.steps} steps")
    assert ended(low - 0.2).steps == whole.steps  # not so far above
    assert ended(low - 0.5, hopeless=None).steps == whole.steps
    assert ended(np.inf).steps == whole.steps  # no telling


def test_a_step_too_far_gives_nothing_up(toy):
    limit, run = -5.0, None
    run = _Run(fcc("Ar"), potentials.load(toy), RelaxConfig(hopeless=0.3), limit)
    for step, energy in enumerate([*np.linspace(-4.4, -4.8, 20), -1.0, -4.81]):
        run.steps = step
        run.lowest.append(min([energy, *run.lowest[-1:]]))
        run._give_up()


@pytest.mark.parametrize(
    ("lacks", "fell", "steps", "given_up"),
    [
        (0.5, 0.009, 30, True),
        (0.5, 0.011, 30, False),  # more than a fiftieth of what it lacks
        (0.29, 0.0, 30, False),  # not so far above
        (0.5, 0.0, 9, False),  # too early
        (0.5, 0.0, 10, True),
    ],
)
def test_what_is_given_up_is_far_above_its_limit_and_hardly_falls(
    toy, lacks, fell, steps, given_up
):
    potential = potentials.load(toy)
    run = _Run(fcc("Ar"), potential, RelaxConfig(hopeless=0.3), limit=-5.0)
    run.steps = steps
    run.lowest = [-5.0 + lacks + fell] * max(steps - 9, 0) + [-5.0 + lacks] * 10
    try:
        run._give_up()
    except _Ended as end:
        assert given_up and end.status == Status.HOPELESS
    else:
        assert not given_up
