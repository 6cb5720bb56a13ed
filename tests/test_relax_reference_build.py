"""A reference of a potential's own energies: the lowest ones, relaxed near the hull."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from relax import potentials
from relax.errors import RelaxError
from relax.hull import Hull
from relax.optimize import RelaxConfig, relax
from relax.reference_build import Journal, build_reference, near_hull
from relax.reference_file import read_reference, write_reference
from tests.relax_support import TOY_MODULE, add_entry_point

HERE = RelaxConfig(workers=0)  # in this process, so that the test can count


def cubic(species, a):
    coords = [[0, 0, 0], [0.5, 0.5, 0.5]][: len(species)]
    return Structure(Lattice.cubic(a), species, coords)


CRYSTALS = [
    cubic(["Na"], 3.4),
    cubic(["Na", "Na"], 3.9),
    cubic(["Cl"], 3.4),
    cubic(["Na", "Cl"], 3.8),
    cubic(["Na", "Cl"], 3.9),
    cubic(["He"], 3.0),  # of which the toy has no energy
    cubic(["Ar", "Cl"], 3.9),  # of which an element is missing
]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    add_entry_point(monkeypatch, tmp_path, "toy", TOY_MODULE)
    return potentials.load("toy")


@pytest.fixture
def journal(tmp_path, toy):
    return Journal(tmp_path / "energies", toy.info, HERE)


def test_the_lowest_energy_of_each_composition_is_kept(tmp_path, toy, journal):
    done = []
    reference = build_reference(
        CRYSTALS, "toy", journal, HERE, source="made up", on_progress=done.append
    )
    energies = toy.energies_per_atom(CRYSTALS)
    assert reference.formulas == ("Cl2", "Na", "NaCl")
    assert reference.counts == (1, 2, 2)
    assert reference.energies[1] == min(energies[:2])
    assert reference.energies[2] == min(energies[3:5])
    assert reference.header["without_energy"] == "1" and "relaxed" not in reference.header
    assert sum(done) == len(CRYSTALS)
    path = tmp_path / "built.csv.gz"
    write_reference(path, reference)
    again = read_reference(path)
    assert again.energy_scheme == "self-consistent:toy"
    assert again.energies == pytest.approx(reference.energies, abs=1e-5)
    assert Hull.load(path).scheme_for(toy.info) == "self-consistent:toy"


def test_compounds_without_their_elements_make_no_reference(journal):
    with pytest.raises(RelaxError, match="no compound"):
        build_reference(CRYSTALS[6:], "toy", journal, HERE)


def test_what_is_near_the_hull_is_relaxed_as_candidates_are(toy, journal):
    stages = []
    reference = build_reference(
        CRYSTALS,
        "toy",
        journal,
        HERE,
        relax_within=1e-3,
        on_stage=lambda name, total: stages.append((name, total)),
    )
    energies = toy.energies_per_atom(CRYSTALS[:5])
    chosen = [int(np.argmin(energies[:2])), 2, 3 + int(np.argmin(energies[3:5]))]
    assert stages == [("energies", len(CRYSTALS)), ("relax", len(chosen))]
    ends = relax([CRYSTALS[index] for index in chosen], "toy", HERE)
    assert {str(end.status) for end in ends} == {"converged"}
    expected = dict(zip(("Na", "Cl2", "NaCl"), (end.energy_per_atom for end in ends), strict=True))
    for formula, energy in zip(reference.formulas, reference.energies, strict=True):
        assert energy == pytest.approx(expected[formula], abs=1e-9)
        assert energy < energies.min() + 1  # a number, and of the size of the others
    assert reference.header["relaxed"] == "3"
    assert reference.header["relaxed_up_to_above_hull"] == "0.001 eV/atom"


def test_the_nearest_to_the_hull_come_first_and_twins_once():
    known = [
        CRYSTALS[0],
        CRYSTALS[2],
        CRYSTALS[3],
        CRYSTALS[3],
        CRYSTALS[4],
        CRYSTALS[4] * (2, 1, 1),
    ]
    energies = np.array([-1.0, -1.0, -1.49, -1.49, -1.5, -1.4])
    assert near_hull(known, energies, 0.05) == [0, 1, 4, 2]
    assert near_hull(known, energies, 0.2) == [0, 1, 4, 2, 5]
    assert near_hull(known, np.array([-1.0, -1.0, np.nan, np.nan, -1.5, -1.4]), 0.05) == [0, 1, 4]


@pytest.mark.parametrize("cut", [20, -3, -1])  # in the key, in the number, before the line's end
def test_a_build_that_was_stopped_goes_on(tmp_path, toy, journal, monkeypatch, cut):
    file = tmp_path / "energies"
    whole = build_reference(CRYSTALS, "toy", journal, HERE, relax_within=1e-3)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(CRYSTALS) + 2]) + lines[-1][:cut])  # one is relaxed

    computed = []
    right = type(toy).calculator
    monkeypatch.setattr(
        type(potentials.load("toy")),
        "calculator",
        lambda self: computed.append(1) or right(self),
    )
    again = Journal(file, toy.info, HERE)
    reference = build_reference(CRYSTALS, "toy", again, HERE, relax_within=1e-3)
    assert reference.energies == pytest.approx(whole.energies, abs=1e-12)
    assert len(computed) == 2  # the two that were not relaxed yet
    assert sorted(file.read_text().splitlines()) == sorted("".join(lines).splitlines())


@pytest.mark.parametrize("content", ["chgnet float32 abc\n", "\udcff\n"])
def test_a_journal_of_something_else_is_refused(tmp_path, toy, content):
    (tmp_path / "energies").write_text(content, errors="surrogateescape")
    with pytest.raises(RelaxError, match="no energies of an earlier build with these settings"):
        Journal(tmp_path / "energies", toy.info, HERE)


def test_a_file_that_is_refused_stays_as_it_is(tmp_path, toy):
    file = tmp_path / "energies"
    for content in ("somebody's notes", "somebody's\nnotes"):
        file.write_text(content)
        with pytest.raises(RelaxError, match="no energies of an earlier build"):
            Journal(file, toy.info, HERE)
        assert file.read_text() == content


def test_an_energy_of_zero_is_an_energy(tmp_path, toy, journal, monkeypatch):
    monkeypatch.setattr(type(toy), "energies_per_atom", lambda self, them: np.zeros(len(them)))
    reference = build_reference(CRYSTALS[:5], "toy", journal, HERE)
    assert reference.energies.tolist() == [0, 0, 0] and reference.header["without_energy"] == "0"


def test_energies_of_other_settings_are_not_taken(tmp_path, toy, journal):
    build_reference(CRYSTALS, "toy", journal, HERE)
    with pytest.raises(RelaxError, match=r"made with toy float64 .* fmax 0.05 steps 500"):
        Journal(tmp_path / "energies", toy.info, RelaxConfig(fmax=0.01))


def test_what_does_not_converge_keeps_its_energy_and_is_tried_again(tmp_path, toy, journal):
    short = RelaxConfig(workers=0, max_steps=0)
    energies = toy.energies_per_atom(CRYSTALS)
    reference = build_reference(
        CRYSTALS, "toy", Journal(tmp_path / "short", toy.info, short), short, relax_within=1e-3
    )
    assert (reference.header["relaxed"], reference.header["not_converged"]) == ("0", "3")
    assert reference.energies[2] == min(energies[3:5])
    assert "relaxed" not in (tmp_path / "short").read_text()


@pytest.mark.parametrize("content", ["", "toy float"])
def test_a_journal_that_was_cut_in_its_first_line_begins_anew(tmp_path, toy, content):
    (tmp_path / "energies").write_text(content)
    journal = Journal(tmp_path / "energies", toy.info, HERE)
    build_reference(CRYSTALS, "toy", journal, HERE)
    again = Journal(tmp_path / "energies", toy.info, HERE)
    known = again.energies(CRYSTALS, "as_it_is")
    assert np.isfinite(known[0])
    assert np.isnan(known[5])  # it had none: tried again next time


def test_without_a_trusted_hull_a_fall_too_far_is_not_believed(tmp_path, toy, journal, monkeypatch):
    monkeypatch.setattr("relax.reference_build._HOLE", 0.004)
    energies = toy.energies_per_atom(CRYSTALS[:5])
    reference = build_reference(CRYSTALS, "toy", journal, HERE, relax_within=1e-3)
    assert reference.energies[2] == min(energies[3:5])  # which would fall by 0.0064
    assert reference.header["relaxed_into_holes"] != "0"


def trusted(tmp_path, rows):
    text = "# energy_scheme: self-consistent:toy\nformula,energy_per_atom\n"
    file = tmp_path / "trusted.csv"
    file.write_text(text + "".join(f"{formula},{energy}\n" for formula, energy in rows.items()))
    return Hull.load(file)


def test_crystals_far_below_a_trusted_hull_are_holes_and_left_out(tmp_path, toy, journal):
    energies = toy.energies_per_atom(CRYSTALS[:5])
    rows = {"Na": min(energies[:2]), "Cl2": energies[2], "NaCl": min(energies[3:5]) + 0.5}
    reference = build_reference(CRYSTALS, "toy", journal, HERE, trusted=trusted(tmp_path, rows))
    assert reference.formulas == ("Cl2", "Na")
    assert (reference.header["holes_left_out"], reference.header["without_energy"]) == ("2", "1")


def test_a_crystal_that_relaxes_into_a_hole_keeps_its_energy(tmp_path, toy, journal):
    energies = toy.energies_per_atom(CRYSTALS[:5])
    relaxed = build_reference(CRYSTALS, "toy", journal, HERE, relax_within=1e-3).energies
    lowest = min(energies[3:5])
    assert lowest > relaxed[2]
    rows = {"Na": relaxed[1], "Cl2": relaxed[0], "NaCl": (lowest + relaxed[2]) / 2 + 0.3}
    reference = build_reference(
        CRYSTALS, "toy", journal, HERE, relax_within=1e-3, trusted=trusted(tmp_path, rows)
    )
    assert reference.energies[2] == lowest
    assert reference.header["relaxed_into_holes"] == "1"
