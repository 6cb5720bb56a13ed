"""Settings of a training run: defaults, a file, what is given; and starting from other weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from symmbfn.checkpoint import load_card, load_model
from symmbfn.data import CrystalData, preprocess
from symmbfn.errors import SymmBFNError
from symmbfn.layers import NetworkConfig
from symmbfn.model import ModelConfig, SymmBFN
from symmbfn.site_network import Sites
from symmbfn.train import train
from symmbfn.train_config import TrainConfig, model_config, train_config
from tests.crystals import NAMES, make

SIZE = NetworkConfig(width=32, layers=1, heads=2)
SMALL = ModelConfig(SIZE, replace(SIZE, pair_width=8))


@pytest.fixture
def data() -> CrystalData:
    names = NAMES[:6]
    return preprocess([make(name) for name in names], {"band_gap": range(len(names))})[0]


def test_what_is_given_goes_before_the_file_and_the_file_before_defaults(
    data: CrystalData, tmp_path: Path
) -> None:
    file = tmp_path / "train.toml"
    file.write_text(
        "minutes = 5\nseed = 3\n[model]\ndrop_all = 0.25\n[model.sites]\ndropout = 0.5\n"
    )
    config = train_config(data, tmp_path, file, {"seed": 7, "batch_size": None})
    assert (config.minutes, config.seed, config.batch_size) == (5.0, 7, 128)
    assert (config.model.drop_all, config.model.sites.dropout) == (0.25, 0.5)
    assert config.model.sites.layers == ModelConfig().sites.layers
    assert config.model.properties == ("band_gap",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minute = 5", "'minute', which is not known: use minutes"),
        ("[model.sites]\ndropouts = 0.1", r"\[model\] \[sites\] has 'dropouts'"),
        ("batch_size = 'many'", "batch_size is 'many', but must be of the kind of 128"),
        ("model = 3", "model is 3"),
        ("max_steps = 'ten'", "max_steps is 'ten'"),
        ("minutes = -1", "minutes is -1.0: it must be above 0"),
        ("batch_size = 0", "batch_size is 0"),
        ("[model.sites]\nwidth = 100", "width 100 is no multiple of 8 heads"),
        ("[model.geometry]\ndropout = 1.0", "0 <= dropout < 1"),
        ("minutes = ", "cannot be read as TOML"),
    ],
)
def test_a_bad_file_is_refused(data: CrystalData, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.toml").write_text(text)
    with pytest.raises(SymmBFNError, match=message):
        train_config(data, tmp_path, tmp_path / "train.toml")
    with pytest.raises(SymmBFNError, match="cannot be read"):
        train_config(data, tmp_path, tmp_path / "absent.toml")


def test_a_run_starts_from_the_weights_of_another(data: CrystalData, tmp_path: Path) -> None:
    first = TrainConfig(tmp_path / "1", max_steps=3, model=model_config(data, SMALL))
    train(first, data)
    parent = load_model(load_card(first.out))
    wider = replace(
        data,
        properties=data.properties.repeat(1, 2),
        names=("band_gap", "hardness"),
        lattice=data.lattice * 1.1,
    )
    model = SymmBFN.for_data(model_config(wider, SMALL), wider)
    model.start_from(parent)
    torch.testing.assert_close(model.lattice_mean, parent.lattice_mean)  # not of the other data
    batch = data.batch(range(len(data)))
    sites = Sites(batch.letters, batch.species)
    template = parent._template(batch, None)
    wide = replace(template, properties=torch.full((len(data), 2), torch.nan))
    wide.properties[:, 0] = template.properties[:, 0]
    expected = parent.sites(sites, template)
    for ours, theirs in zip(model.eval().sites(sites, wide), expected, strict=True):
        torch.testing.assert_close(ours, theirs)

    second = replace(
        first, out=tmp_path / "2", start_from=first.out, model=model_config(wider, SMALL)
    )
    train(second, wider)
    assert load_card(second.out).training["start_from"] == load_card(first.out).sha256


def test_only_a_model_that_fits_can_be_started_from(data: CrystalData, tmp_path: Path) -> None:
    config = TrainConfig(tmp_path / "1", max_steps=1, model=model_config(data, SMALL))
    train(config, data)
    other = replace(SMALL, sites=replace(SIZE, layers=2), properties=data.names)
    for model, its_data in (
        (other, data),
        (
            replace(SMALL, properties=("hardness", "band_gap")),
            replace(data, properties=data.properties.repeat(1, 2), names=("hardness", "band_gap")),
        ),
    ):
        with pytest.raises(SymmBFNError, match="other sizes or properties"):
            train(
                TrainConfig(tmp_path / "2", max_steps=1, model=model, start_from=config.out),
                its_data,
            )


def test_a_training_that_diverges_is_no_checkpoint(data: CrystalData, tmp_path: Path) -> None:
    model = model_config(data, SMALL)
    config = TrainConfig(tmp_path, max_steps=50, warmup=1, learning_rate=1e30, model=model)
    with pytest.raises(SymmBFNError, match=r"no number at step \d+: a smaller learning_rate"):
        train(config, data)
    assert not (tmp_path / "model.safetensors").exists()
    for wrong in ({"minutes": math.inf}, {"learning_rate": math.inf}, {"seed": 2**64}):
        with pytest.raises(SymmBFNError, match="it must be"):
            TrainConfig(tmp_path, model=model, **wrong)
