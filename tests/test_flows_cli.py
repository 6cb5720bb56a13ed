"""The `symmbfn` command: help, and one clear line with exit code 2 for every bad input."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pymatgen.core import Lattice, Structure

from flows.cli import app, run
from flows.commands.common import cell
from flows.commands.query import ExportFormat, file_name, guarded
from relax.hull import Hull
from relax.potentials import find
from symmbfn import sample
from symmbfn.files import read_structures, write_structures
from tests.flows_support import crystals, rocksalt, tiny_checkpoint

COMMANDS = [
    ["discover"],
    ["work"],
    ["generate"],
    ["relax"],
    ["screen"],
    ["candidates"],
    ["show"],
    ["export"],
    ["train"],
    ["evaluate"],
    ["retrain"],
    ["checkpoints", "promote"],
    ["loop"],
    ["data", "import"],
    ["data", "info"],
    ["hull", "build"],
    ["hull", "import"],
    ["hull", "info"],
    ["potentials"],
    ["dft", "submit"],
    ["dft", "collect"],
    ["dft", "list"],
    ["db", "upgrade"],
    ["db", "info"],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SYMMBFN_DB", raising=False)
    return tmp_path


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def refused(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *says: str
) -> None:
    """Check that arguments give exit code 2, one line, and no file."""
    before = listing(folder)
    code = run(arguments)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for words in says:
        assert words in captured.err
    assert listing(folder) == before


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: symmbfn {' '.join(command)}" in shown


def test_no_command_is_missing_from_the_list_above() -> None:
    def names(group: object, prefix: list[str]) -> list[list[str]]:
        found = []
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            nested = hasattr(command, "commands")
            found += names(command, [*prefix, name]) if nested else [[*prefix, name]]
        return found

    assert sorted(names(typer.main.get_command(app), [])) == sorted(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from flows.cli import run; run(['--help']); "
        "print([m for m in ('torch', 'prefect', 'pymatgen', 'sqlalchemy') if m in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["discver"], "No such command 'discver'"),
        (["discover", "--elments", "Li"], "--elements"),
        (["discover", "-n", "many"], "'-n'"),
        (["discover", "-n", "0"], "n: input should be greater"),
        (["discover", "--seed", "-1"], "seed: "),
        (["discover", "--elements", "Li,Fo"], "unknown element 'Fo'"),
        (["discover", "--elements", "Li", "--exclude", "Li"], "exclude takes all of them away"),
        (["discover", "--space-group", "300"], "no space group 300"),
        (["discover", "--space-group", "cubic"], "symbols such as Fm-3m"),
        (["discover", "--property", "band_gap"], "write NAME=VALUE"),
        (["discover", "--key", "a b"], "key: "),
        (["discover", "nothing.toml"], "nothing.toml: No such file"),
        (["discover", "--checkpoint", "nothing"], "checkpoint nothing does not exist"),
        (["generate", "-n", "2"], "Missing option '--out'"),
        (
            ["generate", "-n", "2", "--out", "x.cif", "--checkpoint", "promoted"],
            "generate reads no database; give the folder that `symmbfn checkpoints` tells",
        ),
        (["generate", "-n", "2", "--out", "x.pdf"], "must end in .cif, .extxyz, .jsonl"),
        (["generate", "-n", "2", "--out", "no/x.cif"], "no folder"),
        (["generate", "-n", "2", "--out", "/proc/x.cif"], "nothing can be written in /proc"),
        (["generate", "-n", "2", "--out", "/proc", "--force"], "must end in"),
        (["generate", "-n", "1", "--out", "x.cif", "--formula", "Li0"], "'Li0' cannot be"),
        (["generate", "-n", "1", "--out", "x.cif", "--formula", "Li0O"], "'Li0O' cannot be"),
        (["generate", "-n", "1", "--out", "x.cif", "--formula", "DO2"], "'DO2' cannot be"),
        (
            ["generate", "-n", "1", "--out", "x.cif", "--property", "a=1", "--property", "a=2"],
            "--property a is given 2 times",
        ),
        (["relax", "", "--out", "x.cif"], "after 'relax': an empty argument"),
        (["", "relax"], "after 'symmbfn': an empty argument"),
        (["candidates", "--db="], "--db=: an empty argument"),
        (["discover", "--key", ".x"], "key: begin with a letter, digit or _, then"),
        (["generate", "-n", "1", "--out", "x.cif", "--formula", "CuSO4.5H2O"], "CuSO4(H2O)5"),
        (["relax", "nothing.cif", "--out", "x.cif"], "nothing.cif"),
        (["relax", "nothing.cif", "--out", "x.cif", "--potential", "magic"], "'magic'"),
        (["screen", "nothing.cif", "--potential", "magic"], "'magic'"),
        (["candidates"], "symmbfn discover"),
        (["candidates", "--limit", "0"], "--limit"),
        (["candidates", "--limit", "99999999999999999999"], "--limit"),
        (["candidates", "--db", "sqlite://"], "a database in memory, which ends with the command"),
        (["candidates", "--db", "sqlite:///file::memory:?uri=true"], "a database in memory"),
        (["candidates", "--json", "--format", "csv"], "drop one of them"),
        (["checkpoints", "promote", "99999999999999999999"], "'ID'"),
        (["retrain", "nothing.toml"], "the [retrain] table of examples/loop.toml"),
        (["loop", "nothing.toml"], "such as examples/loop.toml"),
        (["candidates", "--format", "xml"], "--format"),
        (["generate", "-n", "1", "--out", "x.cif", "--space-group", "Fm3x"], "such as Fm-3m"),
        (["discover", "-n", "1", "--device", "cuda:99"], "device 'cuda:99' is not to be had here"),
        (["discover", "-n", "1", "--device", "gpu"], "no device 'gpu'; there are cpu, cuda"),
        (["screen", "x.cif", "--judge-hull", "chgnet"], "give --judge too"),
        (["show"], "Missing argument 'ID'"),
        (["show", "sbfn-1"], "symmbfn discover"),
        (["export", "is_stable = TRUE"], "Missing option '--to'"),
        (["candidates", "--db", "nonsense"], "nonsense"),
        (["train", "nothing.safetensors", "--out", "x"], "nothing.safetensors"),
        (["data", "import", "nothing.csv", "--out", "x.safetensors"], "nothing.csv"),
        (["data", "info", "nothing.safetensors"], "nothing.safetensors"),
        (["evaluate", "nothing.cif"], "no such file or checkpoint 'nothing.cif'; give"),
        (["evaluate", "mp20", "--hull", "mine"], "--hull mine needs --potential"),
        (["evaluate", "mp20", "--max-relax-steps", "9"], "--max-relax-steps 9 needs --potential"),
        (["hull", "info", "nothing.csv"], "nothing.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(arguments, place, capsys, says)


def test_a_file_of_other_bytes_or_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.csv").write_bytes(b"material_id,cif\n1,\xff\xfe\n")
    refused(["relax", "bad.csv", "--out", "x.cif"], place, capsys, "bad.csv", "not readable as csv")
    (place / "empty.db").touch()
    refused(["candidates", "--db", "sqlite:///empty.db"], place, capsys, "empty.db is empty")
    (place / "dask.toml").write_text('[dask]\ncluster = "LocalCluster"\n')
    refused(["discover", "dask.toml"], place, capsys, "dask.cluster: write module.Class")
    (place / "loop.toml").write_text(f"name = '{'x' * 81}'\n")
    refused(["loop", "loop.toml"], place, capsys, "in all at most 80")
    (place / "loop.toml").write_text("rounds = 2\n")
    refused(["loop", "loop.toml"], place, capsys, "loop.toml: name is missing; give it")
    (place / "folder.cif").mkdir()
    refused(
        ["generate", "-n", "1", "--out", "folder.cif"], place, capsys, "is a folder; name a file"
    )


def test_a_wrong_key_in_a_campaign_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.toml").write_text("[conditions]\nelemnts = ['Li']\n")
    refused(["discover", "mine.toml"], place, capsys, "mine.toml", "conditions.elemnts", "elements")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--property", "colour=1"], "colour"),
        (["--elements", "Fe"], "Fe"),
        (["--space-group", "2"], "2"),
    ],
)
def test_what_the_generator_was_never_shown(
    options: list[str],
    says: str,
    checkpoint: Path,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["generate", "-n", "1", "--checkpoint", str(checkpoint), "--out", "x.cif"]
    refused([*arguments, *options], place, capsys, says)


def test_a_truncated_and_a_foreign_checkpoint(
    checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = place / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    arguments = ["generate", "-n", "1", "--out", "x.cif", "--checkpoint"]
    refused([*arguments, str(broken)], place, capsys, "broken", "truncated")
    (broken / "config.json").write_text("{}")
    refused([*arguments, str(broken)], place, capsys, "broken", "not ours")


def test_a_file_without_a_readable_structure(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bad.cif").write_text("this is no crystal\n")
    refused(["relax", "bad.cif", "--out", "x.cif"], place, capsys, "bad.cif")
    refused(["screen", "bad.cif"], place, capsys, "bad.cif")


def test_options_for_generators_are_refused_beside_a_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_structures("salt.cif", [rocksalt("Na", "Cl", 5.6)])
    for option in ("-n", "--seed", "--steps"):
        says = f"{option} 5 is for generators, and salt.cif is a file"
        refused(["evaluate", "salt.cif", option, "5"], place, capsys, says)


def test_no_file_is_written_where_nothing_can_be_relaxed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_structures("noble.jsonl", [rocksalt("Rn", "Po", 6)], [{"name": "strange"}])
    arguments = ["relax", "noble.jsonl", "--out", "x.cif", "--workers", "1"]
    refused(arguments, place, capsys, "noble.jsonl: none of its 1", "strange: ")


def test_a_hull_cannot_be_imported_under_a_shipped_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "chgnet.csv").write_text("formula,energy_per_atom\nLi,-1.9\n")
    arguments = ["hull", "import", "chgnet.csv", "--energy-scheme", "mp2020"]
    refused(arguments, place, capsys, "'chgnet' is that of a shipped hull; give another")


def test_an_output_file_is_never_overwritten_silently(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "x.cif").write_text("precious")
    refused(["generate", "-n", "1", "--out", "x.cif"], place, capsys, "x.cif", "--force")


def test_generate_writes_what_was_asked_for(
    checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(checkpoint), "--steps", "3", "--elements", "Ca,Mg,O"]
    assert run(["generate", "-n", "3", "--out", "a.extxyz", *options]) == 0
    assert run(["generate", "-n", "3", "--out", "b.extxyz", *options]) == 0
    assert run(["generate", "-n", "3", "--out", "c.extxyz", "--seed", "1", *options]) == 0
    assert "wrote 3 crystals to a.extxyz" in capsys.readouterr().out
    texts = [(place / f"{name}.extxyz").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    for entry in read_structures(place / "a.extxyz"):
        assert entry.structure is not None
        assert set(entry.structure.symbol_set) <= {"Ca", "Mg", "O"}


def test_generate_says_when_fewer_come_back(
    checkpoint: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    really = sample.sample

    def fewer(checkpoint: str, n: int, **more: Any) -> Any:
        return really(checkpoint, n - 1, **more)

    monkeypatch.setattr(sample, "sample", fewer)
    options = ["--checkpoint", str(checkpoint), "--steps", "3"]
    assert run(["generate", "-n", "3", "--out", "a.extxyz", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("wrote 2 of 3 crystals to a.extxyz; ")
    assert out.endswith("; loosen the conditions\n")


def test_data_are_imported_and_described(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    structures = crystals()
    write_structures("mine.jsonl", structures, [{"band_gap": 1.0}] * len(structures))
    assert run(["data", "import", "mine.jsonl", "--out", "mine.safetensors"]) == 0
    assert "wrote 6 crystals with band_gap" in capsys.readouterr().out
    assert run(["data", "info", "mine.safetensors", "--json"]) == 0
    assert '"crystals": 6' in capsys.readouterr().out


def test_zero_has_no_sign() -> None:
    assert [cell(value) for value in (-0.0004, 0.0004, -0.0006)] == ["0.000", "0.000", "-0.001"]


def test_names_and_cells_cannot_harm() -> None:
    assert file_name("sbfn-1", "LiFe(PO4)", ExportFormat.CIF) == "sbfn-1_LiFePO4.cif"
    assert file_name("../../etc/x", "..\\a/b", ExportFormat.POSCAR) == "etcx_ab.vasp"
    assert guarded('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert [guarded(value) for value in ("+1", "@a", "LiO", -0.5)] == ["'+1", "'@a", "LiO", -0.5]


def test_a_hull_is_built_from_the_command_line_and_tells_what_was_left_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    salt = rocksalt("Na", "Cl", 5.6)
    sodium = Structure(Lattice.cubic(4.2), ["Na", "Na"], [[0] * 3, [0.5] * 3])
    chlorine = Structure(Lattice.cubic(5.0), ["Cl", "Cl"], [[0] * 3, [0.39, 0, 0]])
    write_structures(place / "known.extxyz", [salt, sodium, chlorine])
    build = ["hull", "build", "--structures", "known.extxyz", "--out", "mine.csv"]
    given = [*build, "--relax-within", "0.03", "--trusted", "chgnet", "--workers", "1", "--json"]
    assert run(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["compositions"], told["without_energy"], told["unreadable"]) == (3, "0", 0)
    assert int(told["relaxed"]) + int(told["not_converged"]) == 3
    assert {file.name for file in place.iterdir()} == {"known.extxyz", "mine.csv"}
    assert Hull.load("mine.csv").scheme_for(find("chgnet")) == "self-consistent:chgnet"
    refused(build, place, capsys, "mine.csv")
    refused([*build[:-1], "a.csv", "--device", "cuda:99"], place, capsys, "'cuda:99' is not to be")
    refused([*build[:-1], "a.csv", "--trusted", "nothing"], place, capsys, "no hull 'nothing'")


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize(
    "arguments",
    [
        ["hull", "import", "FILE", "--name", "mine"],
        ["data", "import", "FILE", "--out", "mine.safetensors"],
        ["evaluate", "FILE"],
        ["screen", "FILE"],
        ["screen", "salt.cif", "--reference", "FILE"],
        ["discover", "--checkpoint", "FILE"],
    ],
)
@pytest.mark.parametrize("file", ["bad.pkl", "bad.npz", "bad.json", "bad.safetensors"])
def test_pickles_are_never_loaded(
    arguments: list[str], file: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "salt.cif").write_text(rocksalt("Na", "Cl", 5.6).to(fmt="cif"))
    if file == "bad.npz":
        np.savez(place / file, hashes=np.array([Payload()], dtype=object))
    else:
        (place / file).write_bytes(pickle.dumps(Payload()))
    refused([file if one == "FILE" else one for one in arguments], place, capsys, "bad.")
    assert not (place / "unpickled").exists()
