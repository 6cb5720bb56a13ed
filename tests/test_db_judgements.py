"""Second opinions in the database: who wants one, what is kept, what is shown of it."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from db import queries
from db.models import Judgement
from db.session import Database
from tests.db_support import filled, judged


def judge_of(session: Session) -> queries.Judge:
    """The judge that `judged` stores opinions of."""
    potential = session.query(Judgement).first().potential_id
    hull = session.query(Judgement).first().hull_id
    return queries.Judge(potential, hull, {})


def test_what_may_be_stable_and_was_not_seen_wants_an_opinion(database: Database) -> None:
    with database.session() as session:
        filled(session)
        wanted = queries.unjudged(session, 1, queries.Judge(1, 1, {}))
        assert [one.structure.composition.reduced_formula for one in wanted] == ["Li2O2", "NaCl"]
        judged(session, {"Li2O2": 0.01})
        judged(session, {"Li2O2": 9.0})  # what was said first stays
        (left,) = queries.unjudged(session, 1, judge_of(session))
        assert left.structure.composition.reduced_formula == "NaCl"
        again = queries.Judge(left.relaxation_id, 1, {"relaxation": {"fmax": 0.01}})
        assert len(queries.unjudged(session, 1, again)) == 2  # other settings, another opinion


def test_opinions_are_fields_and_are_counted(database: Database) -> None:
    with database.session() as session:
        filled(session)
        assert queries.judged_counts(session, 1)["judged"] == 0
        judged(session, {"Li2O2": -0.01, "NaCl": 0.2})
    with database.session(write=False) as session:
        table = queries.candidates(session, "judge_verdict IS KNOWN")
        assert table["judge"].tolist() == ["other", "other"]
        assert table["energy_above_hull_spread"].tolist() == pytest.approx([0.01, 0.15])
        assert queries.candidates(session, 'judge_verdict = "unstable"')[
            "formula_pretty"
        ].tolist() == ["NaCl"]
        assert len(queries.candidates(session, "energy_above_hull_spread < 0.1")) == 1
        assert queries.judged_counts(session, 1) == {
            "judged": 2, "sun": 1, "sun_too": 1, "msun": 2, "msun_too": 1
        }  # fmt: skip
        (opinion,) = queries.candidate(session, "sbfn-1")["relaxations"][0]["judgements"]
        assert opinion["potential"]["name"] == "other" and opinion["hull"]["name"] == "chgnet"
