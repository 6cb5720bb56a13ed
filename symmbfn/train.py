"""Training: `train(config, data, validation)` writes a checkpoint and goes on where it stopped.

    python -m symmbfn.train DATA.safetensors --validation VAL.safetensors --out FOLDER --minutes 60

needs torch, numpy and safetensors only. The learning rate follows the wall-clock budget; all
randomness follows from the seed and the step, so that a resumed run sees the same batches.
"""

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from symmbfn.checkpoint import load_card, load_model, save_checkpoint
from symmbfn.data import Batch, CrystalData
from symmbfn.errors import SymmBFNError
from symmbfn.model import SymmBFN
from symmbfn.train_config import TrainConfig, train_config

PARTS = ("loss", "letters", "elements", "coordinates", "lattice")
RESUME = "resume.safetensors"


@dataclass(frozen=True)
class Progress:
    """One report of a run.

    Attributes:
        step: Optimiser steps so far.
        epoch: Passes over the data so far.
        minutes: Spent, and
        minutes_left: to the end of the budget.
        crystals_per_second: Since the last report.
        training: Mean of each loss in `PARTS` since the last report.
        validation: The same on the validation set, averaged weights; empty without one.
    """

    step: int
    epoch: float
    minutes: float
    minutes_left: float
    crystals_per_second: float
    training: dict[str, float]
    validation: dict[str, float]


class Run:
    """State of a training run: model, averaged weights, optimiser, step, seconds spent."""

    def __init__(self, config: TrainConfig, data: CrystalData) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.model = SymmBFN.for_data(config.model, data).to(config.device)
        self.parent: str | None = None  # sha256 of the weights that the run starts from
        if config.start_from is not None:
            card = load_card(config.start_from)
            self.model.start_from(load_model(card, config.device))
            self.parent = card.sha256
        self.model.bf16 = config.bf16
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.batches = f"{data.digest()} seed {config.seed} batch {config.batch_size}"
        self.step = 0
        self.seconds = 0.0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step.

        Raises:
            SymmBFNError: the training has diverged; the weights are those before.
        """
        config = self.config
        rate = config.learning_rate * self._schedule()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_mix(config.seed + 3, self.step))  # of the dropout
        generator = torch.Generator(config.device).manual_seed(_mix(config.seed, self.step))
        losses = self.model.loss(batch.to(config.device), generator, config.freeze)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not norm.isfinite():
            raise SymmBFNError(
                f"the loss or its slope is no number at step {self.step}: a smaller learning_rate "
                f"than {config.learning_rate:g} may help; what was written before is kept"
            )
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            names, values = zip(*self.model.named_parameters(), strict=True)
            averages = [self.average[name] for name in names]
            torch._foreach_lerp_(averages, list(values), 1 - decay)
        return {name: losses[name].detach() for name in PARTS}

    def _schedule(self) -> float:
        warmup = min(1.0, (self.step + 1) / self.config.warmup)
        return warmup * (0.5 * (1 + math.cos(math.pi * self.spent())) + 0.005)

    def spent(self) -> float:
        """Fraction of the budget that is spent, 0 to 1."""
        steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        return min(1.0, max(steps, self.seconds / (60 * self.config.minutes)))

    def weights(self) -> dict[str, Tensor]:
        """Averaged weights and the buffers that are saved."""
        return {**self.model.state_dict(), **self.average}

    @torch.no_grad()
    def validate(self, data: CrystalData, columns: list[int], size: int = 2048) -> dict[str, float]:
        """Losses of the averaged weights on the first `size` crystals, always the same noise."""
        own = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self._load(self.average)
        self.model.eval()
        totals = mean_losses(self.model, data, columns, size)
        self.model.train()
        self._load(own)
        return totals

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(values[name])

    def save(self) -> None:
        """Write the resume file, replacing the last one whole."""
        tensors = {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value)
        path = self.config.out / RESUME
        temporary = path.with_suffix(".tmp")
        metadata = {
            "step": str(self.step),
            "seconds": str(self.seconds),
            "model": json.dumps(self.config.model.to_dict()),
            "batches": self.batches,
        }
        save_file({n: v.cpu().contiguous() for n, v in tensors.items()}, str(temporary), metadata)
        os.replace(temporary, path)

    def resume(self) -> None:
        """Go on from the resume file.

        Raises:
            SymmBFNError: it is damaged or belongs to another model.
        """
        path = self.config.out / RESUME
        try:
            self._read(path)
        except (SafetensorError, OSError, KeyError) as error:
            raise SymmBFNError(
                f"{path} is damaged ({error}): delete it to start again, or give another --out"
            ) from error

    def _read(self, path: Path) -> None:
        with safe_open(str(path), "pt", device=self.config.device) as file:
            metadata = file.metadata()
            if json.loads(metadata["model"]) != json.loads(json.dumps(self.config.model.to_dict())):
                raise SymmBFNError(
                    f"{path} belongs to a model of another configuration: give another --out, "
                    "or delete it to start again"
                )
            if metadata.get("batches", self.batches) != self.batches:
                raise SymmBFNError(
                    f"{path} belongs to a run on other data, or of another seed or batch size: "
                    "give another --out, or delete it to start again"
                )
            stored = set(file.keys())
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(file.get_tensor(f"model.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
                if f"step.{name}" not in stored:  # never used, so never updated
                    continue
                self.optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}")
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
                self.optimizer.state[parameter]["step"] = self.optimizer.state[parameter][
                    "step"
                ].cpu()
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])


def train(
    config: TrainConfig,
    data: CrystalData,
    validation: CrystalData | None = None,
    on_report: Callable[[Progress], None] | None = None,
    description: dict[str, object] | None = None,
) -> Path:
    """Train until the budget is spent; a run stopped before goes on from its resume file.

    Args:
        config: How.
        data: Training set; it must have the properties that `config.model` names.
        validation: Held-out set for the validation loss.
        on_report: Called with each report.
        description: Stored in the checkpoint under `training`, beside what is recorded anyway.

    Returns:
        The checkpoint's folder.

    Raises:
        SymmBFNError: a property is missing from the data, the resume file is another model's, or
            the training diverges.
    """
    for name in config.model.properties:
        if name not in data.names:
            raise SymmBFNError(
                f"property {name} is not in the training data (it has "
                f"{', '.join(data.names) or 'none'}): import the data with that column"
            )
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        torch.empty(0, device=config.device)
    except (OSError, RuntimeError) as error:
        raise SymmBFNError(
            f"cannot train into {config.out} on {config.device}: {str(error).splitlines()[0]}; "
            "give another --out or --device"
        ) from error
    run = Run(config, data)
    if (config.out / RESUME).exists():
        run.resume()
        _drop_metrics_after(config.out / "metrics.csv", run.step)
    columns = _columns(config.model.properties, data)
    held_out = _columns(config.model.properties, validation) if validation else []
    sums, count, crystals = dict.fromkeys(PARTS, 0.0), 0, 0
    last_report = last_save = clock = time.monotonic()
    for rows, generator in _batches(data, config, run.step):
        if run.spent() >= 1:
            break
        losses = run.update(data.batch(rows, generator, columns))
        for name in PARTS:
            sums[name] += losses[name].item()
        count, crystals = count + 1, crystals + len(rows)
        now = time.monotonic()
        run.seconds, clock = run.seconds + now - clock, now
        finished = run.spent() >= 1
        if finished or now - last_report >= config.report_every:
            progress = Progress(
                step=run.step,
                epoch=run.step * config.batch_size / len(data),
                minutes=run.seconds / 60,
                minutes_left=max(0.0, config.minutes - run.seconds / 60),
                crystals_per_second=crystals / max(now - last_report, 1e-9),
                training={name: total / count for name, total in sums.items()},
                validation=run.validate(validation, held_out) if validation else {},
            )
            _write_metrics(config.out / "metrics.csv", progress)
            if on_report is not None:
                on_report(progress)
            sums, count, crystals = dict.fromkeys(PARTS, 0.0), 0, 0
            last_report = time.monotonic()
        if finished or now - last_save >= config.save_every:
            run.save()
            _write_checkpoint(run, data, description)
            last_save = time.monotonic()
    _plot_losses(config.out)
    return config.out


@torch.no_grad()
def mean_losses(
    model: SymmBFN, data: CrystalData, columns: list[int], size: int = 2048
) -> dict[str, float]:
    """Losses of a model in evaluation mode on the first `size` crystals, always the same noise."""
    device = model.elements.device
    order = data.orbits[:size].argsort(stable=True)
    totals = dict.fromkeys(PARTS, 0.0)
    for index, rows in enumerate(order.split(256)):
        generator = torch.Generator(device).manual_seed(index)
        batch = data.batch(rows, columns=columns).to(device)
        losses = model.loss(batch, generator)
        for name in PARTS:
            totals[name] += losses[name].item() * len(rows) / len(order)
    return totals


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _columns(names: tuple[str, ...], data: CrystalData) -> list[int]:
    return [data.names.index(name) if name in data.names else -1 for name in names]


def _batches(
    data: CrystalData, config: TrainConfig, step: int
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Endless batches from `step` on, with the generator of their views."""
    per_epoch = math.ceil(len(data) / config.batch_size)
    while True:
        epoch, done = divmod(step, per_epoch)
        order = torch.Generator().manual_seed(_mix(config.seed + 1, epoch))
        for rows in list(data.epoch(config.batch_size, order))[done:]:
            yield rows, torch.Generator().manual_seed(_mix(config.seed + 2, step))
            step += 1


def _write_checkpoint(run: Run, data: CrystalData, description: dict[str, object] | None) -> None:
    config = asdict(run.config)
    elsewhere = ("out", "device", "model", "start_from")
    recorded = {name: value for name, value in config.items() if name not in elsewhere}
    training = {
        **(description or {}),
        **recorded,
        **({"start_from": run.parent} if run.parent else {}),
        "crystals": len(data),
        "steps": run.step,
        "epochs": round(run.step * run.config.batch_size / len(data), 1),
        "minutes_spent": round(run.seconds / 60, 1),
        "torch": torch.__version__,
    }
    save_checkpoint(run.config.out, run.model, run.weights(), training)


def _drop_metrics_after(path: Path, step: int) -> None:
    """Forget what a killed run reported after it was last saved: it is about to come again."""
    if path.exists():
        header, *rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join([header, *(r for r in rows if int(r.split(",")[0]) <= step)]))


def _write_metrics(path: Path, progress: Progress) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(
                ["step", "epoch", "minutes", "crystals_per_second", *PARTS]
                + [f"validation_{name}" for name in PARTS]
            )
        writer.writerow(
            [progress.step, f"{progress.epoch:.3f}", f"{progress.minutes:.3f}"]
            + [f"{progress.crystals_per_second:.1f}"]
            + [f"{progress.training[name]:.5f}" for name in PARTS]
            + [f"{progress.validation.get(name, math.nan):.5f}" for name in PARTS]
        )


def _plot_losses(out: Path) -> None:
    """Draw `loss.png` from `metrics.csv`, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    minutes = [float(row["minutes"]) for row in rows]
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, PARTS, strict=False):
        axes.plot(minutes, [float(row[name]) for row in rows], label="training", lw=1)
        axes.plot(minutes, [float(row[f"validation_{name}"]) for row in rows], label="validation")
        axes.set(title=name, xlabel="minutes")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.axes[5].set_visible(False)
    figure.savefig(out / "loss.png", dpi=120)


def main() -> None:
    """Command line of `python -m symmbfn.train`."""
    parser = argparse.ArgumentParser(description="Train SymmBFN on preprocessed data.")
    parser.add_argument("data", type=Path, help="file that 'symmbfn data import' wrote")
    parser.add_argument("--validation", type=Path, help="held-out file of the same kind")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--config", type=Path, help="TOML file of settings")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--start-from", help="checkpoint whose weights to start from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = vars(parser.parse_args())
    try:
        data = CrystalData.load(file := arguments.pop("data"))
        held_out = arguments.pop("validation")
        validation = CrystalData.load(held_out) if held_out else None
        config = train_config(data, arguments.pop("out"), arguments.pop("config"), arguments)
        train(config, data, validation, print_report, {"data": file.name})
    except SymmBFNError as error:
        parser.exit(2, f"error: {error}\n")


def print_report(progress: Progress) -> None:
    """One line a report."""
    validation = progress.validation.get("loss", math.nan)
    print(
        f"step {progress.step}  epoch {progress.epoch:.1f}  loss {progress.training['loss']:.4f}  "
        f"validation {validation:.4f}  {progress.crystals_per_second:.0f} crystals/s  "
        f"{progress.minutes_left:.1f} min left",
        flush=True,
    )


if __name__ == "__main__":
    main()
