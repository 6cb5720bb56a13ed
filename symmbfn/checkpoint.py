"""Checkpoints: a folder with `model.safetensors`, `config.json` and a model card.

Nothing pickled is read or written. The weights' sha256 stands in `config.json` and is checked.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from symmbfn.errors import SymmBFNError
from symmbfn.model import ModelConfig, SymmBFN

FORMAT = "symmbfn-checkpoint-2"
_HALVED = ("sites.", "geometry.", "critic.", "estimator.")  # stored as float16
DEFAULT_CHECKPOINT = "mp20"
SHIPPED = Path(__file__).parent / "checkpoints"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Card:
    """What is known about a checkpoint without loading its weights.

    Attributes:
        name: Name or path it was asked for by.
        path: Its folder.
        sha256: Of the weights file.
        properties: Names of the properties it can be steered by.
        model: The model's configuration.
        training: How it was trained: data, steps, minutes and what else was recorded.
        metrics: What its samples scored, where measured.
    """

    name: str
    path: Path
    sha256: str
    properties: tuple[str, ...]
    model: ModelConfig
    training: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, object] = field(default_factory=dict)


def save_checkpoint(
    folder: str | Path,
    model: SymmBFN,
    weights: dict[str, torch.Tensor],
    training: dict[str, object],
) -> Path:
    """Write weights (float32 ones as float16) and configuration; each file replaced whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (value.half() if _is_weight(name, value) else value).contiguous()
        for name, value in weights.items()
    }
    temporary = folder / f"{WEIGHTS}.tmp"
    save_file(stored, str(temporary), {"format": FORMAT})
    os.replace(temporary, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "sha256": _sha256(folder / WEIGHTS),
        "model": model.config.to_dict(),
        "training": training,
        "metrics": {},
    }
    temporary = folder / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / CONFIG)
    return folder


def load_card(checkpoint: str | Path = DEFAULT_CHECKPOINT) -> Card:
    """Read a checkpoint's configuration and check its weights' hash.

    Args:
        checkpoint: Name of a shipped one, or a folder.

    Raises:
        SymmBFNError: there is none, it is not one of ours, or its weights are damaged.
    """
    folder = _folder(checkpoint)
    where = f"checkpoint {checkpoint}"
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["format"] != FORMAT:
            raise KeyError(config["format"])
        model = ModelConfig.from_dict(config["model"])
        expected = str(config["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SymmBFNError(
            f"{where}: {CONFIG} is missing or not ours ({error!r}); "
            "give a folder that 'symmbfn train' wrote"
        ) from error
    if not (folder / WEIGHTS).is_file() or _sha256(folder / WEIGHTS) != expected:
        raise SymmBFNError(
            f"{where}: {WEIGHTS} is missing, truncated or changed (its sha256 is not the one in "
            f"{CONFIG}); copy the folder again"
        )
    return Card(
        name=str(checkpoint),
        path=folder,
        sha256=expected,
        properties=model.properties,
        model=model,
        training=config.get("training", {}),
        metrics=config.get("metrics", {}),
    )


def load_model(card: Card, device: torch.device | str = "cpu") -> SymmBFN:
    """The model of a checkpoint, in evaluation mode.

    Raises:
        SymmBFNError: the weights do not fit the configuration.
    """
    try:
        weights = load_file(str(card.path / WEIGHTS), device=str(device))
        model = SymmBFN(card.model, num_crystals=len(weights["templates"]))
        weights.setdefault("known_sites", model.known_sites)  # none in those of before 2026-11-25
        model.known_sites = weights["known_sites"]
        model.load_state_dict(
            {name: v.float() if v.is_floating_point() else v for name, v in weights.items()}
        )
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise SymmBFNError(
            f"checkpoint {card.name}: the weights do not fit {CONFIG} ({reason}); "
            "copy the folder again"
        ) from error
    return model.to(device).eval()


def _folder(checkpoint: str | Path) -> Path:
    name = str(checkpoint)
    if (SHIPPED / name / CONFIG).is_file() and "/" not in name:
        return SHIPPED / name
    if Path(name).is_dir():
        return Path(name)
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))) or "none"
    raise SymmBFNError(
        f"checkpoint {name} does not exist: give a folder that 'symmbfn train' wrote, "
        f"or a shipped one ({shipped})"
    )


def _is_weight(name: str, value: torch.Tensor) -> bool:
    return value.dtype == torch.float32 and name.startswith(_HALVED)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
