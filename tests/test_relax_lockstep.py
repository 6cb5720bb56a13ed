"""Relaxations in step end as they do one by one, and one that fails costs nothing but itself."""

import threading
import time
from itertools import count

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from relax import potentials, relaxation
from relax.errors import RelaxError
from relax.optimize import RelaxConfig, relax, relax_iter
from tests.crystals import bent, make
from tests.relax_support import TOY_MODULE, add_entry_point

ALONE = RelaxConfig(workers=0)
IN_STEP = RelaxConfig(at_once=3)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    add_entry_point(monkeypatch, tmp_path, "toy", TOY_MODULE)
    return potentials.load("toy")


def salt(a, cation="Na"):
    return Structure(Lattice.cubic(a), [cation, "Cl"], [[0, 0, 0], [0.45, 0.52, 0.5]])


def assert_alike(some, others):
    for one, other in zip(some, others, strict=True):
        assert (one.status, one.steps) == (other.status, other.steps)
        if one.energy_per_atom is not None:
            assert one.energy_per_atom == pytest.approx(other.energy_per_atom, abs=1e-9)
            assert one.structure.lattice.matrix == pytest.approx(other.structure.lattice.matrix)


def test_each_ends_as_it_does_alone(toy):
    given = [salt(a) for a in np.linspace(3.4, 4.6, 7)]
    ends = relax(given, "toy", IN_STEP)
    assert {str(end.status) for end in ends} == {"converged"}
    assert len({end.steps for end in ends}) > 1  # they do not end together
    assert_alike(ends, relax(given, "toy", ALONE))


def test_chgnet_relaxes_in_step_as_alone():
    given = [bent(make("tetragonal rutile")), bent(make("orthorhombic Pnma"))]
    config = RelaxConfig(max_steps=4, at_once=2)
    for one, other in zip(
        relax(given, "chgnet", config),
        relax(given, "chgnet", RelaxConfig(max_steps=4, workers=0)),
        strict=True,
    ):
        assert one.energy_per_atom == pytest.approx(other.energy_per_atom, abs=1e-6)
        assert one.max_force == pytest.approx(other.max_force, abs=1e-4)


def test_batches_are_as_large_as_they_may_be(toy, monkeypatch):
    sizes = []
    right = type(toy).gradients
    monkeypatch.setattr(
        type(toy), "gradients", lambda self, atoms: sizes.append(len(atoms)) or right(self, atoms)
    )
    relax([salt(a) for a in np.linspace(3.4, 4.6, 7)], toy, IN_STEP)
    # one that is done makes place for the next, and only at the end there is nobody to fill in
    assert max(sizes) == 3 and sizes[: sizes.index(2) if 2 in sizes else -1].count(3) > 5
    assert sizes == sorted(sizes, reverse=True)


def test_the_next_is_drawn_when_there_is_place_and_by_the_caller(toy):
    drawn = []

    def endless():
        for index in count():
            drawn.append(threading.current_thread())
            yield salt(3.5 + 0.1 * (index % 9))

    results = relax_iter(endless(), toy, IN_STEP)
    before = threading.active_count()
    next(results)
    assert len(drawn) <= 4 and set(drawn) == {threading.current_thread()}
    results.close()
    assert threading.active_count() <= before  # nobody is left waiting


def test_one_that_fails_costs_only_itself(toy):
    given = [salt(3.8), salt(3.8, "He"), salt(4.2), salt(3.8, "Ne"), salt(0.4), salt(4.0)]
    ends = relax(given, "toy", IN_STEP)
    assert [str(end.status) for end in ends] == [
        "converged", "failed", "converged", "non_finite", "overlap", "converged",
    ]  # fmt: skip
    assert ends[1].reason == "RuntimeError: no helium, please"
    assert_alike([ends[i] for i in (0, 2, 5)], relax([given[i] for i in (0, 2, 5)], "toy", ALONE))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_without_memory_batches_get_smaller_and_all_are_answered(toy, monkeypatch, error):
    sizes, room = [], 3
    right = type(toy).gradients

    def as_many_as_fit(self, atoms):
        nonlocal room
        sizes.append(len(atoms))
        if len(sizes) > 8:
            room = 1  # and then there is less
        if len(atoms) > room:
            raise error
        return right(self, atoms)

    monkeypatch.setattr(type(toy), "gradients", as_many_as_fit)
    given = [salt(a) for a in np.linspace(3.4, 4.6, 6)]
    ends = relax(given, toy, RelaxConfig(at_once=6))
    assert {str(end.status) for end in ends} == {"converged"}
    assert sizes[:3] == [6, 3, 3] and 6 not in sizes[1:] and 1 in sizes
    monkeypatch.setattr(type(toy), "gradients", right)
    assert_alike(ends, relax(given, toy, ALONE))


def test_one_too_large_does_not_leave_the_others_one_by_one_for_ever(toy, monkeypatch):
    sizes = []
    right = type(toy).gradients

    def without_the_large(self, atoms):
        sizes.append(len(atoms))
        if any(len(one) > 2 for one in atoms):
            raise MemoryError
        return right(self, atoms)

    monkeypatch.setattr(type(toy), "gradients", without_the_large)
    given = [salt(3.8) * (2, 1, 1), *(salt(a) for a in np.linspace(3.4, 4.6, 9))]
    ends = relax(given, toy, RelaxConfig(at_once=4))
    assert [str(end.status) for end in ends] == ["failed", *["converged"] * 9]
    assert sizes[:4] == [4, 2, 1, 1] and 4 in sizes[4:]


def test_an_error_of_ours_costs_only_its_structure(toy, monkeypatch):
    def broken(given, relaxed):
        raise ZeroDivisionError("no sites")

    monkeypatch.setattr(relaxation, "_rmsd", broken)
    for config in (ALONE, IN_STEP):
        (end,) = relax([salt(3.8)], toy, config)
        assert (str(end.status), end.reason) == ("failed", "ZeroDivisionError: no sites")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_ended_costs_only_its_structure(toy, monkeypatch):
    def panics(given, relaxed):
        raise BaseException("panic")

    monkeypatch.setattr(relaxation, "_rmsd", panics)
    (end,) = relax([salt(3.8)], toy, IN_STEP)
    assert (str(end.status), end.reason) == ("failed", "its thread was ended")


def test_an_interrupt_while_batches_are_answered_leaves_nobody_waiting(toy, monkeypatch):
    calls = []
    right = type(toy).gradients

    def interrupted(self, atoms):
        calls.append(len(atoms))
        if len(calls) == 1:
            raise MemoryError  # now there are two batches to answer
        if len(calls) == 5:
            raise KeyboardInterrupt
        return right(self, atoms)

    monkeypatch.setattr(type(toy), "gradients", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        relax([salt(a) for a in np.linspace(3.4, 4.6, 6)], toy, RelaxConfig(at_once=6))
    assert threading.active_count() == before


def test_the_time_of_a_batch_is_shared(toy, monkeypatch):
    right = type(toy).gradients

    def slow(self, atoms):
        time.sleep(0.05)
        return right(self, atoms)

    monkeypatch.setattr(type(toy), "gradients", slow)
    began = time.perf_counter()
    ends = relax([salt(a) for a in np.linspace(3.4, 4.6, 6)], toy, RelaxConfig(at_once=6))
    took = time.perf_counter() - began
    assert 0.05 * max(end.steps for end in ends) < sum(end.seconds for end in ends) < 1.5 * took


def test_one_that_takes_too_long_is_ended(toy):
    (end,) = relax([salt(4.5)], toy, RelaxConfig(at_once=2, timeout=1e-9))
    assert str(end.status) == "failed" and end.reason == "TimeoutError: not done after 1e-09 s"


def test_wrong_numbers_and_devices_are_refused(toy):
    with pytest.raises(RelaxError, match="at_once = 0 must be at least 1"):
        RelaxConfig(at_once=0)
    for device, told in (
        ("cuda:99", r"is not to be had here \(.*\); use cpu"),
        ("meta", "there are cpu"),
    ):
        with pytest.raises(RelaxError, match=f"device '{device}'.*{told}"):
            relax([salt(4.0)], "toy", RelaxConfig(device=device))
