"""How campaigns scale over processes, and what they cost beside the science.

    python -m benchmarks.workers scaling -n 48            # `symmbfn work` once, then twice at once
    python -m benchmarks.workers scaling -n 48 --server postgresql://user@host/name
    python -m benchmarks.workers overhead -n 64           # a campaign beside `benchmarks.bare`

On an idle machine, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, func, make_url, select, text

from db.models import Batch, Relaxation, Stability
from db.session import open_database
from flows.settings import CampaignConfig
from flows.stage_generate import generate_batch, open_campaign

SYMMBFN = [sys.executable, "-m", "flows.cli"]


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["scaling", "overhead"])
    parser.add_argument("-n", type=int, default=48, help="crystals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--server", help="a PostgreSQL in which a schema may be made")
    arguments = parser.parse_args()
    if arguments.what == "scaling":
        scaling(arguments.n, arguments.seed, arguments.processes, arguments.server)
    else:
        overhead(arguments.n, arguments.seed, arguments.processes, arguments.server)


@contextmanager
def new_database(server: str | None) -> Iterator[str]:
    """Yield the URL of an empty database, and remove it afterwards."""
    if server is None:
        with tempfile.TemporaryDirectory(prefix="symmbfn-workers-") as folder:
            yield f"sqlite:///{Path(folder) / 'campaign.db'}"
        return
    place, schema = make_url(server), f"workers_{uuid.uuid4().hex}"
    engine = create_engine(place.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    url = place.update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))


def scaling(n: int, seed: int, processes: list[int], server: str | None) -> None:
    """Print the relaxations per second of so many processes at the same crystals."""
    print("processes  relaxed  wall s  steady relaxations/s  ratio")
    single = None
    for count in processes:
        with new_database(server) as url:
            config = CampaignConfig(n=n, seed=seed, batch_size=n, database=url)
            generate_batch(config, open_campaign(config), 0)
            began = time.monotonic()
            command = [*SYMMBFN, "work", "--workers", "1", "--db", url]
            running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]
            assert [one.wait() for one in running] == [0] * count
            wall = time.monotonic() - began
            with open_database(url).session(write=False) as session:
                ends = list(session.scalars(select(Relaxation.created_at)))
        # All processes are at work between the first result and the last; their start is not
        # what many crystals would wait for.
        rate = (len(ends) - 1) / (max(ends) - min(ends)).total_seconds()
        single = single or rate
        print(f"{count:9d}{len(ends):9d}{wall:8.1f}{rate:22.3f}{rate / single:7.2f}", flush=True)


def overhead(n: int, seed: int, processes: list[int], server: str | None) -> None:
    """Print the wall time of `symmbfn discover` and of its science alone, in turns, three times."""
    print("processes  discover s  bare s  overhead  draw s  relax s  judge s")
    for count in processes * 3:
        with new_database(server) as url:
            options = ["-n", str(n), "--seed", str(seed)]
            there = ["--workers", str(count), "--db", url]
            wall = _seconds([*SYMMBFN, "discover", *options, *there])
            with open_database(url).session(write=False) as session:
                draw = session.scalar(select(func.sum(Batch.seconds))) or 0.0
                relax = (session.scalar(select(func.sum(Relaxation.seconds))) or 0.0) / count
                judged = list(session.scalars(select(Stability.created_at)))
        judge = (max(judged) - min(judged)).total_seconds() if judged else 0.0
        script = [sys.executable, "-m", "benchmarks.bare"]
        alone = _seconds([*script, *options, "--workers", str(count)])
        print(
            f"{count:9d}{wall:12.1f}{alone:8.1f}{wall / alone - 1:10.1%}"
            f"{draw:8.1f}{relax:9.1f}{judge:9.1f}",
            flush=True,
        )


def _seconds(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
