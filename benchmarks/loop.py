r"""Does retraining pay? A loop beside two controls, from the same first round.

    python -m benchmarks.loop run CONFIG.toml --out runs/loop
    python -m benchmarks.loop score CONFIG.toml --out runs/loop --judge NAME --judge-hull HULL

`run` draws round 1 once and goes on from copies of its database in three arms: `retrained`, the
loop as configured; `unfiltered`, whose networks learn from every crystal whose relaxation
converged, without a critic; and `control`, which retrains nothing and goes on until it has spent
as many seconds. It is a command to repeat until it ends: what is done is not done again. `score`
tells the figures, and with a judge relaxes the crystals of the last round once more with a
potential that did not curate.

Stated beforehand: S.U.N. of the crystals generated in the last round is compared with that of the
control's round of the same number; metastable S.U.N. is told beside it. Unique means new to the
arm's database, so that neither finds again what it found before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from db import queries, training
from db.session import open_database
from flows.loop_round import Result, key_of, results
from flows.report_intervals import difference_interval
from flows.retrain_settings import LoopConfig
from flows.settings import CampaignConfig

UNFILTERED = "energy_per_atom IS KNOWN"
ARMS = ("retrained", "control", "unfiltered")
MAX_ROUNDS = 100


def settings(arguments: argparse.Namespace, arm: str, rounds: int | None = None) -> LoopConfig:
    """The loop of one arm, with its own database and folder."""
    out = Path(arguments.out).absolute()
    given: dict[str, Any] = {
        "campaign": {"database": f"sqlite:///{out / arm}.db"},
        "retrain": {"folder": str(out / arm)},
        "retraining": arm in ("retrained", "unfiltered"),
        "min_diversity": 0,
    }
    if arm == "unfiltered":
        given["retrain"] |= {"filter": UNFILTERED, "learn": "generator"}
    if rounds is not None:
        given["rounds"] = rounds
    return LoopConfig.from_toml(arguments.config, given)


def run(arguments: argparse.Namespace) -> None:
    """Run what is left of the three arms."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    loop(settings(arguments, "first", 1), out)
    for arm in ARMS:
        copy(out / "first.db", out / f"{arm}.db")
    loop(settings(arguments, "retrained"), out)
    budget = cost(settings(arguments, "retrained"))
    rounds = settings(arguments, "control").rounds
    loop(settings(arguments, "control"), out)
    while cost(settings(arguments, "control")) < budget and rounds < MAX_ROUNDS:
        rounds += 1
        loop(settings(arguments, "control", rounds), out)
    loop(settings(arguments, "unfiltered"), out)
    score(arguments)


def copy(source: Path, target: Path) -> None:
    """Copy a database that nobody writes to, unless that was done; whole or not at all."""
    if target.exists():
        return
    with sqlite3.connect(source) as one, sqlite3.connect(f"{target}.tmp") as other:
        one.backup(other)
    shutil.move(f"{target}.tmp", target)


def loop(config: LoopConfig, out: Path) -> None:
    """Run a loop as a user does; its seconds are in `log.jsonl`."""
    file = out / f"{Path(config.retrain.folder).name}.toml"
    table = config.model_dump(mode="json", exclude_none=True)
    file.write_text(toml(table))
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "flows.cli", "loop", str(file)], check=True)
    line = {"arm": file.stem, "rounds": config.rounds, "seconds": time.monotonic() - began}
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def toml(table: Mapping[str, Any]) -> str:
    """Settings as a TOML file, tables inline; JSON's values are TOML's but for the colons."""

    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            pairs = ", ".join(f"{json.dumps(k)} = {written(v)}" for k, v in value.items())
            return f"{{ {pairs} }}"
        if isinstance(value, list):
            return f"[{', '.join(map(written, value))}]"
        return json.dumps(value)

    return "".join(f"{name} = {written(value)}\n" for name, value in table.items())


def cost(config: LoopConfig) -> float:
    """Seconds of one core that an arm has spent: drawing, relaxing (the gate's too), training."""
    from sqlalchemy import func, select

    from db.models import Batch, Relaxation

    with open_database(config.campaign.database).session(write=False) as session:
        drawing = session.scalar(select(func.sum(Batch.seconds))) or 0.0
        relaxing = session.scalar(select(func.sum(Relaxation.seconds))) or 0.0
        made = training.checkpoints(session)
    minutes = sum(one.metrics.get("training", {}).get("minutes_spent", 0.0) for one in made)
    return drawing + relaxing + 60 * minutes


def score(arguments: argparse.Namespace) -> None:
    """Print each arm's rounds, and the last round beside the control's."""
    last: dict[str, Result] = {}
    for arm in ARMS:
        config = settings(arguments, arm, MAX_ROUNDS)
        rounds = results(config)
        print(f"\n{arm}: {cost(config):.0f} s of one core")
        for one in rounds:
            print(
                f"  round {one.number}: S.U.N. {one.sun} of {one.generated} "
                f"({one.sun_interval[0]:.1%} to {one.sun_interval[1]:.1%}), metastable {one.msun} "
                f"({one.msun_interval[0]:.1%} to {one.msun_interval[1]:.1%}), systems "
                f"{one.chemical_systems:.0f} of 100, HHI {one.hhi:.3f}  {one.gate}"
            )
        print(f"  found in all: S.U.N. {sum(r.sun for r in rounds)}, metastable "
              f"{sum(r.msun for r in rounds)}")  # fmt: skip
        last[arm] = rounds[settings(arguments, arm).rounds - 1]
    for arm in ("retrained", "unfiltered"):
        one, other = last[arm], last["control"]
        for name in ("sun", "msun"):
            after = getattr(one, name), one.generated
            before = getattr(other, name), other.generated
            low, high = difference_interval(before, after)
            ratio = (after[0] / after[1]) / (before[0] / before[1]) if before[0] else float("nan")
            print(f"{arm} / control, {name}, round {one.number}: {ratio:.2f}; difference "
                  f"{100 * low:+.1f} to {100 * high:+.1f} points (95 %)")  # fmt: skip
    if arguments.judge is not None:
        for arm in ARMS:
            judged(arguments, arm)


def judged(arguments: argparse.Namespace, arm: str) -> None:
    """Print the last round's S.U.N. by a potential that did not curate."""
    from flows.evaluation import Named, judge

    config = settings(arguments, arm)
    name = key_of(config, config.rounds)
    with open_database(config.campaign.database).session(write=False) as session:
        table = queries.candidates(session, campaign_id=queries.campaign_id(session, name))
        ours = f'campaign HAS "{name}" AND state != "invalid"'
        stored = list(queries.structures(session, filter=ours))
    new = dict(zip(table["material_id"], table["is_unique"], strict=True))
    by = {"potential": arguments.judge, "hulls": [arguments.judge_hull]}
    crystals = judge(
        CampaignConfig.build(by, where="--judge"),
        [Named(one.material_id, one.structure) for one in stored],
        stability=True,
    )
    found = [one for one in crystals if new[one.name] and one.is_unique and one.is_novel]
    n = config.campaign.n
    stable, metastable = (
        sum(getattr(one, flag) for one in found) for flag in ("is_stable", "is_metastable")
    )
    print(f"{arm}, judged by {arguments.judge}: S.U.N. {stable} of {n}, metastable {metastable}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("score", score)):
        command = commands.add_parser(name)
        command.add_argument("config", help="settings of `symmbfn loop`")
        command.add_argument("--out", required=True, help="folder of databases and checkpoints")
        command.add_argument("--judge", help="potential that did not curate")
        command.add_argument("--judge-hull", default="chgnet")
        command.set_defaults(run=function)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
