"""Network, model, training and sampling, on a small model and crystals made on the spot."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from symmbfn.checkpoint import CONFIG, WEIGHTS, load_card, load_model
from symmbfn.crystal import Crystal, k_to_lattice, to_structures
from symmbfn.data import CrystalData, count_kinds, preprocess
from symmbfn.errors import SymmBFNError
from symmbfn.model import Beliefs, ModelConfig, SymmBFN, Template, limit_kinds
from symmbfn.network import NetworkConfig, pair_features
from symmbfn.sample import Conditions, Tally, sample
from symmbfn.train import RESUME, TrainConfig, model_config, train
from symmbfn.wyckoff import space_group
from tests.crystals import NAMES, make

SMALL = ModelConfig(network=NetworkConfig(width=32, layers=2, heads=4, pair_width=8, dropout=0.0))


@pytest.fixture(scope="module")
def data() -> CrystalData:
    band_gaps = [float(i) if i % 2 else np.nan for i in range(len(NAMES))]
    crystals, dropped = preprocess([make(name) for name in NAMES], {"band_gap": band_gaps})
    assert not dropped
    return crystals


@pytest.fixture(scope="module")
def checkpoint(data: CrystalData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    config = TrainConfig(out=out, max_steps=8, batch_size=8, model=model_config(data, SMALL))
    return train(config, data, data)


def template(data: CrystalData, model: SymmBFN) -> Template:
    batch = data.batch(range(len(data)))
    return Template(
        group=batch.group,
        mask=batch.mask,
        kinds=count_kinds(batch.species, batch.mask),
        properties=torch.full((len(data), 1), torch.nan),
        allowed=model.elements,
    )


def test_data_survive_the_file(data: CrystalData, tmp_path: Path) -> None:
    data.save(tmp_path / "data.safetensors")
    back = CrystalData.load(tmp_path / "data.safetensors")
    for name, value in vars(data).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(back, name), value, equal_nan=True)
    assert back.names == ("band_gap",)
    assert len(back.letters) > len(back)  # there are equivalent views


def test_a_bad_data_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no safetensors")
    with pytest.raises(SymmBFNError, match="symmbfn data import"):
        CrystalData.load(tmp_path / "bad")


def test_an_epoch_shows_every_crystal_once(data: CrystalData) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat(list(data.epoch(4, generator)))
    assert sorted(seen.tolist()) == list(range(len(data)))


@pytest.mark.parametrize("name", ["cubic rock salt", "tetragonal rutile", "trigonal Bi2Te3"])
def test_pair_features_know_the_nearest_neighbour(name: str) -> None:
    crystal = Crystal.from_structure(make(name))
    group = space_group(crystal.space_group)
    operations = np.concatenate([group.rotations, group.translations[:, :, None]], -1)
    features = pair_features(
        torch.tensor(crystal.frac_coords)[None].float(),
        torch.tensor(k_to_lattice(crystal.lattice))[None].float(),
        torch.tensor(operations)[None].float(),
        torch.tensor([len(operations)]),
        torch.tensor(group.multiplicities[crystal.letters])[None].float(),
    )
    distances = 4 * features[0, :, :, -7]
    assert distances.min().item() == pytest.approx(crystal.shortest_distance(), rel=1e-3)


def test_estimates_do_not_depend_on_padding_or_order(data: CrystalData) -> None:
    torch.manual_seed(0)
    model = SymmBFN.for_data(model_config(data, SMALL), data).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    index = NAMES.index("cubic perovskite")
    t = torch.tensor([0.4])

    def estimate(order: list[int], padding: int) -> torch.Tensor:
        batch = data.batch([index])
        pick = torch.tensor(order)
        size = len(order) + padding
        generator = torch.Generator().manual_seed(0)
        coordinates = torch.rand(1, 3, 3, generator=generator)[:, pick]
        elements = torch.randn(1, 3, 100, generator=generator)[:, pick]
        letters = torch.randn(1, 3, 27, generator=generator)[:, pick]
        padded = [
            torch.nn.functional.pad(x, (0, 0, 0, padding)) for x in (coordinates, elements, letters)
        ]
        beliefs = Beliefs(padded[0], torch.randn(1, 6, generator=generator), *padded[1:])
        given = Template(
            group=batch.group,
            mask=torch.arange(size)[None] < 3,
            kinds=torch.tensor([3]),
            properties=torch.tensor([[1.0]]),
            allowed=model.elements,
        )
        with torch.no_grad():
            return model.estimate(beliefs, t, given).elements[:, :3]

    plain = estimate([0, 1, 2], 0)
    torch.testing.assert_close(estimate([0, 1, 2], 4), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(estimate([2, 0, 1], 0), plain[:, [2, 0, 1]], atol=1e-5, rtol=1e-4)


def test_certain_beliefs_are_believed(data: CrystalData) -> None:
    """An untrained model already copies what the beliefs say at t = 1."""
    model = SymmBFN.for_data(model_config(data, SMALL), data).eval()
    batch = data.batch(range(len(data)))
    one = torch.ones(len(data))
    species = torch.nn.functional.one_hot(batch.species, 100).float()
    letters = torch.nn.functional.one_hot(batch.letters, 27).float()
    lattice = model._standardise(batch.lattice, batch.group)
    beliefs = Beliefs(2 * batch.coordinates - 1, lattice, 50 * species, 50 * letters)
    with torch.no_grad():
        estimates = model.estimate(beliefs, one, template(data, model))
    assert (estimates.elements.argmax(-1) == batch.species)[batch.mask].all()
    assert (estimates.letters.argmax(-1) == batch.letters)[batch.mask].all()
    points = (estimates.coordinates + 1) / 2
    torch.testing.assert_close(points[batch.mask], batch.coordinates[batch.mask], atol=2e-3, rtol=0)
    cell = model._unstandardise(estimates.lattice, batch.group)
    torch.testing.assert_close(cell, batch.lattice, atol=2e-3, rtol=0)


def test_limiting_the_kinds_keeps_the_elements_that_explain_most() -> None:
    """Two orbits say Fe, one O or else N, one Fe or else Co; of two kinds, Fe and O stay."""
    probabilities = torch.full((3, 5, 100), 1e-6)
    orbits = ({25: 1.0}, {25: 0.9}, {7: 0.6, 6: 0.4}, {25: 0.4, 26: 0.6}, {50: 1.0})
    for orbit, wanted in enumerate(orbits):
        for element, probability in wanted.items():
            probabilities[:, orbit, element] = probability
    mask = torch.tensor([True, True, True, True, False]).expand(3, -1)  # the last is padding
    limited = limit_kinds(probabilities.log(), mask, torch.tensor([2, 3, 0])).argmax(-1)
    assert limited[0, :4].tolist() == [25, 25, 7, 25]
    assert limited[1, :4].tolist() == [25, 25, 7, 26]
    assert limited[2, :4].tolist() == [25, 25, 7, 26]


def test_training_lowers_the_loss_and_resumes(data: CrystalData, tmp_path: Path) -> None:
    config = TrainConfig(
        out=tmp_path,
        max_steps=60,
        batch_size=14,
        warmup=5,
        report_every=0.0,
        save_every=1e9,
        learning_rate=3e-3,
        bf16=False,
        model=model_config(data, SMALL),
    )
    reports: list[float] = []
    train(config, data, None, lambda progress: reports.append(progress.training["loss"]))
    assert sum(reports[-10:]) < 0.8 * sum(reports[:10])
    assert (tmp_path / RESUME).exists() and (tmp_path / "loss.png").exists()
    first = load_card(tmp_path)
    train(replace(config, max_steps=65), data)
    second = load_card(tmp_path)
    assert (first.training["steps"], second.training["steps"]) == (60, 65)
    other = replace(SMALL, beta1_letters=2.0)
    with pytest.raises(SymmBFNError, match="another configuration"):
        train(replace(config, model=model_config(data, other)), data)


def test_a_damaged_resume_file_or_folder_is_refused(data: CrystalData, tmp_path: Path) -> None:
    config = TrainConfig(out=tmp_path, max_steps=1, model=model_config(data, SMALL))
    (tmp_path / RESUME).write_bytes(b"half a file")
    with pytest.raises(SymmBFNError, match="is damaged"):
        train(config, data)
    with pytest.raises(SymmBFNError, match="another --out"):
        train(replace(config, out=tmp_path / RESUME), data)
    with pytest.raises(SymmBFNError, match="another --out or --device"):
        train(replace(config, device="abacus"), data)


def test_training_needs_the_named_properties(data: CrystalData, tmp_path: Path) -> None:
    model = replace(SMALL, properties=("hardness",))
    with pytest.raises(SymmBFNError, match="hardness is not in the training data"):
        train(TrainConfig(out=tmp_path, model=model), data)


def test_samples_keep_the_rules_and_repeat(checkpoint: Path) -> None:
    tally = Tally()
    crystals = sample(checkpoint, 12, seed=5, steps=4, tally=tally)
    again = sample(checkpoint, 12, seed=5, steps=4)
    other = sample(checkpoint, 12, seed=6, steps=4)
    assert [c.formula for c in crystals] == [c.formula for c in again]
    assert [c.formula for c in crystals] != [c.formula for c in other]
    refused = tally.too_many_atoms + tally.no_legal_positions + tally.overlapping
    assert tally.drawn == tally.accepted + refused + tally.other_number_of_elements
    assert tally.accepted == 12
    for crystal, structure in zip(crystals, to_structures(crystals), strict=True):
        group = space_group(crystal.space_group)
        fixed = crystal.letters[group.degrees_of_freedom[crystal.letters] == 0]
        assert len(set(fixed)) == len(fixed)
        assert crystal.letters.max() < group.num_positions
        assert crystal.num_atoms == len(structure) <= 20
        assert crystal.shortest_distance() >= 0.5


def test_hard_conditions_hold(checkpoint: Path) -> None:
    conditions = Conditions(
        elements=("Na", "Cl", "O"),
        exclude=("O",),
        space_groups=(225, 2),
        max_atoms=8,
        properties={"band_gap": 3.0},
    )
    for crystal in sample(checkpoint, 4, seed=0, steps=4, conditions=conditions):
        assert crystal.space_group in (225, 2)
        assert {element.symbol for element in crystal.composition} <= {"Na", "Cl"}
        assert crystal.num_atoms <= 8


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Conditions(properties={"hardness": 1.0}), "knows band_gap"),
        (Conditions(properties={"band_gap": np.inf}), "finite"),
        (Conditions(elements=("Xx",)), "unknown element 'Xx'"),
        (Conditions(elements=("Pu",)), "Pu does not occur in the training data"),
        (Conditions(elements=("Na",), exclude=("Na",)), "no element is left"),
        (Conditions(space_groups=(3,)), "no crystal of space group 3"),
        (Conditions(space_groups=(400,)), "choose 1-230"),
        (Conditions(space_groups=(227,), max_atoms=1), "loosen the conditions"),
    ],
)
def test_bad_conditions_are_one_clear_error(
    checkpoint: Path, conditions: Conditions, message: str
) -> None:
    with pytest.raises(SymmBFNError, match=message):
        sample(checkpoint, 2, seed=0, conditions=conditions)


def test_damaged_and_foreign_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def copy() -> None:
        for name in (CONFIG, WEIGHTS):
            (tmp_path / name).write_bytes((checkpoint / name).read_bytes())

    with pytest.raises(SymmBFNError, match="does not exist"):
        load_card(tmp_path / "nothing")
    copy()
    card = load_card(tmp_path)
    assert load_model(card).config.properties == ("band_gap",)
    blob = bytearray((tmp_path / WEIGHTS).read_bytes())
    blob[-5] ^= 1
    (tmp_path / WEIGHTS).write_bytes(blob)
    with pytest.raises(SymmBFNError, match="truncated or changed"):
        load_card(tmp_path)
    copy()
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(SymmBFNError, match="truncated or changed"):
        load_card(tmp_path)
    copy()
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "format": "someone else's"}))
    with pytest.raises(SymmBFNError, match="not ours"):
        load_card(tmp_path)
