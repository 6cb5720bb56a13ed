"""Campaigns in processes that are killed, and what must be true afterwards."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import ForkServerProcess

from sqlalchemy import select

from db import queries
from db.models import Campaign, Candidate
from db.session import Database
from flows.settings import CampaignConfig
from tests.flows_support import relaxations, run_until_commit

NEVER = -1
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm"])


def begin(config: CampaignConfig, last: int = NEVER) -> ForkServerProcess:
    """Start a process that runs the campaign and is killed after its `last`-th commit."""
    process = FORKS.Process(target=run_until_commit, args=(config.model_dump_json(), last))
    process.start()
    return process


def ended(process: ForkServerProcess) -> bool:
    """Wait for its end; tell whether it had done all, rather than been killed."""
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def each_once(database: Database) -> None:
    """Check that there is one campaign, complete, and that nothing in it is there twice."""
    with database.session(write=False) as session:
        (campaign,) = session.scalars(select(Campaign)).all()
        assert campaign.finished_at is not None
        counts = queries.table_counts(session)
        assert set(session.scalars(select(Candidate.lease_owner))) == {None}
    assert (counts["batch"], counts["provenance"]) == (2, 4)
    assert counts["relaxation"] == len(relaxations(database)) <= counts["candidate"] <= 4
    assert counts["stability"] <= counts["relaxation"]
