"""Reference energies from elsewhere: Materials Project entries, and OPTIMADE providers.

Both become the columns of a csv, `formula` and an energy, and are checked as a csv is.

- Entries are those of `mp_api.client.MPRester`, asked for here or in a file that `monty` wrote.
- OPTIMADE structures come from a provider's URL or a saved response; what its own fields mean has
  to be said, as `formation_energy_per_atom=_oqmd_delta_e`; dots lead into a field.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from relax.errors import RelaxError
from relax.reference_file import FORMATION, TOTAL

MATERIALS_PROJECT = "mp"
KEY = "MP_API_KEY"
_RUN_TYPES = frozenset({"GGA", "GGA+U", "GGA_U", "PBE", "PBE+U"})
_STATUS = re.compile(r"status code (\d+) on URL \S+ with message:\s*(?:Response )?(.*)")
_FORMULA = "chemical_formula_reduced"
_SECONDS, _PAGES, _PAGE = 60, 10_000, 500


@dataclass(frozen=True)
class Table:
    """Rows as a csv would have them.

    Attributes:
        where: What error messages call it.
        quantity: `energy_per_atom` or `formation_energy_per_atom`.
        rows: With `formula` and the quantity.
        energy_scheme: Where the source itself implies one.
    """

    where: str
    quantity: str
    rows: list[dict[str, Any]]
    energy_scheme: str | None = None


def is_elsewhere(source: str) -> bool:
    """Tell whether a source is read here, and not as csv."""
    return (
        source == MATERIALS_PROJECT
        or source.startswith(("http://", "https://"))
        or source.endswith((".json", ".json.gz"))
    )


def read_elsewhere(
    source: str, *, elements: Sequence[str] = (), energy_field: str | None = None
) -> Table:
    """Read entries or OPTIMADE structures.

    Args:
        source: `mp`, the base URL of an OPTIMADE API, or a JSON file of either.
        elements: Of the chemical system to ask for; not for a file.
        energy_field: For OPTIMADE, QUANTITY=FIELD.

    Raises:
        RelaxError: What is missing, or what cannot be read and where.
    """
    _check_symbols(source, elements)
    if source == MATERIALS_PROJECT:
        version, entries = _ask_mp(elements)
        where = f"Materials Project {version}".rstrip() + f", {'-'.join(elements)}"
        return _entries(where, entries, "mp2020")
    if source.startswith(("http://", "https://")):
        return _optimade(source, _pages(source, elements, energy_field), energy_field)
    if elements:
        raise RelaxError(f"{source}: a file is taken whole; leave --elements out")
    data = _json(Path(source).expanduser())
    if isinstance(data, Mapping) and isinstance(data.get("data"), list):
        return _optimade(source, [data], energy_field)
    if not isinstance(data, list):
        raise RelaxError(
            f"{source}: neither a list of entries nor an OPTIMADE response; give one of these"
        )
    return _entries(source, data, None)


def _check_symbols(source: str, elements: Sequence[str]) -> None:
    """Refuse what is no element; the client of the Materials Project takes `li` for a material."""
    from ase.data import atomic_numbers

    for symbol in elements:
        if not atomic_numbers.get(symbol):
            raise RelaxError(f"{source}: there is no element {symbol!r}; write them as Li,Fe,O")


def _ask_mp(elements: Sequence[str]) -> tuple[str, list[Any]]:
    """Ask the Materials Project for all entries of a chemical system and its subsystems.

    Returns:
        The version of its database, "" where it does not say; and the entries, sorted by id.
    """
    if not elements:
        raise RelaxError("Materials Project: name the elements, such as --elements Li,Fe,O")
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise RelaxError(
            f"Materials Project: no key; put the one of your account into the environment as {KEY}"
        )
    try:
        from mp_api.client import MPRester
    except ImportError as error:
        raise RelaxError(
            f"Materials Project: its client cannot be had ({error}); `uv sync --extra mp`"
        ) from error
    try:
        with _connect(MPRester, key) as client:
            version = str(getattr(client, "db_version", None) or "")
            entries = client.get_entries_in_chemsys(
                list(elements), additional_criteria={"thermo_types": ["GGA_GGA+U"]}
            )
    except Exception as error:  # the client raises classes of several libraries
        raise RelaxError(f"Materials Project: {_reason(error)}") from error
    found = {symbol for entry in entries for symbol in entry.composition.chemical_system_set}
    if absent := sorted(set(elements) - found):
        raise RelaxError(f"Materials Project: it has no entries with {', '.join(absent)}")
    return version, sorted(entries, key=lambda entry: str(entry.entry_id))


def _connect(client: Any, key: str) -> Any:
    """Make the client, which would wait for the server's first word without end."""
    with ThreadPool(1) as pool:
        try:
            return pool.apply_async(client, [key]).get(_SECONDS)
        except multiprocessing.TimeoutError:
            raise TimeoutError(f"no answer in {_SECONDS} s") from None


def _reason(error: BaseException) -> str:
    """Say in one line what the client met with."""
    if answer := _STATUS.search(str(error)):
        code, message = answer.groups()
        if code in ("401", "403"):
            return (
                f"it refuses the key in {KEY} ({code}: {message:.100}); take that of your account "
                "at https://materialsproject.org/api"
            )
        return f"it answers {code}: {message:.100}; try again later, or update mp-api"
    cause = error
    while inner := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        cause = inner
    text = str(cause).partition("\n")[0][:200]
    why = f"{type(cause).__name__}: {text}"
    if isinstance(cause, OSError):
        return f"it cannot be reached ({why}); try again later"
    if type(cause).__name__ == "MPRestError":
        return text
    return f"its answer cannot be used ({why}); try again later, or update mp-api"


def _entries(where: str, entries: Sequence[Any], energy_scheme: str | None) -> Table:
    """Take the corrected energies of entries, or of what `as_dict` made of them."""
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    rows = []
    for number, given in enumerate(entries, start=1):
        try:
            entry = given
            if isinstance(given, Mapping):
                kind = ComputedStructureEntry if "structure" in given else ComputedEntry
                entry = kind.from_dict(dict(given))
            name = str(entry.entry_id)
            run_type = entry.parameters.get("run_type") or entry.data.get("run_type")
            formula = entry.composition.element_composition.reduced_formula
            rows.append({"formula": formula, TOTAL: float(entry.energy_per_atom)})
        except Exception as error:  # pymatgen raises whatever a broken entry leads it to
            raise RelaxError(
                f"{where}: row {number} is no entry ({type(error).__name__}); mend or remove it"
            ) from error
        if run_type is not None and str(run_type) not in _RUN_TYPES:
            raise RelaxError(
                f"{where}: row {number} ({formula}, {name}) was computed with {run_type}, which "
                "cannot stand beside GGA and GGA+U; ask for thermo_types GGA_GGA+U"
            )
    return Table(where, TOTAL, rows, energy_scheme)


def _optimade(
    where: str, responses: Sequence[Mapping[str, Any]], energy_field: str | None
) -> Table:
    """Take the provider's energies out of OPTIMADE responses."""
    quantity, path = _field(where, energy_field)
    rows: list[dict[str, Any]] = []
    for response in responses:
        for structure in response["data"]:
            number = len(rows) + 1
            try:
                value: Any = structure["attributes"]
                formula = value[_FORMULA]
                for key in path:
                    value = None if value is None else value.get(key)
            except (KeyError, TypeError, AttributeError) as error:
                raise RelaxError(
                    f"{where}: row {number} is no OPTIMADE structure with {_FORMULA} and "
                    f"{'.'.join(path)} ({type(error).__name__}); ask for these fields"
                ) from error
            rows.append({"formula": formula, quantity: value})
    return Table(where, quantity, rows)


def _field(where: str, energy_field: str | None) -> tuple[str, list[str]]:
    quantity, _, path = (energy_field or "").partition("=")
    if quantity not in (TOTAL, FORMATION) or not path:
        raise RelaxError(
            f"{where}: say which of its fields is the energy in eV/atom, such as "
            f"--energy-field {FORMATION}=_oqmd_delta_e ({TOTAL}=… for total energies)"
        )
    return quantity, path.split(".")


def _pages(base: str, elements: Sequence[str], energy_field: str | None) -> list[Mapping[str, Any]]:
    """Fetch all pages of the structures of some elements."""
    _, path = _field(base, energy_field)
    if not elements:
        raise RelaxError(f"{base}: name the elements, such as --elements Li,Fe,O")
    quoted = ",".join(f'"{symbol}"' for symbol in elements)
    query = {
        "filter": f"elements HAS ONLY {quoted}",
        "response_fields": f"{_FORMULA},{path[0]}",
        "page_limit": _PAGE,
    }
    root = base.rstrip("/").removesuffix("/structures").removesuffix("/v1")
    url: str | None = f"{root}/v1/structures?{urllib.parse.urlencode(query)}"
    pages = list[Mapping[str, Any]]()
    while url:
        if len(pages) == _PAGES or not url.startswith(("http://", "https://")):
            raise RelaxError(f"{base}: its pages do not end; ask for fewer elements")
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                page = json.load(response)
            link = (page.get("links") or {}).get("next")
            if not isinstance(page["data"], list):
                raise TypeError("data is no list")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = str(error).partition("\n")[0]
            raise RelaxError(
                f"{base}: page {len(pages) + 1} cannot be had ({type(error).__name__}: {why:.120})"
            ) from error
        pages.append(page)
        url = link.get("href") if isinstance(link, Mapping) else link
    return pages


def _json(path: Path) -> Any:
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, ValueError, EOFError) as error:
        raise RelaxError(
            f"{path}: cannot be read ({type(error).__name__}); give a JSON file"
        ) from (error)
