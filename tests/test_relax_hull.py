"""Hulls: pymatgen's numbers, files that are wrong, energies that cannot be compared."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
from pymatgen.analysis.phase_diagram import PatchedPhaseDiagram, PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element, Lattice, Structure

from relax import phase_mixtures, potentials
from relax.errors import RelaxError
from relax.hull import Hull, describe, list_hulls
from relax.reference import import_hull
from relax.reference_file import parse_formula

TOTALS = {  # made up, eV/atom
    "Li": -1.9, "Fe": -8.4, "O2": -4.9, "Li2O": -4.8, "Li2O2": -4.85, "FeO": -7.1, "Fe2O3": -6.9,
    "LiFeO2": -6.3, "LiFe": -5.1, "LiFe5O8": -6.72,
}  # fmt: skip
SYMBOLS = ["Li", "Mg", "Al", "Si", "Fe", "O", "F", "S"]


def write(path, rows, header="# energy_scheme: pbe-u-raw\n", column="energy_per_atom"):
    text = header + f"formula,{column}\n" + "".join(f"{f},{e}\n" for f, e in rows.items())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMMBFN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hull(tmp_path):
    return Hull.load(write(tmp_path / "lifeo.csv", TOTALS))


def test_energies_above_the_hull_are_those_of_pymatgen_also_below_it(hull):
    diagram = PhaseDiagram([PDEntry(f, e * Composition(f).num_atoms) for f, e in TOTALS.items()])
    asked = {"LiFeO2": -6.3, "Li5FeO4": -5.0, "Li3Fe": -3.0, "FeO": -7.3, "Li2O": -4.7, "O2": -4.8}
    compositions = [Composition(formula) for formula in asked]
    formation = hull.formation_energy_per_atom(compositions, list(asked.values()), "pbe-u-raw")
    above = hull.energy_above_hull(compositions, formation)
    for composition, energy, ours, distance in zip(
        compositions, asked.values(), formation, above, strict=True
    ):
        entry = PDEntry(composition, energy * composition.num_atoms)
        assert ours == pytest.approx(diagram.get_form_energy_per_atom(entry))
        assert distance == pytest.approx(diagram.get_e_above_hull(entry, allow_negative=True))
    assert above[3] < -0.1  # a discovery is kept, with its sign


@pytest.fixture(scope="module")
def random_hull(tmp_path_factory):
    """A hull of eight elements and 300 random compounds, and pymatgen's entries of them."""
    random = np.random.default_rng(0)
    rows = {}
    for _ in range(300):
        symbols = random.choice(SYMBOLS, random.integers(2, 5), replace=False)
        amounts = random.integers(1, 5, len(symbols))
        formula = "".join(f"{s}{n}" for s, n in zip(symbols, amounts, strict=True))
        rows[formula] = random.uniform(-2.0, 0.3)
    path = tmp_path_factory.mktemp("hulls") / "random.csv"
    write(path, rows, column="formation_energy_per_atom")
    entries = [PDEntry(f, e * Composition(f).num_atoms) for f, e in rows.items()]
    return Hull.load(path), entries + [PDEntry(symbol, 0.0) for symbol in SYMBOLS]


def candidates(entries, count):
    """Compositions of one to eight elements, known ones among them, and energies for them."""
    random = np.random.default_rng(1)
    drawn = [entries[row].composition for row in random.integers(len(entries), size=count // 4)]
    while len(drawn) < count:
        symbols = random.choice(SYMBOLS, random.integers(1, 9), replace=False)
        amounts = random.integers(1, 9, len(symbols)).tolist()
        drawn.append(Composition(dict(zip(symbols, amounts, strict=True))))
    return drawn, random.uniform(-3.0, 1.0, count)


def by_pymatgen(diagram, compositions, formation):
    entries = [PDEntry(c, e * c.num_atoms) for c, e in zip(compositions, formation, strict=True)]
    return np.array([diagram.get_e_above_hull(entry, allow_negative=True) for entry in entries])


def test_many_compositions_at_once_have_the_distances_of_pymatgen(random_hull):
    hull, entries = random_hull
    compositions, formation = candidates(entries, 120)
    above = hull.energy_above_hull(compositions, formation)
    placed = np.isfinite(above)
    assert placed.sum() >= 118 and (above < -0.1).any() and (above > 0.1).any()
    assert above[placed] == pytest.approx(
        by_pymatgen(PhaseDiagram(entries), compositions, formation)[placed], abs=1e-9
    )
    patched = PatchedPhaseDiagram(entries)
    placed &= [any(set(c) <= space for space in patched.spaces) for c in compositions]
    assert placed.sum() > 40  # of other chemical systems it only has an estimate
    some = [c for c, it in zip(compositions, placed, strict=True) if it]
    assert above[placed] == pytest.approx(by_pymatgen(patched, some, formation[placed]), abs=1e-9)
    alone = [
        hull.energy_above_hull([c], [e])[0] for c, e in zip(compositions, formation, strict=True)
    ]
    assert above == pytest.approx(alone, abs=1e-12, nan_ok=True)


def test_what_the_simplex_method_does_not_finish_another_does(random_hull, monkeypatch):
    hull, entries = random_hull
    compositions, formation = candidates(entries, 60)
    expected = hull.energy_above_hull(compositions, formation)
    monkeypatch.setattr(phase_mixtures, "_STEPS", 1)
    found = hull.energy_above_hull(compositions, formation)
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_composition_falls_apart_into_what_pymatgen_says(random_hull, hull):
    random, entries = random_hull
    diagram = PhaseDiagram(entries)
    compositions, _ = candidates(entries, 40)
    for composition in compositions:
        expected = {
            entry.composition.reduced_formula: amount
            for entry, amount in diagram.get_decomposition(composition).items()
        }
        found = random.decomposition(composition)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        named = {Composition(formula).reduced_formula: share for formula, share in found.items()}
        assert named == pytest.approx(expected, abs=1e-8)
    assert hull.decomposition(Composition("Li4O2")) == pytest.approx({"Li2O": 1.0})
    assert hull.decomposition(Composition("Li3O")) == pytest.approx({"Li2O": 0.75, "Li": 0.25})
    assert hull.decomposition(Composition("LiCoO2")) == {}


def test_a_composition_of_very_many_elements_is_placed(tmp_path):
    symbols = [Element.from_Z(number).symbol for number in range(3, 63)]
    path = write(
        tmp_path / "wide.csv", {"LiF": -3.0, "MgO": -3.1}, column="formation_energy_per_atom"
    )
    with path.open("a") as file:
        file.writelines(f"{symbol},0\n" for symbol in symbols)
    composition = Composition(dict.fromkeys(symbols, 1))
    above = Hull.load(path).energy_above_hull([composition], [0.0])
    assert above == pytest.approx([12.2 / 60])


def test_total_and_formation_energies_give_the_same_hull(hull, tmp_path):
    elements = {"Li": -1.9, "Fe": -8.4, "O": -4.9}
    compounds = [Composition(f) for f in TOTALS if len(Composition(f)) > 1]
    totals = [TOTALS[f] for f in TOTALS if len(Composition(f)) > 1]
    formation = hull.formation_energy_per_atom(compounds, totals, "pbe-u-raw")
    path = write(
        tmp_path / "formation.csv.gz",
        dict(zip([c.formula for c in compounds], formation, strict=True)),
        column="formation_energy_per_atom",
    )
    energies = tmp_path / "elements.json"
    energies.write_text(json.dumps({"other": {"Li": 0.0}, "ours": elements}))
    other = Hull.load(path, elements_from=f"{energies}#ours")
    asked = [Composition("LiFeO2"), Composition("Li5FeO4")]
    for one in (hull, other):
        given = one.formation_energy_per_atom(asked, [-6.2, -5.0], "pbe-u-raw")
        if one is hull:
            expected = one.energy_above_hull(asked, given)
        else:
            assert one.energy_above_hull(asked, given) == pytest.approx(expected)
    bare = Hull.load(path)
    with pytest.raises(RelaxError, match="no energies of the elements"):
        bare.formation_energy_per_atom(asked, [-6.2, -5.0], "pbe-u-raw")
    assert bare.energy_above_hull(asked, formation[:2]).shape == (2,)


def test_unknown_chemistry_is_not_assessable(hull):
    asked = [Composition("LiCoO2"), Composition("LiFeO2"), Composition("LiFeO2")]
    formation = hull.formation_energy_per_atom(asked, [-6.0, np.nan, -6.3], "pbe-u-raw")
    above = hull.energy_above_hull(asked, formation)
    assert np.isnan(above).tolist() == [True, True, False]
    coverage = hull.coverage(asked[0])
    assert not coverage.terminals and coverage.missing == ("Co",) and coverage.phases == 2
    assert hull.coverage(asked[1]).phases == len(TOTALS) - 3


def test_elements_without_any_compound_are_not_assessable(tmp_path):
    known = {"Li": -1.9, "Fe": -8.4, "O2": -4.9, "FeO": -7.1}
    hull = Hull.load(write(tmp_path / "gaps.csv", known))
    asked = [Composition("LiO"), Composition("LiFeO2"), Composition("Li")]
    above = hull.energy_above_hull(asked, [-2.0, -2.0, 0.1])
    assert np.isnan(above).tolist() == [True, False, False]


def test_energies_of_another_scheme_are_refused(hull, tmp_path):
    with pytest.raises(RelaxError, match="of scheme pbe-u-raw, not mp2020"):
        hull.formation_energy_per_atom([Composition("FeO")], [-7.0], "mp2020")
    chgnet = potentials.find("chgnet")
    with pytest.raises(RelaxError, match="of scheme pbe-u-raw, potential 'chgnet' gives mp2020"):
        hull.scheme_for(chgnet)
    own = Hull.load(
        write(
            tmp_path / "own.csv",
            TOTALS,
            f"# energy_scheme: self-consistent:chgnet\n# weights_sha256: {chgnet.weights_sha256}\n",
        )
    )
    assert own.scheme_for(chgnet) == "self-consistent:chgnet"
    with pytest.raises(RelaxError, match="other weights of chgnet"):
        own.scheme_for(replace(chgnet, weights_sha256="0" * 64))


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ({**TOTALS, "LiO": "nan"}, "# energy_scheme: mp2020\n", r"row 11 \(LiO\) has no finite"),
        ({**TOTALS, "LiO": ""}, "# energy_scheme: mp2020\n", r"row 11 \(LiO\) has no finite"),
        ({**TOTALS, "": -1.0}, "# energy_scheme: mp2020\n", "row 11 .*cannot be read"),
        ({**TOTALS, "LiXx": -1}, "# energy_scheme: mp2020\n", "row 11 .*LiXx.*cannot be read"),
        ({**TOTALS, "NaFe": -4}, "# energy_scheme: mp2020\n", r"row 11 \(NaFe\).*element Na"),
        (TOTALS, "", "energy_scheme"),
        (TOTALS, "# energy_scheme: pbe\n", "unknown energy scheme 'pbe'"),
        ({}, "# energy_scheme: mp2020\n", "no rows"),
    ],
)
def test_wrong_files_are_refused_with_the_row(tmp_path, rows, header, words, home):
    path = write(tmp_path / "wrong.csv", rows, header)
    with pytest.raises(RelaxError, match=words) as error:
        import_hull(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not home.exists()


def test_sodium_nitride_is_not_a_missing_value(tmp_path):
    rows = {"NaN": -0.07, "NaN3": -0.37, "Na3N": 0.15}
    path = write(tmp_path / "plain.csv", rows, column="formation_energy_per_atom")
    assert Hull.load(path).reference.formulas == tuple(rows)
    pandas.DataFrame(  # as pandas reads and writes it
        {"formula": [None, "NaN3"], "chemsys": "N-Na", "formation_energy_per_atom": [-0.07, -0.37]}
    ).to_csv(tmp_path / "lost.csv", index=False)
    import_hull(tmp_path / "lost.csv", energy_scheme="mp2020")
    hull = Hull.load("lost")
    assert hull.energy_above_hull([Composition("NaN")], [0.0])[0] > 0.07
    assert hull.reference.formulas == ("NaN", "NaN3")
    (tmp_path / "empty.csv").write_text("formula,formation_energy_per_atom\nLiF,-3\n,-0.07\n")
    with pytest.raises(RelaxError, match=r"empty\.csv: row 2 .*cannot be read"):
        import_hull(tmp_path / "empty.csv", energy_scheme="mp2020")


def test_an_element_without_energy_is_told_and_its_crystals_are_not_assessable(tmp_path):
    path = write(tmp_path / "f.csv", {"LiF": -3, "NaF": -2.9}, column="formation_energy_per_atom")
    (tmp_path / "elements.json").write_text('{"Li": -1.9, "F": -1.9}')
    import_hull(path, elements_from=tmp_path / "elements.json")
    assert describe("f").without_energy == ("Na",)
    hull, asked = Hull.load("f"), [Composition("LiF"), Composition("NaF")]
    formation = hull.formation_energy_per_atom(asked, [-4.9, -4.9], "pbe-u-raw")
    assert np.isnan(hull.energy_above_hull(asked, formation)).tolist() == [False, True]
    assert hull.coverage(asked[0]).terminals and hull.coverage(asked[1]).missing == ("Na",)


@pytest.mark.parametrize(
    "formula", ["Li2(SO4)3", "Ca10(P(O)4)6(OH)2", "K4[Fe(CN)6]", "Fe0.5Li1.5O", "Li2 O1", "NaN"]
)
def test_formulas_are_read_as_pymatgen_reads_them(formula):
    assert parse_formula(formula) == pytest.approx(Composition(formula).get_el_amt_dict())


@pytest.mark.parametrize(
    "formula", ["", "()", "Li(", "Li)2", "Li0", "nan", "Xx", "Fe2+", "Li2.5.5"]
)
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(ValueError):
        parse_formula(formula)


def test_a_scheme_that_is_stated_twice_must_agree(tmp_path):
    path = write(tmp_path / "hull.csv", TOTALS)
    assert Hull.load(path, "pbe-u-raw").energy_scheme == "pbe-u-raw"
    with pytest.raises(RelaxError, match="says energy_scheme pbe-u-raw, not mp2020"):
        Hull.load(path, "mp2020")


def test_an_imported_hull_is_had_by_name_under_reduced_formulas(tmp_path):
    path = write(tmp_path / "mine.csv", {**TOTALS, "Fe4O6": -7.0, "Li(FeO2)1": -6.2}, "")
    copy = import_hull(path, energy_scheme="pbe-u-raw")
    hull = Hull.load("mine")
    assert (hull.name, hull.energy_scheme) == ("mine", "pbe-u-raw")
    energies = dict(zip(hull.reference.formulas, hull.reference.energies, strict=True))
    assert energies["Fe2O3"] == -7.0 and energies["LiFeO2"] == -6.3
    assert describe("mine").compositions == len(TOTALS)
    assert {"mine", "chgnet"} <= {info.name for info in list_hulls()}
    assert Hull.load(copy).sha256 == hull.sha256
    with pytest.raises(RelaxError, match="there is a hull 'mine'"):
        import_hull(path, energy_scheme="pbe-u-raw")
    with pytest.raises(RelaxError, match="only letters"):
        import_hull(path, energy_scheme="pbe-u-raw", name="../mine")
    with pytest.raises(RelaxError, match="no hull 'yours'; there are"):
        Hull.load("yours")


def test_the_shipped_hull_knows_common_crystals():
    hull = Hull.load("chgnet")
    info = describe("chgnet")
    assert info.energy_scheme == "self-consistent:chgnet" and info.elements >= 85
    assert "CC BY 4.0" in info.header["attribution"]
    assert info.path.stat().st_size < 5e6
    salt = Structure.from_spacegroup(
        225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    energies = potentials.load("chgnet").energies_per_atom([salt])
    potential = potentials.find("chgnet")
    formation = hull.formation_energy_per_atom([salt.composition], energies, potential)
    assert formation[0] == pytest.approx(-2.08, abs=0.05)
    assert hull.energy_above_hull([salt.composition], formation)[0] == pytest.approx(0, abs=0.02)
