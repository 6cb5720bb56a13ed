r"""Does a band gap steer? Judged by a model that is not the generator.

    python -m benchmarks.band_gap fit train.parquet val.parquet test.parquet --out runs/gap
    python -m benchmarks.band_gap steer mp20 --judge runs/gap --targets 0,1,3,5 -n 200 --out gap.png

`fit` describes crystals by CHGNet's atom features (their mean, spread and extremes over the atoms)
and trains a small network from there to the band gap (PBE, Materials Project), with the mean
absolute error as loss; it prints the error on the test crystals, whatever those files are called.
`steer` draws crystals for each target and prints what the judge thinks of them as they were drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from chgnet.model import CHGNet
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pymatgen.core import Structure
from torch import Tensor, nn

from relax.chgnet_graph import crystal_graph
from symmbfn.conditions import Conditions
from symmbfn.crystal import to_structures
from symmbfn.importers import import_crystals
from symmbfn.sample import sample

FEATURES = 4 * 64


def describe(structures: list[Structure]) -> NDArray[np.float32]:
    """(n, `FEATURES`) of crystals; NaN for one that CHGNet cannot see."""
    model = CHGNet.load(verbose=False, use_device="cpu").eval()
    rows = np.full((len(structures), FEATURES), np.nan, np.float32)
    for index, one in enumerate(structures):
        numbers = np.array([site.specie.Z for site in one])
        try:
            graph = crystal_graph(numbers, one.lattice.matrix, one.frac_coords)
            with torch.no_grad():
                atoms = model([graph], task="e", return_atom_feas=True)["atom_fea"][0]
        except Exception as error:  # an element or a cell that CHGNet does not know
            print(f"{one.composition.reduced_formula} left out: {error}")
            continue
        pooled = [atoms.mean(0), atoms.std(0, correction=0), atoms.amax(0), atoms.amin(0)]
        rows[index] = torch.cat(pooled).numpy()
        if index % 2000 == 0:
            print(f"{index} of {len(structures)} described", flush=True)
    return rows


def judge() -> nn.Sequential:
    """From features to the band gap, eV."""
    return nn.Sequential(
        nn.BatchNorm1d(FEATURES, affine=False),
        nn.Linear(FEATURES, 256),
        nn.SiLU(),
        nn.Dropout(0.2),
        nn.Linear(256, 256),
        nn.SiLU(),
        nn.Dropout(0.2),
        nn.Linear(256, 1),
        nn.Softplus(),
    )


def fit(arguments: argparse.Namespace) -> None:
    """Describe, train, print the error, save."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sets = [_described(file, out) for file in (arguments.train, arguments.val, arguments.test)]
    torch.manual_seed(0)
    model = judge()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    epochs, size = arguments.epochs, 256
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    x, y = sets[0]
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(x)).split(size):
            if len(rows) > 1:
                loss = (model(x[rows])[:, 0] - y[rows]).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: validation MAE {_error(model, *sets[1]):.3f} eV", flush=True)
    x, y = sets[2]
    trivial = (y - sets[0][1].median()).abs().mean()
    metal = ((_predicted(model, x) < 0.1) == (y < 0.1)).float().mean()
    print(
        f"test: MAE {_error(model, x, y):.3f} eV ({trivial:.3f} by always saying the median); "
        f"on gaps above 0.1 eV {_error(model, x[y > 0.1], y[y > 0.1]):.3f}; "
        f"metal or not: {metal:.1%} right"
    )
    torch.save(model.state_dict(), out / "judge.pt")


def _described(file: Path, out: Path) -> tuple[Tensor, Tensor]:
    """Features and gaps of a file's crystals, computed once."""
    kept = out / f"{file.stem}.npz"
    if not kept.exists():
        found = import_crystals([file])
        np.savez(kept, x=describe(found.structures), y=found.properties["band_gap"])
    with np.load(kept) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).float()
    known = x.isfinite().all(1) & y.isfinite()
    return x[known], y[known]


@torch.no_grad()
def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    gaps: Tensor = model(x)[:, 0]
    return gaps


def _error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((_predicted(model, x) - y).abs().mean())


def steer(arguments: argparse.Namespace) -> None:
    """Draw for each target, judge, print and plot."""
    model = judge()
    model.load_state_dict(torch.load(arguments.judge / "judge.pt", weights_only=True))
    achieved: dict[str, NDArray[np.float32]] = {}
    for label in ["none", *arguments.targets.split(",")]:
        asked = {} if label == "none" else {"band_gap": float(label)}
        conditions = Conditions(asked, dict.fromkeys(asked, arguments.guidance))
        drawn = sample(
            arguments.checkpoint,
            arguments.n,
            seed=0,
            proposals=arguments.proposals,
            conditions=conditions,
        )
        x = torch.from_numpy(describe(to_structures(drawn)))
        gaps = _predicted(model, x[x.isfinite().all(1)]).numpy()
        achieved[label] = gaps
        quartiles = np.round(np.quantile(gaps, [0.25, 0.5, 0.75]), 2).tolist()
        error = (
            ""
            if label == "none"
            else f"median error {np.median(np.abs(gaps - float(label))):.2f}, "
        )
        print(f"target {label}: {error}quartiles {quartiles} eV", flush=True)
    if arguments.out:
        _plot(arguments.out, achieved)


def _plot(path: str, achieved: dict[str, NDArray[np.float32]]) -> None:
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(achieved))
    axes.violinplot(list(achieved.values()), places, showmedians=True, showextrema=False)
    for place, label in enumerate(achieved):
        if label != "none":
            axes.plot([place - 0.3, place + 0.3], [float(label)] * 2, color="#bc4b51", lw=2)
    axes.plot([], [], color="#bc4b51", lw=2, label="asked for")
    axes.set_xticks(places, ["nothing asked", *(f"{one} eV" for one in list(achieved)[1:])])
    axes.set_ylabel("band gap by the judge, eV")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("fit")
    for name in ("train", "val", "test"):
        one.add_argument(name, type=Path)
    one.add_argument("--epochs", type=int, default=60)
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=fit)
    two = commands.add_parser("steer")
    two.add_argument("checkpoint")
    two.add_argument("--judge", type=Path, required=True)
    two.add_argument("--targets", default="0,1,3,5")
    two.add_argument("-n", type=int, default=200)
    two.add_argument("--guidance", type=float, default=2.0)
    two.add_argument("--proposals", type=int)
    two.add_argument("--out")
    two.set_defaults(run=steer)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
