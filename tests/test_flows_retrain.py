"""Retraining: what is trained on, what is replayed, the gate, and which checkpoint is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from sqlalchemy import select

from db import training
from db.errors import DatabaseError
from db.models import Checkpoint
from db.session import Database, open_database
from flows import checkpoints, gate, inputs, stage_retrain, training_set
from flows.errors import ConfigError
from flows.report_intervals import difference_interval
from flows.retrain_settings import GateSettings, RetrainConfig
from flows.sample_figures import Figures, Mean, concentration, mean_correction
from flows.settings import CampaignConfig, FunnelSettings
from relax.errors import RelaxError
from tests.flows_support import (
    crystals,
    rocksalt,
    run_stages,
    symmbfn,
    tiny_checkpoint,
    tiny_config,
)

# ---------------------------------------------------------------- sets


def _data(structures: list[Structure], **columns: list[float]):  # type: ignore[no-untyped-def]
    from symmbfn.data import preprocess

    return preprocess(structures, columns)[0]


def test_rows_taken_and_joined_give_the_same_batches() -> None:
    from symmbfn.mixture import join, take

    blende = Structure.from_spacegroup(
        216, Lattice.cubic(5.4), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    )
    salts = [blende, *crystals(), rocksalt("Mg", "O", 4.2)]
    data = _data(salts, band_gap=[float(i) for i in range(len(salts))])
    assert len(set((data.view_starts[1:] - data.view_starts[:-1]).tolist())) > 1
    joined = join([take(data, [7, 0]), take(data, [3, 3])], ("energy", "band_gap"))
    assert joined.properties[:, 1].tolist() == [7.0, 0.0, 3.0, 3.0]
    assert joined.properties[:, 0].isnan().all()
    for row, source in enumerate([7, 0, 3, 3]):
        views = [
            one.letters[one.view_starts[i] : one.view_starts[i + 1]].tolist()
            for one, i in ((joined, row), (data, source))
        ]
        assert views[0] == views[1]
        ours, theirs = joined.batch([row]), data.batch([source])
        assert torch.equal(ours.coordinates, theirs.coordinates)
        assert torch.equal(ours.lattice, theirs.lattice)


def test_a_chemical_system_is_held_out_whole_and_always() -> None:
    from symmbfn.mixture import held_out, take

    structures = [
        Structure(one.lattice, pair, one.frac_coords)
        for one in crystals()
        for pair in (["Mg", "O"], ["Ca", "S"], ["K", "I"], ["Li", "F"], ["O", "Mg"], ["Rb", "Br"])
    ]
    data = _data(structures)
    apart = held_out(data, 0.5)
    systems = [frozenset(one.symbol_set) for one in structures]
    sides = {(system, bool(side)) for system, side in zip(systems, apart, strict=True)}
    assert len(sides) == len(set(systems))
    assert {side for _, side in sides} == {True, False}
    assert torch.equal(held_out(take(data, [5, 2]), 0.5), apart[[5, 2]])
    assert not held_out(data, 1e-9).any()


def test_equal_crystals_have_equal_identities_in_any_description() -> None:
    from symmbfn.mixture import identities

    salt = rocksalt("Na", "Cl", 5.6)
    moved = salt.get_primitive_structure().translate_sites([0, 1], [0.5, 0.5, 0.5])
    same, shifted, other = identities(_data([salt, moved, rocksalt("Na", "Br", 5.6)]))
    assert same == shifted != other


@pytest.mark.parametrize(("n", "others", "share"), [(3, 30, 0.25), (40, 30, 0.25), (1, 9, 0.5)])
def test_generated_crystals_get_their_share_and_come_equally_often(
    n: int, others: int, share: float
) -> None:
    from symmbfn.mixture import repeated

    rows = repeated(n, others, share, seed=0)
    assert len(rows) / (len(rows) + others) == pytest.approx(share, abs=0.02)
    counts = np.bincount(rows.numpy(), minlength=n)
    assert counts.max() - counts.min() <= 1


def test_no_element_gets_beyond_its_cap_and_the_first_stay() -> None:
    many = [{"Yb", "O"}] * 30 + [{"Li", "O"}] * 10 + [{"Na", "F"}] * 10
    caps = {"O": 0.9, "Li": 0.5, "Na": 0.5, "F": 0.5}
    kept = training_set.within_caps(many, caps)
    chosen = [many[place] for place in kept]
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert sum("Yb" in one for one in chosen) == training_set.ALWAYS
    assert sum("Li" in one for one in chosen) == 10


def test_self_replay_has_targets_as_properties_and_templates_keep_the_parents(
    tmp_path: Path,
) -> None:
    from symmbfn.checkpoint import load_card, load_model
    from symmbfn.replay import Origin, finish, self_replay

    card = load_card(tiny_checkpoint(tmp_path / "parent"))
    drawn = self_replay(card, 32, seed=1)
    known = ~drawn.properties.isnan().any(1)
    assert 10 <= known.sum() <= 16 and len(drawn) >= 30
    assert set(drawn.properties[known].flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}

    new = _data([rocksalt("Rb", "I", 7.3)] * 2, formation_energy_per_atom=[-1.5] * 2, band_gap=[
        float("nan")] * 2)  # fmt: skip
    once = load_card(finish(card, Origin(card, None, new, 0.4), tmp_path / "once"))
    twice = load_card(finish(once, Origin(once, None, new, 0.4), tmp_path / "twice"))
    parent, model = load_model(card), load_model(twice)
    assert len(model.templates) == 10  # six of the parent, and 40 %, not 40 % twice
    assert torch.equal(model.templates[:6], parent.templates)
    assert model.templates[6:].tolist() == [[224, 2, 2]] * 4
    assert model.template_properties[6:, 0].tolist() == [-1.5] * 4
    assert model.elements[[36, 52]].all() and model.elements[parent.elements].all()
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in parent.named_parameters())


# ---------------------------------------------------------------- the gate

SAMPLE = Figures(
    n=100,
    draws=105,
    valid_draws=100,
    crystals=100,
    composition_valid=85,
    stable=15,
    metastable=50,
    novel=70,
    sun=10,
    msun=40,
    formulas=95,
    chemical_systems=90,
    space_groups=40,
    hhi=0.04,
    elements={"O": 40, "Li": 10},
    correction=Mean(-0.2, 0.02, 50),
)
LOSSES = {"parent": 4.40, "child": 4.42}


def test_an_equal_child_passes_the_gate() -> None:
    assert gate.worse(SAMPLE, SAMPLE, LOSSES, GateSettings()) == []
    better = replace(SAMPLE, sun=30, msun=70, chemical_systems=99)
    assert gate.worse(SAMPLE, better, LOSSES, GateSettings()) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"valid_draws": 70}, "valid draws"),
        ({"composition_valid": 60}, "valid compositions"),
        ({"sun": 1}, "S.U.N. 1.0%"),
        ({"msun": 20}, "metastable S.U.N."),
        ({"formulas": 70}, "formulas"),
        ({"chemical_systems": 60}, "chemical systems"),
        ({"space_groups": 20}, "space groups"),
        ({"hhi": 0.08}, "HHI"),
        ({"elements": {"O": 40, "Pm": 30}}, "Pm in 30%"),
        ({"correction": Mean(-0.5, 0.02, 50)}, "correction"),
    ],
)
def test_a_child_that_is_worse_in_one_thing_is_told_so(
    change: dict[str, object], word: str
) -> None:
    reasons = gate.worse(SAMPLE, replace(SAMPLE, **change), LOSSES, GateSettings())  # type: ignore[arg-type]
    assert len(reasons) == 1 and word in reasons[0]


@pytest.mark.parametrize("loss", [4.46, float("nan"), float("inf")])
def test_a_worse_or_broken_loss_is_a_reason(loss: float) -> None:
    reasons = gate.worse(SAMPLE, SAMPLE, {"parent": 4.40, "child": loss}, GateSettings())
    assert len(reasons) == 1 and "held-out loss" in reasons[0]


def test_chance_is_no_reason() -> None:
    unlucky = replace(SAMPLE, sun=7, msun=36, composition_valid=79, space_groups=33)
    assert gate.worse(SAMPLE, unlucky, LOSSES, GateSettings()) == []


def test_the_interval_of_a_difference_is_as_wide_as_theory_says() -> None:
    low, high = difference_interval((30, 100), (50, 100))
    error = 1.96 * (0.3 * 0.7 / 100 + 0.5 * 0.5 / 100) ** 0.5
    assert low == pytest.approx(0.2 - error, abs=0.015)
    assert high == pytest.approx(0.2 + error, abs=0.015)
    assert difference_interval((8, 8), (5, 8))[1] > 0  # all of a few is not certain of more


def test_signs_of_drift() -> None:
    assert concentration({"O": 5}) == 1.0
    assert concentration(dict.fromkeys("abcd", 3)) == pytest.approx(0.25)
    assert concentration({}) == 0.0
    oxides = mean_correction([rocksalt("Mg", "O", 4.2), rocksalt("Ca", "O", 4.8)])
    assert oxides.value == pytest.approx(-0.687 / 2, abs=1e-3) and oxides.n == 2
    assert np.isnan(mean_correction([]).value)


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Database]:
    """A folder, a tiny checkpoint, and a database with a campaign of it."""
    return _campaign(tmp_path_factory.mktemp("retrain"))


def _campaign(home: Path) -> tuple[Path, Path, Database]:
    checkpoint = tiny_checkpoint(home / "parent")
    url = f"sqlite:///{home / 'found.db'}"
    run_stages(tiny_config(checkpoint, url, n=6, batch_size=6))
    return home, checkpoint, open_database(url)


def _config(found: tuple[Path, Path, Database], **more: object) -> RetrainConfig:
    home, checkpoint, database = found
    like = tiny_config(checkpoint, database.url).model_dump()
    kept = ("batch_size", "steps", "reference", "database", "relaxation", "workers")
    table = {
        "filter": "energy_per_atom IS KNOWN",
        "checkpoint": str(checkpoint),
        "folder": str(home / "retrained"),
        "minutes": 1,
        "max_passes": 2,
        "replay": 24,
        "held_out_share": 0.4,
        "batch_size": 8,
        "element_factor": 50,
        "gate": {"n": 4, "diversity": 0},
        "campaign": {name: like[name] for name in kept},
        **more,
    }
    return RetrainConfig.build(table, where="test")


def test_a_retraining_from_the_query_to_the_promoted_checkpoint(
    found: tuple[Path, Path, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    from symmbfn.checkpoint import load_card
    from symmbfn.data import CrystalData

    _, parent, database = found
    config = _config(found, key="first", gate={"n": 4, "diversity": 0, "loss_margin": 9})
    frozen = training_set.freeze(config)
    checkpoint = stage_retrain.train(config, frozen)
    with database.session(write=False) as session:
        made, above = training.ancestry(session, checkpoint)
        members = list(training.members(session, [frozen]))
    assert above.sha256 == load_card(parent).sha256 and not made.is_decided
    assert all(set(one.properties) <= {"formation_energy_per_atom"} for one in members)
    assert any(one.properties for one in members)
    child = load_card(made.name)
    assert child.training["start_from"] == above.sha256
    assert made.metrics["training"]["generated_share"] == pytest.approx(0.25, abs=0.05)
    held_out = CrystalData.load(Path(made.name) / stage_retrain.HELD_OUT)
    assert 0 < len(held_out) < 24 + len(members)
    assert not (Path(made.name) / "training").exists()

    assert [one.n for one in gate.fresh_samples(config, checkpoint)] == [4, 4]
    first, second = gate.fresh_samples(config, checkpoint)
    assert first.key != second.key and first.seed != second.seed
    _assert_samples_are_whole_and_of_one_basis(config, checkpoint, monkeypatch)
    for sample in (first, second):
        run_stages(sample)
    gate.decide(config, checkpoint)
    with database.session(write=False) as session:
        made = training.ancestry(session, checkpoint)[0]
    assert made.is_decided and made.metrics["gate"]["sample"]["n"] == 4
    json.dumps(made.metrics, allow_nan=False)

    # nothing is repeated
    assert training_set.freeze(config) == frozen
    monkeypatch.setattr("symmbfn.train.train", None)
    assert stage_retrain.train(config, frozen) == checkpoint
    assert gate.fresh_samples(config, checkpoint) == []

    # the parent's sample is drawn once for all its children
    with database.session(write=False) as session:
        assert training.campaign_of_key(session, str(first.key)) is not None

    # going back and forth
    campaign = CampaignConfig.build(
        {"checkpoint": "promoted", "database": database.url}, where="test"
    )
    with database.session() as session:
        training.promote(session, made.id, force=True)
    assert checkpoints.resolved(campaign).checkpoint == made.name
    with database.session() as session:
        training.promote(session, above.id)
    assert checkpoints.resolved(campaign).checkpoint == str(parent)
    begun = campaign.model_copy(update={"key": second.key})  # it keeps what it began with
    assert checkpoints.resolved(begun).checkpoint == made.name
    _assert_promoted_is_checked(database, parent, monkeypatch)


def _assert_samples_are_whole_and_of_one_basis(
    config: RetrainConfig, checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples know no budget, and are others where they are relaxed or judged by something else."""
    key = gate.fresh_samples(config, checkpoint)[0].key

    def first(**changed: object) -> CampaignConfig:
        campaign = config.campaign.model_copy(update=changed)
        return gate.fresh_samples(config.model_copy(update={"campaign": campaign}), checkpoint)[0]

    thrifty = first(funnel=FunnelSettings(relax_budget=1))
    assert thrifty.funnel == FunnelSettings() and thrifty.key == key
    potential = inputs.potential_info(config.campaign.potential)
    for what, other in (
        ("relax.optimize.PROTOCOL", "another"),
        ("flows.inputs.load_reference", lambda _: SimpleNamespace(sha256="other structures")),
        ("flows.inputs.potential_info", lambda _: replace(potential, dtype="float64")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(what, other)
            assert first().key != key


def _assert_promoted_is_checked(
    database: Database, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promoted checkpoint is found from any folder later, and must be what was promoted."""
    monkeypatch.chdir(parent.parent)
    with database.session() as session:
        row = session.scalars(select(Checkpoint).where(Checkpoint.name == str(parent))).one()
        row.name = parent.name
    assert checkpoints.promoted(database.url) == str(parent)
    with database.session() as session:
        row = session.get_one(Checkpoint, row.id)
        row.name, whole = str(parent), row.sha256
        row.sha256 = "0" * 64
    with pytest.raises(ConfigError, match="holds other weights than it did"):
        checkpoints.promoted(database.url)
    with database.session() as session:
        session.get_one(Checkpoint, row.id).sha256 = whole


def test_a_killed_training_goes_on_with_the_same_set(
    found: tuple[Path, Path, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    import symmbfn.replay
    from symmbfn.checkpoint import load_card

    config = _config(found, key="killed", seed=3)
    frozen = training_set.freeze(config)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(symmbfn.replay, "finish", dies)
        with pytest.raises(KeyboardInterrupt):
            stage_retrain.train(config, frozen)
    work = Path(config.folder) / "killed" / "training"
    steps = load_card(work).training["steps"]
    monkeypatch.setattr(symmbfn.replay, "self_replay", dies)  # what was drawn is kept
    with found[2].session(write=False) as session:
        made = training.ancestry(session, stage_retrain.train(config, frozen))[0]
    assert made.metrics["training"]["steps"] == steps
    with pytest.raises(DatabaseError, match="another recipe"):
        training_set.freeze(_config(found, key="killed", seed=4))


def test_a_critic_learns_from_all_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from symmbfn.checkpoint import load_card, load_model
    from symmbfn.sample import proposals_of

    found = _campaign(tmp_path)  # its own: the other tests add crystals that count
    config = _config(found, key="critic", learn="critic", template_share=0)
    frozen = training_set.freeze(config)
    with pytest.raises(ConfigError, match=r"the energy of \d crystals .* needs 200"):
        stage_retrain.train(config, frozen)
    for module in ("critic", "site_heads"):
        monkeypatch.setattr(f"symmbfn.{module}.FEWEST", 2)
    with found[2].session(write=False) as session:
        made, above = training.ancestry(session, stage_retrain.train(config, frozen))
    child, parent = load_card(made.name), load_card(above.name)
    assert (proposals_of(child), proposals_of(parent)) == (4, 1)
    figures = made.metrics["training"]["critic"]
    assert figures["crystals"] + figures["held_out"] >= 2
    before = load_model(parent).state_dict()
    after = load_model(child).state_dict()
    names = [name for name in before if name.startswith(("sites.", "geometry."))]
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert torch.equal(before["templates"], after["templates"])
    assert len(after["known_sites"]) > len(before["known_sites"])
    other = _config(found, learn="critic", campaign={**_basis(found), "hulls": ["nowhere"]})
    with pytest.raises(RelaxError, match="nowhere"):
        training_set.freeze(other)
    both = _config(found, elements=("U",))  # too little for a critic, which is then left alone
    assert stage_retrain._judged(both, newest=99, database=found[2]) is None


def test_the_critic_of_the_parent_stays_where_the_networks_learn_alone(
    found: tuple[Path, Path, Database], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from symmbfn.checkpoint import load_card, load_model
    from symmbfn.critic import add_critic

    for module in ("critic", "site_heads"):
        monkeypatch.setattr(f"symmbfn.{module}.FEWEST", 6)
    data = _data(crystals(), energy_above_hull=[0.1 * i for i in range(6)])
    parent = add_critic(load_card(found[1]), data, tmp_path / "parent")
    config = _config(found, key="stays", learn="generator", checkpoint=str(parent))
    frozen = training_set.freeze(config)
    with found[2].session(write=False) as session:
        made = training.ancestry(session, stage_retrain.train(config, frozen))[0]
    before, after = (load_model(load_card(one)).state_dict() for one in (parent, made.name))
    same = {name for name in before if name in after and torch.equal(before[name], after[name])}
    critic = {name for name in before if name.startswith("critic.")}
    assert critic and critic <= same
    assert not {name for name in before if name.startswith("sites.")} <= same


def _basis(found: tuple[Path, Path, Database]) -> dict[str, object]:
    return _config(found).campaign.model_dump(include={"reference", "database", "relaxation"})


def test_what_cannot_be_trained_on_is_told(found: tuple[Path, Path, Database]) -> None:
    with pytest.raises(ConfigError, match="no relaxed crystal of the database fits"):
        training_set.freeze(_config(found, filter='elements HAS "U"'))
    with pytest.raises(ConfigError, match="elements and exclude"):
        training_set.freeze(_config(found, elements=("U",)))
    with pytest.raises(ConfigError, match=r"campaign\.n is the gate's own"):
        _config(found, campaign={"n": 5})
    with pytest.raises(ConfigError, match=r"share.*less than or equal to 0\.5"):
        _config(found, share=0.9)


def test_held_out_crystals_are_not_trained_on(
    found: tuple[Path, Path, Database], tmp_path: Path
) -> None:
    from symmbfn.checkpoint import load_card
    from symmbfn.data import CrystalData
    from symmbfn.mixture import identities

    config = _config(found, key="apart")
    with found[2].session(write=False) as session:
        row = training.training_set(session, training_set.freeze(config))
        members = list(training.members(session, [row.id]))
    file = tmp_path / "held-out.safetensors"
    _data([members[0].structure], band_gap=[1.0]).save(file)
    config = config.model_copy(update={"held_out": str(file), "key": "apart too"})
    sets = stage_retrain._sets(config, load_card(found[1]), members, tmp_path)
    apart = set(identities(CrystalData.load(file)))
    assert apart.isdisjoint(identities(sets.new)) and apart.isdisjoint(identities(sets.base))
    assert len(sets.new) < len(members) and len(sets.held_out) == 1


def test_checkpoints_are_listed_and_chosen_from_the_command_line(
    found: tuple[Path, Path, Database], tmp_path: Path
) -> None:
    url = found[2].url
    listed = symmbfn("checkpoints", "--db", url, "--json", home=tmp_path)
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)
    assert rows[0]["parent_id"] is None and rows[1]["parent_id"] == rows[0]["id"]
    last = str(rows[-1]["id"])
    assert symmbfn("checkpoints", "promote", last, "--db", url, home=tmp_path).returncode == 0
    table = symmbfn("checkpoints", "--db", url, home=tmp_path).stdout
    assert table.count("current") == 1
    wrong = symmbfn("checkpoints", "promote", "99", "--db", url, home=tmp_path)
    assert wrong.returncode == 2 and "symmbfn checkpoints" in wrong.stderr
