"""Hulls from entries of the Materials Project and from OPTIMADE providers, and what is refused.

The responses are in the formats of the client's `ComputedStructureEntry.as_dict` and of OPTIMADE
1.2; the provider is a server on this machine.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from monty.json import MontyEncoder
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import (
    ComputedStructureEntry,
    ConstantEnergyAdjustment,
)

from relax.errors import RelaxError
from relax.hull import Hull
from relax.reference import import_hull

LITHIUM = Structure(Lattice.cubic(3.44), ["Li", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]])
OXYGEN = Structure(Lattice.cubic(6.0), ["O", "O"], [[0, 0, 0], [0.2, 0, 0]])
OXIDE = Structure.from_spacegroup(
    225, Lattice.cubic(4.63), ["Li", "O"], [[0.25, 0.25, 0.25], [0, 0, 0]]
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMMBFN_HOME", str(tmp_path / "home"))
    return tmp_path


def entry(structure, energy, name, run_type="GGA", adjustment=0.0):
    """One of the client's entries; energies in eV of the cell."""
    return ComputedStructureEntry(
        structure,
        energy,
        energy_adjustments=[
            ConstantEnergyAdjustment(adjustment, name="MP2020 anion correction (oxide)")
        ],
        parameters={"run_type": run_type, "is_hubbard": False, "potcar_spec": [], "hubbards": {}},
        data={"oxide_type": "None", "aspherical": True, "material_id": name},
        entry_id=f"{name}-GGA",
    )


def entries():
    return [
        entry(LITHIUM, -3.8, "mp-135"),
        entry(OXYGEN, -9.9, "mp-12957"),
        entry(OXIDE, -57.2, "mp-1960", adjustment=-2.748),  # 4 x -0.687
    ]


def as_file(path, given):
    path.write_text(json.dumps(given, cls=MontyEncoder))
    return path


def test_entries_bring_their_corrections(folder):
    file = as_file(folder / "lio.json", entries())
    import_hull(file, energy_scheme="mp2020")
    hull = Hull.load("lio")
    oxide = Composition("Li2O")
    per_atom = (-57.2 - 2.748) / 12
    formation = hull.formation_energy_per_atom([oxide], [per_atom], "mp2020")
    assert formation[0] == pytest.approx(per_atom - (2 * -1.9 + -4.95) / 3, abs=1e-6)
    assert hull.energy_above_hull([oxide], formation)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given[2].update(energy=float("nan")), r"row 3 \(Li2O\) has no finite"),
        (lambda given: given.pop(1), r"row 2 \(Li2O\) has no row for its element O"),
        (lambda given: given[1].pop("energy"), "row 2 is no entry"),
        (
            lambda given: given[0]["parameters"].update(run_type="R2SCAN"),
            r"row 1 \(Li, mp-135-GGA\) was computed with R2SCAN",
        ),
    ],
)
def test_entries_that_are_refused(folder, change, message):
    given = json.loads(json.dumps(entries(), cls=MontyEncoder))
    change(given)
    file = as_file(folder / "lio.json", given)
    with pytest.raises(RelaxError, match=message):
        import_hull(file, energy_scheme="mp2020")
    assert not (folder / "home").exists()


def test_entries_of_an_unknown_scheme_are_refused(folder):
    file = as_file(folder / "lio.json", entries())
    with pytest.raises(RelaxError, match=r"state the scheme, one of .*mp2020"):
        import_hull(file)
    with pytest.raises(RelaxError, match="unknown energy scheme 'pbe'"):
        import_hull(file, energy_scheme="pbe")


def test_the_materials_project_is_asked_with_a_key_for_elements_and_by_its_client(monkeypatch):
    monkeypatch.delenv("MP_API_KEY", raising=False)
    with pytest.raises(RelaxError, match="into the environment as MP_API_KEY"):
        import_hull("mp", elements=["Li", "O"], name="lio")
    monkeypatch.setenv("MP_API_KEY", "k" * 32)
    with pytest.raises(RelaxError, match="name the elements"):
        import_hull("mp", name="lio")
    monkeypatch.setitem(sys.modules, "mp_api.client", None)
    with pytest.raises(RelaxError, match="uv sync --extra mp"):
        import_hull("mp", elements=["Li", "O"], name="lio")


ROWS = [("Li", 0.0), ("O", 0.0), ("Li2O", -2.0), ("Li2O2", -1.6)]


@pytest.fixture
def provider():
    """An OPTIMADE provider with two structures on a page; its address, rows and requests."""
    rows, requests = list(ROWS), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            address = urlparse(self.path)
            query = {key: values[0] for key, values in parse_qs(address.query).items()}
            requests.append((address.path, query))
            begin = int(query.get("page_offset", 0))
            more = begin + 2 < len(rows)
            link = f"{base}/v1/structures?page_offset={begin + 2}"
            body = {
                "data": [
                    {
                        "id": str(number),
                        "type": "structures",
                        "attributes": {
                            "chemical_formula_reduced": formula,
                            "_exmpl_stability": {"pbe": {"delta_e": energy}},
                        },
                    }
                    for number, (formula, energy) in enumerate(rows[begin : begin + 2], begin)
                ],
                "meta": {"api_version": "1.2.0", "more_data_available": more},
                "links": {"next": {"href": link} if more else None},
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    base = f"http://127.0.0.1:{server.server_port}/optimade"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield base, rows, requests
    server.shutdown()
    server.server_close()


FIELD = "formation_energy_per_atom=_exmpl_stability.pbe.delta_e"


def ask(base, **more):
    options = {"name": "lio", "energy_scheme": "mp2020", "elements": ["Li", "O"]}
    return import_hull(base, **{**options, "energy_field": FIELD, **more})


def test_a_provider_is_asked_page_by_page(provider):
    base, _, requests = provider
    ask(base)
    hull = Hull.load("lio")
    above = hull.energy_above_hull([Composition("Li2O"), Composition("LiO")], [-1.9, -1.6])
    assert above == pytest.approx([0.1, 0.0], abs=1e-6)
    path, query = requests[0]
    assert path == "/optimade/v1/structures" and len(requests) == 2
    assert query["filter"] == 'elements HAS ONLY "Li","O"'
    assert query["response_fields"] == "chemical_formula_reduced,_exmpl_stability"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("Li2O", None), r"row 5 \(Li2O\) has no finite formation_energy_per_atom"),
        (("Li2O", "NaN"), r"row 5 \(Li2O\) has no finite"),
        ((None, -1.0), "row 5 .*cannot be read"),
        (("Xx2O", -1.0), r"row 5 \(formula 'Xx2O'.*cannot be read"),
    ],
)
def test_rows_of_a_provider_that_are_refused(provider, row, message):
    base, rows, _ = provider
    rows.append(row)
    with pytest.raises(RelaxError, match=message):
        ask(base)


def test_what_a_provider_cannot_be_asked(provider, folder):
    base, rows, _ = provider
    with pytest.raises(RelaxError, match="say which of its fields is the energy"):
        ask(base, energy_field=None)
    with pytest.raises(RelaxError, match="name the elements"):
        ask(base, elements=[])
    with pytest.raises(RelaxError, match="unknown energy scheme 'pbe'"):
        ask(base, energy_scheme="pbe")
    with pytest.raises(RelaxError, match="row 1 is no OPTIMADE structure with"):
        ask(base, energy_field="energy_per_atom=chemical_formula_reduced.total")
    del rows[1]
    with pytest.raises(RelaxError, match=r"row 2 \(Li2O\) has no row for its element O"):
        ask(base, energy_field=FIELD.removeprefix("formation_"))
    with pytest.raises(RelaxError, match="page 1 cannot be had"):
        ask("http://127.0.0.1:9/optimade")


def test_a_saved_response_and_what_is_neither(folder):
    rows = [{"attributes": {"chemical_formula_reduced": f, "_x_e": e}} for f, e in ROWS]
    saved = as_file(folder / "saved.json", {"data": rows, "meta": {}})
    import_hull(saved, energy_scheme="mp2020", energy_field="formation_energy_per_atom=_x_e")
    assert Hull.load("saved").elements == {"Li", "O"}
    with pytest.raises(RelaxError, match="leave --elements out"):
        import_hull(saved, elements=["Li"], name="other")
    with pytest.raises(RelaxError, match="neither a list of entries nor an OPTIMADE response"):
        import_hull(as_file(folder / "other.json", {"energy": 1}))
    (folder / "torn.json").write_text("[{")
    with pytest.raises(RelaxError, match=r"torn.json: cannot be read"):
        import_hull(folder / "torn.json")
    table = folder / "table.csv"
    table.write_text("formula,energy_per_atom\nLi,-1.9\n")
    with pytest.raises(RelaxError, match="a csv is taken whole"):
        import_hull(table, energy_scheme="mp2020", elements=["Li"])
