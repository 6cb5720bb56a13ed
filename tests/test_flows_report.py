"""The report of `symmbfn evaluate`: whole, alone, harmless, and true to what was found."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from flows import report_structures
from flows.cli import run
from flows.evaluation import JudgedCrystal, Named, judge, measure
from flows.report import Report, render
from flows.report_intervals import distance_intervals, fraction_interval
from flows.report_scene import scene
from flows.report_svg import hull_histogram, periodic_table
from flows.settings import CampaignConfig, ThresholdSettings
from symmbfn.files import write_structures
from symmbfn.metrics import mp20_test, traits_of
from tests.crystals import NAMES, make
from tests.flows_support import rocksalt, tiny_checkpoint
from tests.relax_support import TOY_MODULE, add_entry_point

EVIL = "</td></script><script>alert('x')</script><img src=x onerror=alert(1)>&amp;"
CRYSTALS = [name for name in NAMES if name != "cubic spinel"]  # its oxygens overlap
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags and texts of a page; fails where elements do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join("".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it, and that it must be closed."""
        self.tags.append((tag, dict(attrs)))
        self._texts.append(" " if tag in ("td", "th") else "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost one."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep scripts and other text apart."""
        (self.scripts if self._open and self._open[-1] == "script" else self._texts).append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some crystals, good and bad, and known ones to compare them with."""
    folder = tmp_path_factory.mktemp("report")
    overlapping = Structure(Lattice.cubic(4), ["Fe", "O"], [[0, 0, 0], [0.05, 0, 0]])
    structures = [*map(make, CRYSTALS), overlapping, rocksalt("K", "Br", 6.6)]
    names = [*CRYSTALS[:-1], EVIL, "overlapping", "the last"]
    write_structures(folder / "crystals.jsonl", structures, [{"name": name} for name in names])
    with (folder / "crystals.jsonl").open("a") as file:
        file.write('{"name": "broken", "structure": 3}\n')
    write_structures(folder / "known.extxyz", [rocksalt("K", "Br", 6.6)])
    return folder


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working folder."""
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """The report of the crystals."""
    report = folder / "report.html"
    options = ["--reference", str(folder / "known.extxyz"), "--report", str(report)]
    assert run(["evaluate", str(folder / "crystals.jsonl"), *options]) == 0
    return Page(report.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_nothing_else(page: Page) -> None:
    assert not re.search(r"https?://|@import|url\(|fetch\(", page.html)
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    policy = next(a for t, a in page.tags if t == "meta" and "http-equiv" in a)["content"] or ""
    assert policy.startswith("default-src 'none'")
    for words in ("At a glance", "Distributions", "Symmetry", "Elements", "Every crystal"):
        assert words in page.text
    assert "Stability" not in page.text  # nothing was relaxed
    assert len(page.scripts) == report_structures.EXAMPLES + 1
    assert all(json.loads(text)["atoms"] for text in page.scripts[:-1])
    assert len(page.html) < 300_000


def test_fractions_are_of_all_crystals(page: Page) -> None:
    n = len(CRYSTALS) + 3  # two of them no crystals, one of them known
    assert re.search(rf"valid structure {100 * (n - 2) / n:.1f} % .* {n - 2} of {n} ", page.text)
    assert re.search(rf"novel {100 * (n - 3) / n:.1f} % .* {n - 3} of {n} ", page.text)


def test_what_is_printed_has_intervals_and_what_they_rest_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "crystals.jsonl", "--reference", "known.extxyz"]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    n = len(CRYSTALS) + 3
    share = told["shares"]["novelty"]
    low, high = share["low"], share["high"]
    assert 0 < low < told["novelty"] == share["share"] == (n - 3) / n < high < 1
    assert list(told["unreadable"]) == ["broken"] and share["count"] == n - 3
    assert "sun" not in told["shares"] and "potential" not in told["recipe"]
    assert "StructureMatcher" in told["recipe"]["same crystal"]
    assert run(arguments) == 0
    assert f"{n - 3} of {n}, {(n - 3) / n:.1%} ({low:.1%} to {high:.1%})" in capsys.readouterr().out


def test_a_file_in_which_nothing_can_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.cif").write_text("hello")
    assert run(["evaluate", str(tmp_path)]) == 2
    assert "no structure in it can be read; a.cif: " in capsys.readouterr().err


def test_every_crystal_has_its_row(page: Page) -> None:
    assert "two atoms are 0.20 Å apart" in page.text
    assert "the last KBr Fm3m 225 8 ✓ ✓ ✓ –" in page.text
    assert "hexagonal wurtzite ZnO P63mc 186 4 ✓ ✓ ✓ ✓" in page.text
    assert re.search(r"broken – – – \D{20,}", page.text)


def test_what_files_say_cannot_become_markup(page: Page) -> None:
    nothing = [JudgedCrystal(EVIL, None, EVIL, False, relaxation=EVIL)]
    report = Report(
        title=EVIL,
        crystals=nothing,
        metrics=measure(nothing, mp20_test()),
        reference=mp20_test(),
        reference_name=EVIL,
        thresholds=ThresholdSettings(),
        recipe={EVIL: EVIL},
    )
    empty = Page(render(report))
    assert len(empty.scripts) == 1
    assert empty.text.count("alert('x')") >= 6
    for one in (page, empty):
        assert "alert('x')" in one.text
        assert not any(tag == "img" for tag, _ in one.tags)
        assert not any(name.startswith("on") for _, attributes in one.tags for name in attributes)
        assert not any("alert" in script for script in one.scripts)


def test_the_recipe_names_the_file_and_the_reference(page: Page) -> None:
    assert re.search(r"crystals\.jsonl, sha256 [0-9a-f]{64}", page.text)
    assert re.search(r"known\.extxyz, sha256 [0-9a-f]{64}", page.text)
    assert "UTC" in page.text


def test_the_recipe_names_checkpoint_seed_and_steps(place: Path) -> None:
    tiny = tiny_checkpoint(place / "tiny")
    options = ["-n", "3", "--seed", "5", "--steps", "3", "--reference", "known.extxyz"]
    assert run(["evaluate", str(tiny), *options, "--report", "drawn.html"]) == 0
    text = Page((place / "drawn.html").read_text(encoding="utf-8")).text
    assert re.search(r"tiny, sha256 [0-9a-f]{64}", text)
    assert "3 crystals, seed 5, 3 steps" in text


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("there.html", "add --force"),
        ("no/report.html", "make it first"),
        ("report.pdf", "must end in .html"),
    ],
)
def test_bad_targets_are_refused_before_any_work(
    place: Path, capsys: pytest.CaptureFixture[str], target: str, says: str
) -> None:
    (place / "there.html").write_text("precious")
    before = sorted(place.iterdir())
    assert run(["evaluate", "crystals.jsonl", "--report", target]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: --report {target}: ")
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(place.iterdir()) == before
    assert (place / "there.html").read_text() == "precious"


def test_an_old_report_is_replaced_when_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "old.html").write_text("old")
    arguments = ["evaluate", "known.extxyz", "--reference", "known.extxyz", "--report", "old.html"]
    assert run([*arguments, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == "old.html"
    assert (place / "old.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_long_lists_are_cut_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_structures, "MAX_ROWS", 4)
    crystals = [JudgedCrystal(f"number {k}", None, "torn", False) for k in range(6)]
    table = report_structures.all_crystals(crystals, [None] * 6)
    assert "The first 4 of 6 are listed" in table
    assert "number 3" in table and "number 4" not in table


def judged(name: str, above: float, verdict: str, **more: bool) -> JudgedCrystal:
    salt = rocksalt("Na", "Cl", 5.64)
    new = {"is_unique": True, "is_novel": True, **more}
    return JudgedCrystal(
        name, salt, None, True, **new, relaxed=salt, energy_above_hull=above, verdict=verdict
    )


def test_the_best_are_new_and_low_and_not_suspicious() -> None:
    crystals = [
        judged("known", -0.1, "stable", is_novel=False),
        judged("hole", -3.0, "quarantined"),
        judged("high", 0.4, "unstable"),
        judged("low", 0.01, "metastable"),
        judged("unknown", math.nan, "not_assessable"),
        JudgedCrystal("overlapping", rocksalt("Na", "Cl", 1.0), "too close", True),
    ]
    names = [crystal.name for crystal in report_structures.best(crystals)]
    assert names == ["low", "high", "unknown", "known"]


def test_energies_are_counted_in_their_tier() -> None:
    picture = hull_histogram([-5.0, -0.01, -0.001, 0.0301, 0.3], ThresholdSettings())
    hints = re.findall(r'class="(\w+)"[^>]*><title>\S+ to \S+ eV/atom: ([1-9]) crystals', picture)
    counts: dict[str, int] = {}
    for tier, count in hints:
        counts[tier] = counts.get(tier, 0) + int(count)
    assert counts == {"quarantined": 1, "stable": 2, "metastable": 1, "unstable": 1}


def test_relaxed_crystals_have_energies_and_endings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYMMBFN_HOME", str(tmp_path / "home"))
    add_entry_point(monkeypatch, tmp_path, "toy", TOY_MODULE)
    hull = tmp_path / "toy.csv"
    hull.write_text(
        "# energy_scheme: self-consistent:toy\n"
        "formula,energy_per_atom\nNa,-0.1\nCl,-0.1\nNaCl,-0.2\n"
    )
    config = CampaignConfig.build(
        {"potential": "toy", "hulls": [str(hull)], "workers": 0}, where="test"
    )
    salt = Structure(Lattice.cubic(3.6), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    foreign, broken = rocksalt("Mg", "O", 4.2), Named("broken", None, "torn")
    crystals = [Named("salt", salt), Named("again", salt), Named("foreign", foreign), broken]
    found = judge(config, crystals, [rocksalt("K", "Br", 6.6)], stability=True)
    assert [one.relaxation for one in found] == ["converged"] * 2 + ["unsupported_element", ""]
    assert found[0].energy_above_hull == found[1].energy_above_hull
    assert [one.is_unique for one in found] == [True, False, True, False]
    assert [one.is_novel for one in found] == [True, True, True, False]
    metrics = measure(found, mp20_test(), stability=True)
    good = found[0].is_metastable
    assert (metrics.metastable, metrics.msun) == (0.5 * good, 0.25 * good)
    text = report_structures.stability(found, config.thresholds)
    assert "converged 2, unsupported element 1" in text


def test_intervals_of_fractions_are_those_of_wilson() -> None:
    assert fraction_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert fraction_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = fraction_interval(1000, 1000)
    assert (round(low, 4), high) == (0.9962, pytest.approx(1))


def test_intervals_of_distances_hold_the_value_and_narrow_with_more_crystals() -> None:
    few = [traits_of(make(name)) for name in CRYSTALS]
    wide, narrow = (distance_intervals(few * copies, mp20_test()) for copies in (1, 8))
    assert wide == distance_intervals(few, mp20_test())
    for name, one in wide.items():
        assert one.low <= one.value <= one.high
        assert narrow[name].value == pytest.approx(one.value)
        assert narrow[name].high - narrow[name].low < one.high - one.low
        assert narrow[name].floor < one.floor
    assert distance_intervals([], mp20_test()) == {}


def test_rock_salt_is_drawn_as_in_textbooks() -> None:
    drawn = scene(rocksalt("Na", "Cl", 5.64).get_primitive_structure())
    symbols = [drawn["elements"][kind][0] for kind, *_ in drawn["atoms"]]
    assert sorted([symbols.count("Na"), symbols.count("Cl")]) == [13, 14]
    assert len(drawn["bonds"]) == 54
    assert all({symbols[a], symbols[b]} == {"Na", "Cl"} for a, b in drawn["bonds"])
    assert [colour for _, colour, _ in drawn["elements"]] == ["#ab5cf2", "#1ff01f"]  # Jmol's
    assert all(abs(x) < 2.83 for _, *point in drawn["atoms"] for x in point)


def test_elements_are_coloured_by_how_much_more_often_they_occur() -> None:
    picture = periodic_table({"Na": 400, "Cl": 100}, 1000, {"Na": 10, "Cl": 10, "O": 40}, 100)
    fills = dict(re.findall(r"<title>(\w+): in .*?fill=\"#(\w+)\"", picture))
    red, blue = (lambda text: int(text[:2], 16)), (lambda text: int(text[4:], 16))
    assert red(fills["Na"]) > blue(fills["Na"])  # four times as often
    assert red(fills["O"]) < blue(fills["O"])  # never
    assert fills["Cl"] == "f8f8f8"
    assert len(fills) == 103
