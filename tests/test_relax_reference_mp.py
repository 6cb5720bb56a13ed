"""The Materials Project's own client against a server on this machine.

The documents are made by emmet-core, as the Materials Project makes them; the server answers as
its API does: heartbeat, filters, chosen fields, pages.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

import pytest
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from relax import reference_sources
from relax.errors import RelaxError
from relax.hull import Hull, describe
from relax.reference import hull_files, import_hull

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("mp_api") is None,
        reason="the client is not installed; uv sync --extra mp",
    ),
    # emmet-core asks spglib in its old way
    pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning"),
]

KEY = "0123456789abcdef" * 2
OXIDE = Structure.from_spacegroup(
    225, Lattice.cubic(4.63), ["Li", "O"], [[0.25, 0.25, 0.25], [0, 0, 0]]
)
CRYSTALS = {  # and eV of the cell
    "mp-135": (Structure(Lattice.cubic(3.44), ["Li", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]]), -3.8),
    "mp-13": (Structure(Lattice.cubic(2.83), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]]), -16.9),
    "mp-12957": (Structure(Lattice.cubic(6.0), ["O", "O"], [[0, 0, 0], [0.2, 0, 0]]), -9.9),
    "mp-1960": (OXIDE, -57.2),
    "mp-553090": (OXIDE.copy().apply_strain(0.1, inplace=False), -55.0),
    "mp-18905": (
        Structure.from_spacegroup(225, Lattice.cubic(4.3), ["Fe", "O"], [[0, 0, 0], [0.5, 0, 0]]),
        -52.0,
    ),
}
POTCARS = {"Li": "PAW_PBE Li_sv", "Fe": "PAW_PBE Fe_pv", "O": "PAW_PBE O"}
HEARTBEAT = {
    "status": "OK",
    "version": "0.88.1",
    "db_version": "2026.10.1",
    "access_controlled_batch_ids": ["gnome_r2scan"],
}


def entry(name, run_type):
    """A calculation before corrections; with r2SCAN far lower, as another functional's may be."""
    structure, energy = CRYSTALS[name]
    hubbards = {"Fe": 5.3, "O": 0.0} if run_type == "GGA+U" else {}
    return ComputedStructureEntry(
        structure,
        energy - (100.0 if run_type == "r2SCAN" else 0.0),
        parameters={
            "run_type": run_type,
            "is_hubbard": bool(hubbards),
            "hubbards": hubbards,
            "potcar_spec": [
                {"titel": POTCARS[str(one)]}  # codespell:ignore titel
                for one in structure.elements
            ],
        },
        data={
            "material_id": name,
            "task_id": name,
            "run_type": run_type,
            "aspherical": True,
            "oxide_type": "oxide" if len(structure.elements) > 1 else "None",
        },
        entry_id=f"{name}-{run_type}",
    )


@pytest.fixture(scope="module")
def documents():
    """What the API has of Li-Fe-O: of the type that is asked for, and of the default, mixed one."""
    from emmet.core.thermo import ThermoDoc

    plain = [entry(name, "GGA+U" if name == "mp-18905" else "GGA") for name in CRYSTALS]
    plain = MaterialsProject2020Compatibility().process_entries(plain)
    mixed = [entry(name, "r2SCAN") for name in CRYSTALS]
    return [
        document.model_dump(mode="json")
        for entries, kind in [(plain, "GGA_GGA+U"), (mixed, "GGA_GGA+U_R2SCAN")]
        for document in ThermoDoc.from_entries(entries, kind, deprecated=False)
    ]


@pytest.fixture
def api(documents, tmp_path, monkeypatch):
    """The API: its documents, what was asked of it, and its answers instead (None: silence)."""
    from mp_api.client.core.settings import MAPI_CLIENT_SETTINGS

    state = SimpleNamespace(documents=list(documents), asked=[], instead={}, over=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            address = urlparse(self.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            state.asked.append((address.path, query, self.headers["x-api-key"]))
            usual = HEARTBEAT if address.path == "/heartbeat" else found(query)
            answer = state.instead.get(address.path, (200, usual))
            if answer is None:
                state.over.wait(60)
                return
            status, body = answer
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    def found(query):
        systems, formulas = (query.get(name, "").split(",") for name in ("chemsys", "formula"))
        formulas = [Composition(one).reduced_formula for one in formulas if one]
        hits = [
            one
            for one in state.documents
            if one["thermo_type"] in query["thermo_types"].split(",")
            and (one["chemsys"] in systems or one["formula_pretty"] in formulas)
        ]
        begin, fields = int(query.get("_skip", 0)), query["_fields"].split(",")
        page = hits[begin : begin + int(query["_limit"])]
        return {
            "data": [{field: one[field] for field in fields} for one in page],
            "meta": {"api_version": "0.88.1", "total_doc": len(hits), "max_limit": 1000},
        }

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setattr(MAPI_CLIENT_SETTINGS, "ENDPOINT", state.url)
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.setenv("SYMMBFN_HOME", str(tmp_path))
    yield state
    state.over.set()
    server.shutdown()
    server.server_close()


def ask(*elements):
    import_hull("mp", elements=elements or ["Li", "Fe", "O"], name="lifeo")
    return Hull.load("lifeo")


def test_all_pages_make_the_hull_of_the_materials_project(api, monkeypatch):
    from mp_api.client.core import BaseRester

    search = BaseRester._search  # its pages are of 1,000
    monkeypatch.setattr(
        BaseRester, "_search", lambda self, **query: search(self, **{**query, "chunk_size": 2})
    )
    hull = ask()
    assert hull.energy_scheme == "mp2020" and hull.elements == {"Li", "Fe", "O"}
    assert describe("lifeo").header["source"] == "Materials Project 2026.10.1, Li-Fe-O"
    plain = [one for one in api.documents if one["thermo_type"] == "GGA_GGA+U"]
    compositions = [Composition(one["composition"]) for one in plain]
    energies = [one["energy_per_atom"] for one in plain]
    formation = hull.formation_energy_per_atom(compositions, energies, "mp2020")
    assert formation == pytest.approx([one["formation_energy_per_atom"] for one in plain], abs=3e-6)
    above = hull.energy_above_hull(compositions, formation)
    assert above == pytest.approx([one["energy_above_hull"] for one in plain], abs=3e-6)
    corrections = [one["energy_per_atom"] - one["uncorrected_energy_per_atom"] for one in plain]
    assert sum(above > 0.1) == 1 and min(corrections) < -1  # FeO's: of O and of Fe with U
    thermo = [asked for asked in api.asked if asked[0] == "/materials/thermo/"]
    skipped = [query.get("_skip") for _, query, _ in thermo if "chemsys" in query]
    assert skipped == [None, "2"]
    assert {(query["thermo_types"], key) for _, query, key in thermo} == {("GGA_GGA+U", KEY)}


def test_another_functional_in_the_answer_is_refused(api):
    api.documents = [{**one, "thermo_type": "GGA_GGA+U"} for one in api.documents]
    message = r"row 2 \(O2, mp-12957-r2SCAN\) was computed with r2SCAN"
    with pytest.raises(RelaxError, match=message):
        ask()
    assert not hull_files().keys() & {"lifeo"}


def test_a_wrong_key_is_one_line_and_exit_code_2(api, tmp_path):
    api.instead["/materials/thermo/"] = (401, {"message": "Unauthorized"})
    command = "from flows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, *"hull import mp --name lifeo --elements Li,O".split()],
        capture_output=True,
        text=True,
        env={**os.environ, "MP_API_ENDPOINT": api.url},
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [
        'error: Materials Project: it refuses the key in MP_API_KEY (401: {"message": '
        '"Unauthorized"}); take that of your account at https://materialsproject.org/api'
    ]
    assert {key for path, _, key in api.asked if path != "/heartbeat"} == {KEY}


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/heartbeat", None, "cannot be reached .TimeoutError: no answer in 0.5 s"),
        ("/materials/thermo/", None, "cannot be reached .TimeoutError: timed out"),
        ("/heartbeat", (503, "<html>"), "answer cannot be used .JSONDecodeError: .*update mp-api"),
        ("/materials/thermo/", (503, "<html>\nLater"), "answers 503: <html>; try again later"),
        ("/materials/thermo/", (403, "{}"), r"refuses the key in MP_API_KEY \(403"),
        ("/materials/thermo/", (422, {"detail": "too many"}), "answers 422: too many; try again"),
        ("/materials/thermo/", (429, "{}"), "ResponseError: too many 429 error responses"),
        ("/materials/thermo/", (200, "<html>"), "answer cannot be used .JSONDecodeError"),
        (
            "/materials/thermo/",
            (200, {"data": [{"entries": {"GGA": {"energy": 1}}}], "meta": {"total_doc": 1}}),
            "answer cannot be used",
        ),
        (
            "/materials/thermo/",
            (200, {"data": [], "meta": {"total_doc": 0}}),
            "has no entries with Fe, Li, O",
        ),
    ],
)
def test_what_the_server_says_or_does_not_say(api, monkeypatch, path, answer, message):
    import requests
    from mp_api.client.core.settings import MAPI_CLIENT_SETTINGS

    get = requests.Session.get  # waits 20 s, four times
    monkeypatch.setattr(MAPI_CLIENT_SETTINGS, "MAX_RETRIES", 1)
    monkeypatch.setattr(
        requests.Session, "get", lambda self, **given: get(self, **{**given, "timeout": 0.5})
    )
    monkeypatch.setattr(reference_sources, "_SECONDS", 0.5)
    api.instead[path] = answer
    with pytest.raises(RelaxError, match=message) as refused:
        ask()
    assert "\n" not in str(refused.value) and KEY not in str(refused.value)


def test_no_server(api, monkeypatch):
    from mp_api.client.core.settings import MAPI_CLIENT_SETTINGS

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(MAPI_CLIENT_SETTINGS, "ENDPOINT", f"http://127.0.0.1:{port}/")
    with pytest.raises(RelaxError, match=r"cannot be reached .ConnectionRefusedError"):
        ask()


def test_what_is_not_asked_at_all(api, monkeypatch):
    with pytest.raises(RelaxError, match="there is no element 'li'"):
        ask("li", "O")  # to the client the material 294
    monkeypatch.setenv("MP_API_KEY", "short")
    with pytest.raises(RelaxError, match=r"Valid API keys are 32 characters.$"):
        ask()
    assert not api.asked


def test_elements_without_entries_are_named(api):
    api.documents = [one for one in api.documents if "Fe" not in one["elements"]]
    with pytest.raises(RelaxError, match=r"has no entries with Fe$"):
        ask()
