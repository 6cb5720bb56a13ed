r"""What a relaxation budget finds for its time, against relaxing everything in the order drawn.

    python -m benchmarks.sun relax mp20 -n 2000 --seed 1 --out runs/pool.jsonl
    python -m benchmarks.funnel look runs/pool.jsonl --out runs/pool-signals.json
    python -m benchmarks.funnel replay runs/pool.jsonl --signals runs/pool-signals.json \
        --hull mp2020 --hull chgnet --plot docs/funnel.png

The pool is relaxed once, all of it; stopped, it goes on. `look` computes the signals of its
crystals as drawn, and times that and the drawing. `replay` puts the pool into the order of the
funnel and counts what the first of them would have found; the time of drawing and of looking at
all counts as well. Falls are learned from four fifths of the pool and judged on the last one, in
turn.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from relax.hull import Hull
from relax.matching import Reference, unique
from relax.optimize import RelaxConfig
from relax.potentials import find
from relax.ranking import Fall, Signals, look, order

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of the pool that is relaxed
TIERS = {"S.U.N.": 0.0, "metastable S.U.N.": 0.1}  # eV/atom
QUARANTINE = -0.3  # eV/atom
FOLDS = 5
RANDOM_SHARE = 0.1


def look_at(arguments: argparse.Namespace) -> None:
    """Compute and time the signals of a pool."""
    from relax.potentials import load
    from symmbfn.crystal import to_structures
    from symmbfn.sample import sample

    drawn = [Structure.from_dict(line["drawn"]) for line in read_pool(arguments.file)]
    potential, config = load("chgnet"), RelaxConfig()
    list(look(drawn[:3], potential, config))  # what is loaded only once
    sample("mp20", 8, seed=0)
    began = time.process_time()
    seen = dict(look(drawn, potential, config))
    looking = (time.process_time() - began) / len(drawn)
    began = time.process_time()
    to_structures(sample("mp20", 256, seed=0))
    drawing = (time.process_time() - began) / 256
    signals = [None if (one := seen[i]) is None else asdict(one) for i in range(len(drawn))]
    content = {"drawing": drawing, "looking": looking, "signals": signals}
    Path(arguments.out).write_text(json.dumps(content))
    print(
        f"{1e3 * drawing:.1f} ms of one core to draw a crystal, {1e3 * looking:.1f} to look at it"
    )


@dataclass(frozen=True)
class Pool:
    """A relaxed pool: what it cost, what it holds; arrays of shape (crystals,).

    Attributes:
        seconds: Of each relaxation.
        overhead: Seconds of drawing and looking at a crystal.
        drawing: Seconds of drawing one.
        candidate: Which are left after the known and the duplicates as drawn are taken out.
        kind: The same number for the same relaxed crystal; -1 where it is not new.
        drawn_above: Energy above the hull as drawn, eV/atom.
        above: Relaxed; NaN for what did not converge.
    """

    seconds: NDArray[np.float64]
    overhead: float
    drawing: float
    candidate: NDArray[np.bool_]
    kind: NDArray[np.int64]
    drawn_above: NDArray[np.float64]
    above: NDArray[np.float64]

    def hits(self, limit: float) -> NDArray[np.bool_]:
        """Tell which are new, and within a limit of the hull."""
        low = (self.above <= limit) & (self.above >= QUARANTINE)
        return low & (self.kind >= 0)

    def found(self, queue: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
        """Count the different hits among the first 0, 1, 2 … of a queue."""
        kinds, hits = self.kind[queue], self.hits(limit)[queue]
        first = np.zeros(len(queue), bool)
        places = np.flatnonzero(hits)
        first[places[np.unique(kinds[places], return_index=True)[1]]] = True
        return np.concatenate([[0], np.cumsum(first)])

    def spent(self, queue: NDArray[np.int64], funnel: bool) -> NDArray[np.float64]:
        """Add up the seconds after the first 0, 1, 2 … of a queue, drawing the pool included."""
        before = len(self.seconds) * (self.overhead if funnel else self.drawing)
        return before + np.concatenate([[0.0], np.cumsum(self.seconds[queue])])


def replay(arguments: argparse.Namespace) -> None:
    """Print what each order finds, and draw it."""
    lines = read_pool(arguments.file)
    stored = json.loads(Path(arguments.signals).read_text())
    signals = [None if one is None else Signals(**one) for one in stored["signals"][: len(lines)]]
    costs = stored["drawing"], stored["looking"]
    falls = _learned_elsewhere(lines, signals)
    pools = {
        name: judged(lines, signals, costs, Hull.load(name), arguments.novel)
        for name in arguments.hull
    }
    everything = np.arange(len(lines))
    for name, pool in pools.items():
        seconds = pool.spent(everything, funnel=False)[-1]
        print(f"\nhull {name}: {len(lines)} crystals, relaxing all takes {seconds:.0f} s;")
        print(f"{pool.candidate.sum()} without the known and duplicates. Of the pool relaxed:")
        print("found an hour over that in order (95 % interval), and the share of all found")
        for tier, limit in TIERS.items():
            print(f"  {tier}, {pool.found(everything, limit)[-1]} in all")
            for label, queues in _orders(pool, falls).items():
                told = [f"{share:.0%}: {_compared(pool, queues, limit, share)}" for share in SHARES]
                print(f"    {label:22}", "   ".join(told))
    if arguments.plot:
        _plot(pools, falls, Path(arguments.plot))


def judged(
    lines: list[dict[str, Any]],
    signals: list[Signals | None],
    costs: tuple[float, float],
    hull: Hull,
    known_name: str,
) -> Pool:
    """Place a pool against a hull, and tell what in it is new."""
    known = Reference.load(known_name)
    drawn = [Structure.from_dict(line["drawn"]) for line in lines]
    good = [i for i, line in enumerate(lines) if line["status"] == "converged"]
    relaxed = [Structure.from_dict(lines[i]["relaxed"]) for i in good]
    new_drawn = known.novel(drawn)
    candidate = new_drawn & (unique(drawn) == np.arange(len(lines)))
    new_relaxed = known.novel(relaxed)
    kind = np.full(len(lines), -1)
    kind[good] = np.where(new_relaxed & new_drawn[good], np.array(good)[unique(relaxed)], -1)
    above, drawn_above = np.full((2, len(lines)), np.nan)
    above[good] = _above(hull, relaxed, [float(lines[i]["energy_per_atom"]) for i in good])
    energies = [np.nan if one is None else one.energy_per_atom for one in signals]
    drawn_above[:] = _above(hull, drawn, energies)
    turned = [i for place, i in enumerate(good) if new_relaxed[place] and not new_drawn[i]]
    near = [int(np.sum(above[turned] <= limit)) for limit in TIERS.values()]
    print(
        f"known as drawn {np.sum(~new_drawn)}, of them new when relaxed {len(turned)}; of these "
        f"within 0 and 0.1 eV/atom of hull {hull.name}: {near[0]} and {near[1]}"
    )
    seconds = np.array([float(line["seconds"]) for line in lines])
    return Pool(seconds, sum(costs), costs[0], candidate, kind, drawn_above, above)


def _above(hull: Hull, structures: list[Structure], energies: list[float]) -> NDArray[np.float64]:
    compositions = [one.composition for one in structures]
    formation = hull.formation_energy_per_atom(compositions, energies, find("chgnet"))
    return hull.energy_above_hull(compositions, formation)


def _learned_elsewhere(
    lines: list[dict[str, Any]], signals: list[Signals | None]
) -> NDArray[np.float64]:
    """Return each crystal's sure fall, learned from the other folds; 0 without signals."""
    fold = np.random.default_rng(0).integers(0, FOLDS, len(lines))
    falls = np.zeros(len(lines))
    usable = [i for i, one in enumerate(signals) if one is not None]
    for number in range(FOLDS):
        rows = [i for i in usable if fold[i] != number and lines[i]["status"] == "converged"]
        taught = [one for i in rows if (one := signals[i]) is not None]
        fell = [
            one.energy_per_atom - lines[i]["energy_per_atom"]
            for i, one in zip(rows, taught, strict=True)
        ]
        learned = Fall.learn(taught, fell)
        here = [i for i in usable if fold[i] == number]
        if learned is not None:
            falls[here] = learned.sure([one for i in here if (one := signals[i]) is not None])
    return falls


def _orders(pool: Pool, falls: NDArray[np.float64]) -> dict[str, list[NDArray[np.int64]]]:
    """Return queues of crystals by the rule that made them; several where lots are drawn."""
    candidates = np.flatnonzero(pool.candidate)
    plain = np.where(pool.drawn_above < QUARANTINE, np.nan, pool.drawn_above)[candidates]
    better = plain - falls[candidates]

    def queue(scores: NDArray[np.float64], share: float, seed: int = 0) -> NDArray[np.int64]:
        return candidates[[choice.index for choice in order(scores, share, seed)]]

    return {
        "as drawn": [queue(plain, 0)],
        "less the learned fall": [queue(better, 0)],
        "10 % random": [queue(plain, RANDOM_SHARE, seed) for seed in range(20)],
        "less fall, 10 % random": [queue(better, RANDOM_SHARE, seed) for seed in range(20)],
        "known left out": [candidates],
    }


def _compared(pool: Pool, queues: list[NDArray[np.int64]], limit: float, share: float) -> str:
    """Say how many more are found per hour than in order, and which part of all."""
    total = len(pool.seconds)
    count = int(share * total)
    results = [_gain(pool, queue[:count], limit, np.ones(total)) for queue in queues]
    gain, recall = np.mean(results, axis=0)
    random = np.random.default_rng(0)
    again = []
    for _ in range(400):
        weights = np.bincount(random.integers(0, total, total), minlength=total).astype(float)
        again.append(_gain(pool, queues[0][:count], limit, weights)[0])
    low, high = np.quantile(again, [0.025, 0.975])
    return f"{gain:4.1f} ({low:.1f}-{high:.1f}) {recall:4.0%}"


def _gain(
    pool: Pool, chosen: NDArray[np.int64], limit: float, weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Return hits an hour over those of everything in order, and their share of all hits."""
    first = np.zeros(len(pool.seconds), bool)
    hits = np.flatnonzero(pool.hits(limit))
    first[hits[np.unique(pool.kind[hits], return_index=True)[1]]] = True
    all_hits, all_seconds = weights @ first, weights @ (pool.seconds + pool.drawing)
    picked = np.zeros(len(pool.seconds), bool)
    picked[chosen] = True
    hits_found = weights @ (first & picked)
    seconds = weights @ (picked * pool.seconds + pool.overhead)
    return (hits_found / seconds) / (all_hits / all_seconds), hits_found / all_hits


def _plot(pools: dict[str, Pool], falls: NDArray[np.float64], file: Path) -> None:
    """Draw the share of all hits that is found against the time, for each hull and tier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        len(pools),
        len(TIERS),
        figsize=(9, 3.6 * len(pools)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (name, pool) in zip(grid, pools.items(), strict=True):
        orders = _orders(pool, falls)
        everything = np.arange(len(pool.seconds))
        whole = pool.spent(everything, funnel=False)[-1]
        for axes, (tier, limit) in zip(row, TIERS.items(), strict=True):
            total = pool.found(everything, limit)[-1]
            ideal = np.argsort(np.where(pool.hits(limit), 0, 1e6) + pool.seconds)
            for label, queue, color, line in (
                ("if one knew", ideal, "0.75", ":"),
                ("energy above hull as drawn", orders["as drawn"][0], "#1b6ca8", "-"),
                ("less the learned fall", orders["less the learned fall"][0], "#c8553d", "-"),
                ("the same, 10 % by lot", orders["less fall, 10 % random"][0], "#c8553d", "--"),
                ("everything in order", everything, "0.2", "-"),
            ):
                spent = pool.spent(queue, funnel=queue is not everything)
                found = pool.found(queue, limit)
                axes.plot(100 * spent / whole, 100 * found / total, line, color=color, label=label)
            axes.set_title(f"{tier}, hull {name} ({total} in {len(pool.seconds)})", fontsize=10)
            axes.grid(alpha=0.3)
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 101)
    for axes in grid[-1]:
        axes.set_xlabel("CPU time, % of relaxing everything")
    for axes in grid[:, 0]:
        axes.set_ylabel("found, % of all")
    grid[0, 0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def read_pool(file: str) -> list[dict[str, Any]]:
    """Read what `benchmarks.sun relax` wrote, in the order drawn."""
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    return sorted(lines, key=lambda line: int(line["index"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("look")
    one.add_argument("file", help="what `benchmarks.sun relax` wrote")
    one.add_argument("--out", required=True)
    one.set_defaults(run=look_at)
    two = commands.add_parser("replay")
    two.add_argument("file")
    two.add_argument("--signals", required=True)
    two.add_argument("--hull", action="append", required=True)
    two.add_argument("--novel", default="mp20-train")
    two.add_argument("--plot")
    two.set_defaults(run=replay)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
