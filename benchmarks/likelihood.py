r"""Whether the generator's own likelihood tells which crystals to relax first.

    python -m benchmarks.likelihood runs/pool.jsonl --signals runs/pool-signals.json --hull mp2020

The pool and its signals are those of `benchmarks.funnel`. The four losses of each crystal as drawn,
averaged over 32 draws of time and noise, bound its likelihood from below. Prints the rank
correlation of each with the relaxed energy above the hull, beside that of one energy calculation;
and what a regression, judged out of fold, gains when it is told them besides.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.stats import spearmanr

from benchmarks.funnel import FOLDS, TIERS, judged, read_pool
from relax.hull import Hull
from relax.ranking import Signals
from symmbfn.checkpoint import load_card, load_model
from symmbfn.data import preprocess

PARTS = ("letters", "elements", "coordinates", "lattice")
DRAWS = 32
SHARE = 0.2  # of the pool that would be relaxed


def losses(checkpoint: str, structures: list[Structure]) -> NDArray[np.float64]:
    """Return the losses of each crystal, shape (len(structures), 4)."""
    model = load_model(load_card(checkpoint)).eval()
    data, dropped = preprocess(structures, {}, views=1)
    gone = {index for index, _ in dropped}
    rows = np.full((len(structures), len(PARTS)), np.nan)
    with torch.no_grad():
        for row, index in enumerate(i for i in range(len(structures)) if i not in gone):
            batch = data.batch(
                torch.full((DRAWS,), row), columns=[-1] * len(model.config.properties)
            )
            found = model.loss(batch, torch.Generator().manual_seed(0))
            rows[index] = [found[name].item() for name in PARTS]
    return rows


def told(features: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predict a target by quadratic regression on the other folds, shape (rows,)."""
    scaled = (features - features.mean(0)) / features.std(0)
    terms = np.column_stack([np.ones(len(target)), scaled, scaled**2])
    fold = np.random.default_rng(0).integers(0, FOLDS, len(target))
    predicted = np.empty(len(target))
    for number in range(FOLDS):
        here = fold == number
        weights = np.linalg.lstsq(terms[~here], target[~here], rcond=None)[0]
        predicted[here] = terms[here] @ weights
    return predicted


def main() -> None:
    """Compute, correlate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="what `benchmarks.sun relax` wrote")
    parser.add_argument("--signals", required=True, help="what `benchmarks.funnel look` wrote")
    parser.add_argument("--hull", action="append", required=True)
    parser.add_argument("--novel", default="mp20-train")
    parser.add_argument("--checkpoint", default="mp20")
    given = parser.parse_args()
    lines = read_pool(given.file)
    stored = json.loads(Path(given.signals).read_text())
    signals = [None if one is None else Signals(**one) for one in stored["signals"]]
    began = time.process_time()
    likelihood = losses(given.checkpoint, [Structure.from_dict(line["drawn"]) for line in lines])
    each = (time.process_time() - began) / len(lines)
    print(f"{1e3 * each:.0f} ms of one core for the likelihood of a crystal")
    for name in given.hull:
        costs = stored["drawing"], stored["looking"]
        pool = judged(lines, signals, costs, Hull.load(name), given.novel)
        finite = np.isfinite(np.column_stack([pool.above, pool.drawn_above, likelihood]))
        rows = np.flatnonzero(pool.candidate & finite.all(1))
        above, drawn, parts = pool.above[rows], pool.drawn_above[rows], likelihood[rows]
        print(f"hull {name}, {len(rows)} crystals; rank correlation with the energy relaxed:")
        columns = dict(zip(PARTS, parts.T, strict=True)) | {"energy as drawn": drawn}
        ranks = [f"{part} {spearmanr(one, above)[0]:.2f}" for part, one in columns.items()]
        print("  ", ", ".join(ranks))
        one = np.log(0.35 + np.clip(drawn, -0.3, 5.0))[:, None]
        target = np.log(0.35 + np.clip(above, -0.3, 2.0))
        for label, features in (("energy", one), ("and likelihood", np.hstack([one, parts]))):
            predicted = told(features, target)
            first = rows[np.argsort(predicted)[: int(SHARE * len(lines))]]
            hits = {
                tier: f"{pool.hits(limit)[first].sum()} of {pool.hits(limit)[rows].sum()}"
                for tier, limit in TIERS.items()
            }
            rank = spearmanr(predicted, above)[0]
            print(f"   {label:15} rank correlation {rank:.3f}; first {SHARE:.0%}: {hits}")


if __name__ == "__main__":
    main()
