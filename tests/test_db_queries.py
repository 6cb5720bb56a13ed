"""Storing and finding candidates, with their provenance."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from db import queries
from db.documents import content_hash, structure_from_dict, structure_to_dict
from db.errors import DatabaseError, FilterError
from db.fields import FIELDS
from db.models import Campaign, Potential, Relaxation
from db.session import Database
from tests.db_support import (
    INPUTS,
    RELAX,
    SCREEN,
    Rows,
    add,
    base_rows,
    basis,
    filled,
    relaxation,
    rocksalt,
    stability,
)


def test_structures_come_back_as_they_were() -> None:
    crystal = rocksalt("Li", "O")
    again = structure_from_dict(json.loads(json.dumps(structure_to_dict(crystal))))
    assert again == crystal
    assert np.array_equal(again.lattice.matrix, crystal.lattice.matrix)


def test_a_structure_with_nan_is_refused() -> None:
    crystal = rocksalt("Li", "O")
    crystal.translate_sites([0], [float("nan"), 0, 0], to_unit_cell=False)
    with pytest.raises(DatabaseError, match="Li2O2 has NaN"):
        structure_to_dict(crystal)


def test_everything_inserted_twice_is_there_once(database: Database) -> None:
    for _ in range(2):
        with database.session() as session:
            rows = base_rows(session)
            first = add(session, rows, 0, rocksalt("Li", "O"))
            done = relaxation(rows, first, rocksalt("Li", "O"))
            done = queries.record_relaxation(session, done, fence=0)
            queries.record_stability(session, stability(rows, done.id, -0.01))
    with database.session(write=False) as session:
        counts = queries.table_counts(session)
        assert queries.batch_numbers(session, rows.campaign.id) == {0}
    assert counts.pop("reference") == 2 and counts.pop("candidate_element") == 2
    empty = {"training_set", "training_member", "dft_calculation", "ranking", "judgement"}
    assert counts == {name: int(name not in empty) for name in counts}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"config": {"n": 5}}, "had n 4, not 5:"),
        ({"seed": 8}, "had seed 7, not 8:"),
        (
            {"inputs": INPUTS | {"hull chgnet": "i" * 64}},
            "had hull chgnet hhhhhhhhhhhh…, not iiiiiiiiiiii…:",
        ),
        (
            {"inputs": {"checkpoint mp20": "c" * 64}},
            "had hull chgnet hhhhhhhhhhhh…, not null:",
        ),
    ],
)
def test_one_key_with_other_settings_or_inputs_is_an_error(
    database: Database, changed: dict[str, Any], says: str
) -> None:
    with database.session() as session:
        rows = base_rows(session)
    given = {"config": {"n": 4}, "seed": 7, "inputs": INPUTS} | changed
    again = basis(rows.potential.id, rows.hull.id, rows.known.id)
    with pytest.raises(DatabaseError) as caught, database.session() as session:
        queries.get_or_create_campaign(
            session, "key-first", name="first", code_version="abc", basis=again, **given
        )
    assert says in str(caught.value) and "choose another key" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"potential_id": 2}, "had potential.dtype float32, not float64:"),
        (
            {"relax_settings": RELAX | {"protocol": "bfgs-3"}},
            "had relaxation.protocol null, not bfgs-3:",
        ),
        ({"hull_id": 2}, "had hull_id 1, not 2:"),
        ({"known_id": 1}, "had known_id 2, not 1:"),
        ({"screen_settings": {}}, "had screen_settings_hash "),
    ],
)
def test_one_key_on_another_basis_is_an_error(
    database: Database, changed: dict[str, Any], says: str
) -> None:
    with database.session() as session:
        rows, _ = filled(session)
        other = Potential(
            name="chgnet", weights_sha256="p" * 64, dtype="float64", energy_scheme="mp2020"
        )
        queries.register_potential(session, other)
        again = replace(basis(rows.potential.id, rows.hull.id, rows.known.id), **changed)
    with pytest.raises(DatabaseError) as caught, database.session() as session:
        queries.get_or_create_campaign(
            session,
            "key-first",
            name="first",
            config={"n": 4},
            seed=7,
            code_version="def",
            inputs=INPUTS,
            basis=again,
        )
    assert says in str(caught.value)
    assert "choose another key, or go on with what it began with, symmbfn abc" in str(caught.value)


def test_same_crystal_of_two_batches_is_one_candidate_with_two_origins(
    database: Database,
) -> None:
    crystal = rocksalt("Li", "O")
    supercell = crystal * (2, 1, 1)
    supercell.translate_sites(range(len(supercell)), [0.1, 0.2, 0.3])
    with database.session() as session:
        rows = base_rows(session)
        first = add(session, rows, 0, crystal)
        add(session, rows, 1, rocksalt("Na", "Cl"))
        other = base_rows(session, name="second")
        (like,) = queries.candidates_like(session, supercell, "any")
        assert not queries.candidates_like(session, supercell, "any", after=first)
        assert queries.newest_candidate(session) == 2
        assert (like.candidate_id, like.structure) == (first, crystal)
        second = queries.add_candidate(
            session,
            supercell,
            batch_id=other.batch.id,
            batch_index=0,
            space_group=225,
            fingerprint="any",
            same_as=like.candidate_id,
        )
        assert second == first
    with database.session(write=False) as session:
        table = queries.candidates(session, 'campaign = "second"')
        origins = queries.candidate(session, "sbfn-1")["provenance"]
    assert table["material_id"].tolist() == ["sbfn-1"]
    assert table["campaign"].tolist() in (["first, second"], ["second, first"])
    assert [origin["batch"]["campaign"]["name"] for origin in origins] == ["first", "second"]
    assert origins[0]["structure_sha256"] != origins[1]["structure_sha256"]


def test_equal_fingerprints_come_first_among_the_like(database: Database) -> None:
    with database.session() as session:
        rows = base_rows(session)
        for index, text in enumerate(["a", "b", "c"]):
            queries.add_candidate(
                session,
                rocksalt("Li", "O", 4.0 + index),
                batch_id=rows.batch.id,
                batch_index=index,
                space_group=225,
                fingerprint=text,
            )
        found = queries.candidates_like(session, rocksalt("Li", "O"), "b")
    assert [like.fingerprint for like in found] == ["b", "a", "c"]


def test_relaxed_like_sees_only_older_converged_ones(database: Database) -> None:
    with database.session() as session:
        rows, _ = filled(session)
        newest = add(session, rows, 9, rocksalt("Na", "Cl", 5.0))
        found = queries.relaxed_like(
            session, rocksalt("Na", "Cl"), potential_id=rows.potential.id, before=newest
        )
        assert [like.candidate_id for like in found] == [2]
        for formula, before in [("NaCl", 2), ("KBr", newest)]:
            crystal = rocksalt(formula[:-2] if formula == "NaCl" else "K", formula[-2:])
            potential = rows.potential.id
            assert not queries.relaxed_like(session, crystal, potential_id=potential, before=before)


def test_table_has_one_typed_row_per_candidate(database: Database) -> None:
    with database.session() as session:
        filled(session)
    with database.session(write=False) as session:
        table = queries.candidates(session)
    assert list(table) == [*FIELDS, "campaign"]
    assert table["material_id"].tolist() == ["sbfn-1", "sbfn-2", "sbfn-3", "sbfn-4"]
    assert table["chemical_formula_reduced"].tolist() == ["LiO", "ClNa", "MgO", "BrK"]
    assert table["formula_pretty"].tolist() == ["Li2O2", "NaCl", "MgO", "KBr"]
    assert table["state"].tolist() == ["screened"] * 3 + ["failed"]
    assert table["energy_above_hull"].tolist()[:3] == [-0.02, 0.05, 0.4]
    assert np.isnan(table["energy_above_hull"][3])
    assert table["is_stable"].tolist()[:3] == [True, False, False]
    assert table["is_stable"][3] is None and table["hull"][3] is None
    assert table["nsites"][0] == 2 and type(table["nsites"][0]) is int
    assert table["energy_above_hull"].dtype == "float64"
    assert set(table["hull"][:3]) == {"chgnet"}


def test_newest_verdict_is_the_one_shown(database: Database) -> None:
    with database.session() as session:
        rows, _ = filled(session)
        done = session.get_one(Relaxation, 1)
        again = stability(rows, done.id, 0.3, verdict="quarantined")
        again.settings_hash = "another"
        queries.record_stability(session, again)
    with database.session(write=False) as session:
        table = queries.candidates(session, 'material_id = "sbfn-1"')
    assert (table["verdict"][0], table["state"][0]) == ("quarantined", "quarantined")
    assert table["energy_above_hull"][0] == 0.3


def judged_again(session: Session, name: str, energy_above_hull: float) -> Rows:
    """A second campaign that draws the first's LiO again, and judges it by other thresholds."""
    rows, _ = filled(session)
    other = base_rows(session, name=name)
    queries.add_candidate(
        session,
        rocksalt("Li", "O"),
        batch_id=other.batch.id,
        batch_index=0,
        space_group=225,
        fingerprint="any",
        same_as=1,
    )
    add(session, other, 1, rocksalt("Cs", "Cl"))
    other.campaign.screen_settings_hash = content_hash({"stable": 0.1})
    verdict = stability(rows, 1, energy_above_hull)
    verdict.settings = {"stable": 0.1}
    verdict.settings_hash = content_hash(verdict.settings)
    queries.record_stability(session, verdict)
    return other


def test_a_campaign_shows_its_own_verdicts(database: Database) -> None:
    with database.session() as session:
        other = judged_again(session, "second", 0.06)
    with database.session(write=False) as session:
        first = queries.candidates(session, 'material_id = "sbfn-1"', campaign_id=1)
        second = queries.candidates(session, campaign_id=other.campaign.id)
        newest = queries.candidates(session, 'material_id = "sbfn-1"')
        stable = queries.candidates(session, "is_stable = TRUE", campaign_id=1)
    assert first["energy_above_hull"].tolist() == [-0.02]
    assert second["material_id"].tolist() == ["sbfn-1", "sbfn-5"]
    assert second["energy_above_hull"].tolist()[0] == 0.06 and second["verdict"][1] is None
    assert newest["energy_above_hull"].tolist() == [0.06]
    assert stable["material_id"].tolist() == ["sbfn-1"]


def test_a_crystal_drawn_again_is_known_before_and_not_unique_there(database: Database) -> None:
    with database.session() as session:
        other = judged_again(session, "second", -0.01).campaign.id
        counts = [queries.campaign_counts(session, campaign) for campaign in (1, other)]
        unique = [
            queries.candidates(session, "is_unique = TRUE", campaign_id=campaign)["material_id"]
            for campaign in (1, other, None)
        ]
        shown = queries.candidates(session, 'material_id = "sbfn-1"', campaign_id=other)
    keys = ("distinct", "known_before", "stable", "unique", "novel", "sun")
    assert [[count[key] for key in keys] for count in counts] == [
        [4, 0, 1, 3, 3, 1],
        [2, 1, 1, 0, 1, 0],
    ]
    assert [ids.tolist() for ids in unique] == [
        ["sbfn-1", "sbfn-2", "sbfn-3"],
        [],
        ["sbfn-1", "sbfn-2", "sbfn-3"],
    ]
    assert shown["is_unique"].tolist() == [False] and shown["is_novel"].tolist() == [True]


def test_a_campaign_of_an_older_release_shows_the_newest_verdicts(database: Database) -> None:
    with database.session() as session:
        rows, _ = filled(session)
        campaign = session.get_one(Campaign, rows.campaign.id)
        campaign.inputs = campaign.potential_id = campaign.hull_id = None
        session.flush()
        table = queries.candidates(session, campaign_id=campaign.id)
        assert table["energy_above_hull"].tolist()[:3] == [-0.02, 0.05, 0.4]
        base_rows(session)  # its next run notes what it rests on
        assert campaign.inputs == INPUTS and campaign.hull_id == rows.hull.id


def test_campaigns_that_differ_only_in_their_seed_and_are_not_finished(database: Database) -> None:
    with database.session() as session:
        rows = base_rows(session)
        whole = basis(rows.potential.id, rows.hull.id, rows.known.id)
        for seed, key, its_basis in [
            (3, "night-3", whole),
            (4, "night-4", whole),
            (5, "mine", whole),
            (6, "night-6", replace(whole, relax_settings={"protocol": "older"})),
        ]:
            queries.get_or_create_campaign(
                session,
                key,
                name=key,
                config={"n": 8, "seed": seed},
                seed=seed,
                code_version="abc",
                inputs=INPUTS,
                basis=its_basis,
            )

        def left() -> list[int]:
            return queries.unfinished_seeds(session, whole, lambda seed: f"night-{seed}")

        assert left() == [3, 4]
        queries.finish_campaign(session, 2)
        assert left() == [4]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("energy_above_hull", [1, 2, 3, 4]),
        ("-energy_above_hull", [3, 2, 1, 4]),
        ("-material_id", [4, 3, 2, 1]),
        ("space_group", [1, 2, 3, 4]),
    ],
)
def test_sorting_puts_the_unknown_last(database: Database, sort: str, expected: list[int]) -> None:
    with database.session() as session:
        filled(session)
        found = queries.candidates(session, sort=sort)["material_id"]
        two = queries.candidates(session, sort=sort, limit=2)["material_id"]
    assert found.tolist() == [f"sbfn-{number}" for number in expected]
    assert two.tolist() == found.tolist()[:2]


def test_unknown_sort_field_and_negative_limit(database: Database) -> None:
    with database.session(write=False) as session:
        with pytest.raises(
            FilterError, match=r"cannot sort by 'energy': choose one of material_id"
        ):
            queries.candidates(session, sort="energy")
        with pytest.raises(FilterError, match="limit -1 is negative"):
            queries.candidates(session, limit=-1)


def test_candidate_is_traced_to_its_origin(database: Database) -> None:
    with database.session() as session:
        filled(session)
    with database.session(write=False) as session:
        found = queries.candidate(session, "sbfn-1")
        json.dumps(found, allow_nan=False)
    (origin,) = found["provenance"]
    assert origin["space_group_drawn"] == 216
    assert origin["batch"]["seed"] == 1234
    assert origin["batch"]["conditions"] == {"elements": ["Li", "O"]}
    assert origin["batch"]["checkpoint"]["sha256"] == "c" * 64
    assert origin["batch"]["campaign"]["code_version"] == "abc"
    (done,) = found["relaxations"]
    assert done["potential"]["weights_sha256"] == "p" * 64
    assert done["settings"] == RELAX
    (verdict,) = done["stabilities"]
    assert verdict["hull"]["sha256"] == "h" * 64 and verdict["known"]["name"] == "mp"
    assert verdict["settings"] == SCREEN and verdict["energy_above_hull"] == -0.02


def test_a_failed_candidate_tells_why_where_one_looks_first(database: Database) -> None:
    with database.session() as session:
        filled(session)
    with database.session(write=False) as session:
        found = queries.candidate(session, "sbfn-4")
    assert (found["state"], found["reason"]) == ("failed", "volume ratio 9")


@pytest.mark.parametrize("bad", ["sbfn-99", "42", "sbfn-", "sbfn-1; DROP", "sbfn-²", "mp-1"])
def test_unknown_id_is_one_line(database: Database, bad: str) -> None:
    with database.session(write=False) as session, pytest.raises(DatabaseError) as caught:
        queries.candidate(session, bad)
    assert "\n" not in str(caught.value)


def test_funnel_counts_each_stage(database: Database) -> None:
    with database.session() as session:
        rows, _ = filled(session)
        queries.add_candidate(
            session,
            rocksalt("Cs", "I", 1.0),
            batch_id=rows.batch.id,
            batch_index=4,
            space_group=225,
            fingerprint="x",
            invalid_reason="atoms 0.5 A apart",
        )
        counts = queries.campaign_counts(session, rows.campaign.id)
        empty = base_rows(session, name="empty")
        nothing = queries.campaign_counts(session, empty.campaign.id)
    assert counts == {
        "generated": 4,
        "valid": 4,
        "distinct": 5,
        "known_before": 0,
        "known_as_drawn": 0,
        "passed_over": 0,
        "relaxed": 3,
        "failed": 1,
        "not_assessable": 0,
        "quarantined": 0,
        "stable": 1,
        "near_hull": 1,
        "metastable": 2,
        "unique": 3,
        "novel": 3,
        "sun": 1,
        "msun": 2,
    }
    assert nothing.pop("generated") == 4
    assert set(nothing.values()) == {0}


def test_work_left_to_screen(database: Database) -> None:
    with database.session() as session:
        rows, _ = filled(session)

        whole = basis(rows.potential.id, rows.hull.id, rows.known.id)

        def left(settings: dict[str, float]) -> list[int]:
            wanted = replace(whole, screen_settings=settings)
            found = queries.unscreened(session, rows.campaign.id, wanted)
            assert all(one.drawn == one.structure for one in found)
            return [one.candidate_id for one in found]

        assert left(SCREEN) == []
        assert left({"metastable": 0.08}) == [1, 2, 3]


def test_export_gives_relaxed_structures_where_there_are(database: Database) -> None:
    with database.session() as session:
        rows = base_rows(session)
        first = add(session, rows, 0, rocksalt("Li", "O", 4.2))
        add(session, rows, 1, rocksalt("Mg", "O", 4.2))
        done = relaxation(rows, first, rocksalt("Li", "O", 4.6))
        queries.record_relaxation(session, done, fence=0)
    with database.session(write=False) as session:
        found = {one.material_id: one for one in queries.structures(session)}
    assert found["sbfn-1"].structure == rocksalt("Li", "O", 4.6)
    assert found["sbfn-2"].structure == rocksalt("Mg", "O", 4.2)
    assert found["sbfn-1"].row["chemical_formula_reduced"] == "LiO"


def test_numbers_that_are_not_finite_are_unknown(database: Database) -> None:
    with database.session() as session:
        rows = base_rows(session)
        first = add(session, rows, 0, rocksalt("Li", "O"))
        done = relaxation(rows, first, None, max_force=np.inf, energy_per_atom=np.float32(-2.5))
        queries.record_relaxation(session, done, fence=0)
    with database.session(write=False) as session:
        (stored,) = queries.candidate(session, "sbfn-1")["relaxations"]
    assert (stored["max_force"], stored["energy_per_atom"]) == (None, -2.5)
