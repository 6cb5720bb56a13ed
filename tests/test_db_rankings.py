"""Budgets of relaxation: places, time, several workers, and what is passed over."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from db import queries, training
from db.models import Candidate, Ranking
from db.queries import Budget, Claim
from db.session import Database
from tests.db_support import RELAX, Rows, add, base_rows, basis, relaxation, rocksalt, stability

SALTS = [("Li", "F"), ("Na", "Cl"), ("Mg", "O"), ("K", "Br"), ("Rb", "I")]


def ranked(database: Database, places: list[int | None]) -> Rows:
    """Crystals with places in the order of relaxation; None for one that is known."""
    with database.session() as session:
        rows = base_rows(session)
        for index, place in enumerate(places):
            number = add(session, rows, index, rocksalt(*SALTS[index]))
            row = Ranking(campaign_id=rows.campaign.id, candidate_id=number, place=place)
            row.choice, row.energy_per_atom = "ranked", -4.0
            if place is None:
                row.choice, row.passed_over = "known", "as drawn"
            queries.add_ranking(session, row)
    return rows


def claim(database: Database, rows: Rows, worker: str, budget: Budget, limit: int) -> list[Claim]:
    with database.session() as session:
        return queries.claim(
            session,
            worker,
            campaign_id=rows.campaign.id,
            potential_id=rows.potential.id,
            settings=RELAX,
            lease_seconds=60,
            limit=limit,
            budget=budget,
        )


def record(database: Database, rows: Rows, one: Claim, seconds: float = 1.0) -> None:
    with database.session() as session:
        row = relaxation(rows, one.candidate_id, one.structure, seconds=seconds)
        queries.record_relaxation(session, row, fence=one.fence)


def left(database: Database, rows: Rows, budget: Budget | None) -> int:
    with database.session(write=False) as session:
        return queries.unfinished(session, rows.campaign.id, rows.potential.id, RELAX, budget)


def pass_over(database: Database, rows: Rows) -> None:
    with database.session() as session:
        queries.pass_over(session, rows.campaign.id, rows.potential.id, RELAX, "spent on others")


def states(database: Database) -> list[tuple[str, str | None]]:
    with database.session(write=False) as session:
        rows = session.scalars(select(Candidate).order_by(Candidate.id))
        return [(row.state, row.reason) for row in rows]


def test_workers_share_a_number_of_relaxations_in_the_order_of_places(database: Database) -> None:
    rows = ranked(database, [3, None, 1, 4, 2])
    budget = Budget(relaxations=3)
    one = claim(database, rows, "one", budget, limit=2)
    two = claim(database, rows, "two", budget, limit=2)
    assert [[c.candidate_id for c in claims] for claims in (one, two)] == [[3, 5], [1]]
    assert claim(database, rows, "three", budget, limit=2) == []
    for held in [*one, *two]:
        assert left(database, rows, budget) > 0
        record(database, rows, held)
    assert left(database, rows, budget) == 0 and left(database, rows, None) == 2
    pass_over(database, rows)
    assert states(database) == [
        ("relaxed", None),
        ("known", "as drawn"),
        ("relaxed", None),
        ("passed_over", "spent on others"),
        ("relaxed", None),
    ]
    with database.session(write=False) as session:
        counts = queries.campaign_counts(session, rows.campaign.id)
        stored = queries.candidate(session, "sbfn-4")["rankings"]
        listed = queries.candidates(session, filter='state = "passed_over"')
    assert (counts["generated"], counts["distinct"], counts["relaxed"]) == (4, 5, 3)
    assert (counts["known_as_drawn"], counts["passed_over"]) == (1, 1)
    assert (stored[0]["place"], stored[0]["choice"]) == (4, "ranked")
    assert listed["material_id"].tolist() == ["sbfn-4"]


def test_a_time_is_the_sum_over_all_workers_and_what_is_under_way_is_finished(
    database: Database,
) -> None:
    rows = ranked(database, [1, 2, 3, 4])
    budget = Budget(seconds=10.0)
    (one,) = claim(database, rows, "one", budget, limit=1)
    (two,) = claim(database, rows, "two", budget, limit=1)
    record(database, rows, one, seconds=9.9)
    (three,) = claim(database, rows, "one", budget, limit=1)
    record(database, rows, two, seconds=0.1)
    assert claim(database, rows, "two", budget, limit=1) == []
    assert left(database, rows, budget) == 1  # lent
    record(database, rows, three)
    assert left(database, rows, budget) == 0
    pass_over(database, rows)
    assert [state for state, _ in states(database)] == [*["relaxed"] * 3, "passed_over"]


def test_what_is_passed_over_may_be_relaxed_later_and_is_then_counted_so(
    database: Database,
) -> None:
    rows = ranked(database, [1, None])
    pass_over(database, rows)
    with database.session() as session:
        claims = queries.claim(
            session,
            "another campaign's",
            campaign_id=rows.campaign.id,
            potential_id=rows.potential.id,
            settings=RELAX,
            lease_seconds=60,
            limit=5,
        )
    assert len(claims) == 2
    for one in claims:
        record(database, rows, one)
    pass_over(database, rows)
    assert states(database) == [("relaxed", None)] * 2
    with database.session(write=False) as session:
        counts = queries.campaign_counts(session, rows.campaign.id)
        (fallen,) = queries.fallen(session, rows.potential.id, RELAX)[:1]
        assert queries.fallen(session, rows.potential.id, RELAX | {"fmax": 0.01}) == []
    assert (counts["relaxed"], counts["known_as_drawn"], counts["passed_over"]) == (2, 0, 0)
    assert (fallen.nsites, fallen.fall) == (2, pytest.approx(0.5))


def test_what_was_concluded_before_is_not_passed_over_and_the_first_reason_stays(
    database: Database,
) -> None:
    rows = ranked(database, [1, 2])
    with database.session() as session:  # another campaign has found that it is known
        other = session.get_one(Candidate, 2)
        other.state, other.reason = "known", "as drawn"
    pass_over(database, rows)
    with database.session() as session:
        queries.pass_over(session, rows.campaign.id, rows.potential.id, RELAX, "again")
    assert states(database) == [("passed_over", "spent on others"), ("known", "as drawn")]
    with database.session(write=False) as session:
        assert set(session.scalars(select(Ranking.passed_over))) == {"spent on others"}


def test_places_are_settled_once_and_the_first_look_is_believed(database: Database) -> None:
    rows = ranked(database, [1, None])
    campaign = rows.campaign.id
    with database.session() as session:
        third = add(session, rows, 2, rocksalt("Cs", "F"))
        new = queries.unranked(session, campaign, rows.potential.id, RELAX)
        assert [one.candidate_id for one in new] == [third]
        for energy in (-3.0, -2.0):
            row = Ranking(campaign_id=campaign, candidate_id=third, energy_per_atom=energy)
            assert queries.add_ranking(session, row).energy_per_atom == -3.0
        assert queries.unranked(session, campaign, rows.potential.id, RELAX) == []
        ((row, nsites),) = queries.unplaced(session, campaign)
        assert (row.candidate_id, nsites, queries.places_taken(session, campaign)) == (third, 2, 1)
        row.place, row.choice = 2, "random"
    with database.session() as session:
        assert queries.unplaced(session, campaign) == []
        assert queries.places_taken(session, campaign) == 2


def test_what_was_looked_at_is_told_with_its_energy_at_rest_or_as_drawn(database: Database) -> None:
    """Of this potential and hull; neither invalid crystals nor those never looked at."""
    with database.session() as session:
        rows = base_rows(session)
        numbers = [add(session, rows, i, rocksalt(*salt)) for i, salt in enumerate(SALTS)]
        for number, energy in zip(numbers, (0.5, 0.7, None, 0.2, None), strict=True):
            row = Ranking(campaign_id=rows.campaign.id, candidate_id=number)
            row.choice, row.energy_above_hull = "ranked", energy
            queries.add_ranking(session, row)
        for number, energy in ((numbers[0], 0.01), (numbers[4], -0.02)):
            at_rest = relaxation(rows, number, rocksalt("Li", "F"))
            session.add(at_rest)
            session.flush()
            session.add(stability(rows, at_rest.id, energy))
        session.get_one(Candidate, numbers[3]).state = "invalid"
        these = basis(rows.potential.id, rows.hull.id, rows.known.id)
        found = training.looked_at(session, these, numbers[-1])
        earlier = training.looked_at(session, these, numbers[0])
        another_hull = basis(rows.potential.id, rows.known.id, rows.known.id)
        other = training.looked_at(session, another_hull, numbers[-1])
    formulas = [one.structure.reduced_formula for one in found]
    assert formulas == ["LiF", "NaCl", "RbI"] and other == []
    assert [one.structure.reduced_formula for one in earlier] == ["LiF"]
    assert [one.energy_above_hull for one in found] == pytest.approx([0.01, 0.7, -0.02])
