"""The critic: what it learns, and how the sampler listens to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pymatgen.core.structure import Structure

from symmbfn.checkpoint import load_card, load_model, save_checkpoint
from symmbfn.choice import _unbalanced
from symmbfn.critic import add_critic
from symmbfn.crystal import Crystal
from symmbfn.data import CrystalData, preprocess
from symmbfn.errors import SymmBFNError
from symmbfn.layers import Template
from symmbfn.mixture import take
from symmbfn.model import ModelConfig
from symmbfn.sample import sample
from symmbfn.site_heads import FEWEST
from symmbfn.site_network import Sites
from symmbfn.train_config import TrainConfig
from tests.crystals import SYMBOLS
from tests.flows_support import crystals, tiny_checkpoint


def judged() -> CrystalData:
    """Cells of two atoms; each with oxygen is stable, no other is."""
    cell = crystals()[0]
    pairs = [(one, other) for one in SYMBOLS for other in SYMBOLS if one != other]
    structures = [Structure(cell.lattice, pair, cell.frac_coords) for pair in pairs]
    energies = [0.0 if "O" in pair else 0.5 for pair in pairs]
    return preprocess(structures, {"energy_above_hull": energies}, views=1)[0]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("parent") / "parent")


@pytest.fixture(scope="module")
def with_critic(parent: Path) -> Path:
    return add_critic(load_card(parent), judged(), parent.with_name("critic"))


def has_oxygen(crystal: Crystal) -> bool:
    return 8 in crystal.species


def test_the_critic_learns_and_leaves_the_rest_alone(parent: Path, with_critic: Path) -> None:
    card, data = load_card(with_critic), judged()
    model, before = load_model(card), load_model(load_card(parent))
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    batch = data.batch(range(len(data)))
    nothing = torch.full((len(data), len(card.properties)), torch.nan)
    template = Template(batch.group, batch.mask, data.kinds(), nothing)
    sites = Sites(batch.letters, batch.species)
    with torch.no_grad():
        told = model.energies_above_hull(model.site_summaries(sites, template))
    stable = batch.properties[:, 0] == 0
    assert told[stable].max() < told[~stable].min()
    figures = card.training["critic"]
    assert isinstance(figures, dict)
    assert figures["crystals"] + figures["held_out"] == len(data) and figures["held_out"] > 0


def test_the_sampler_keeps_what_the_critic_likes(with_critic: Path) -> None:
    def share(proposals: int | None) -> float:
        drawn = sample(with_critic, 60, seed=3, steps=3, proposals=proposals)
        return sum(map(has_oxygen, drawn)) / len(drawn)

    alone, chosen, of_many = share(1), share(None), share(16)
    assert alone + 0.1 < chosen < of_many - 0.1
    again = sample(with_critic, 8, seed=5, steps=2)
    for one, other in zip(again, sample(with_critic, 8, seed=5, steps=2), strict=True):
        assert (one.species == other.species).all() and (one.lattice == other.lattice).all()


def test_sites_of_training_crystals_come_last(with_critic: Path, tmp_path: Path) -> None:
    """The better the critic finds them, the more they would be taken again."""
    card = load_card(with_critic)
    model, data = load_model(card), judged()
    data.properties = data.properties.new_zeros(len(data), 0)
    oxides = (data.species[:, :2] == 7).any(1)
    model.known_sites = data.site_codes()[oxides].unique()
    assert len(model.known_sites) == len(SYMBOLS) - 1  # Li-O and O-Li are the same sites
    other = save_checkpoint(tmp_path / "knows", model, model.state_dict(), card.training)
    drawn = sample(other, 60, seed=3, steps=3, proposals=6)
    pairs = [{*one.species.tolist()} for one in drawn]
    known = [
        8 in one and one <= {*(data.species[oxides, :2] + 1).flatten().tolist()} for one in pairs
    ]
    assert sum(known) < 0.1 * len(drawn)


def test_compositions_without_balance_are_told() -> None:
    atoms = torch.tensor([[1, 1, 0], [1, 2, 0], [2, 1, 1], [3, 1, 0]])
    species = torch.tensor([[10, 16, 0], [10, 16, 0], [10, 16, 16], [28, 12, 0]])
    assert _unbalanced(atoms, species).tolist() == [0, 1, 0, 0]  # NaCl, NaCl2, Na2Cl2, an alloy


def test_sites_have_the_same_code_in_any_order_and_with_any_padding() -> None:
    letters, species = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[7, 3, 3, 0]])
    group, mask = torch.tensor([224]), torch.tensor([[True, True, True, False]])
    code = Sites(letters, species).codes(group, mask)
    order = torch.tensor([2, 0, 1])
    assert Sites(letters[:, order], species[:, order]).codes(group, mask[:, order]) == code
    swapped = species[:, torch.tensor([1, 0, 2, 3])]
    assert Sites(letters, swapped).codes(group, mask) != code
    assert Sites(letters, species).codes(group - 1, mask) != code
    assert Sites(letters, species).codes(group, mask | True) != code


def test_training_crystals_are_known(parent: Path) -> None:
    data, _ = preprocess(crystals(), {})
    known = load_model(load_card(parent)).known_sites
    assert torch.isin(data.site_codes(), known).all()
    assert not torch.isin(judged().site_codes()[:1], known).any()


def test_without_a_critic_new_sites_are_chosen(parent: Path, with_critic: Path) -> None:
    known = [{12, 8}, {20, 8}, {11, 17}, {3, 9}, {19, 35}, {20, 9}]

    def share(proposals: int | None) -> float:
        drawn = sample(parent, 60, seed=3, steps=3, proposals=proposals)
        return sum({*one.species.tolist()} in known for one in drawn) / len(drawn)

    assert share(None) == share(1) > 2 * share(8)
    with pytest.raises(SymmBFNError, match="at least 1"):
        sample(with_critic, 2, seed=0, proposals=0)


def test_too_little_to_learn_from_is_told(parent: Path, tmp_path: Path) -> None:
    data, _ = preprocess(crystals(), {"energy_above_hull": [0.1] * 6})
    with pytest.raises(SymmBFNError, match=f"the critic needs {FEWEST}"):
        add_critic(load_card(parent), data, tmp_path)
    data, _ = preprocess(crystals(), {"band_gap": [0.1] * 6})
    with pytest.raises(SymmBFNError, match="0 crystals with energy_above_hull"):
        add_critic(load_card(parent), data, tmp_path)


def test_one_chemical_system_is_learned_from_as_well(parent: Path, tmp_path: Path) -> None:
    """Wherever the system falls: some crystals are held out, and some are not."""
    data = judged()
    for pair in ((7, 11), (10, 18), (2, 16), (18, 34)):
        data.species[:, :2] = torch.tensor(pair)
        card = load_card(add_critic(load_card(parent), data, tmp_path / "one"))
        figures = card.training["critic"]
        assert isinstance(figures, dict) and 0 < figures["held_out"] < figures["crystals"]
        json.dumps(figures, allow_nan=False)


def test_what_a_critic_knew_is_replayed(with_critic: Path, tmp_path: Path) -> None:
    """New crystals that say nothing of oxygen leave what is known of it."""
    data = judged()
    stable = data.properties[:, 0] == 0
    oxides, new = (take(data, mask.nonzero()[:, 0]) for mask in (stable, ~stable))
    new = take(new, [*range(len(new))] * 2)
    told = {}
    for name, replay in (("forgets", None), ("replays", data)):
        out = add_critic(load_card(with_critic), new, tmp_path / name, replay=replay)
        critic = load_model(load_card(out))
        batch = oxides.batch(range(len(oxides)))
        nothing = torch.full((len(oxides), len(critic.config.properties)), torch.nan)
        template = Template(batch.group, batch.mask, oxides.kinds(), nothing)
        sites = Sites(batch.letters, batch.species)
        with torch.no_grad():
            told[name] = critic.energies_above_hull(critic.site_summaries(sites, template))
    assert told["forgets"].mean() > 0.3 and told["replays"].mean() < 0.15


def test_a_training_cannot_make_a_critic(with_critic: Path, parent: Path, tmp_path: Path) -> None:
    """An untrained one would choose at random."""
    with pytest.raises(SymmBFNError, match="symmbfn retrain"):
        TrainConfig(out=tmp_path, model=ModelConfig(critic=64))
    child, other = load_model(load_card(with_critic)), load_model(load_card(parent))
    with pytest.raises(SymmBFNError, match="no critic of width"):
        child.start_from(other)
    other.start_from(child)  # which is left behind
    assert other.critic is None


def test_checkpoints_of_before_have_no_known_sites(parent: Path, tmp_path: Path) -> None:
    card = load_card(parent)
    model = load_model(card)
    weights = {name: v for name, v in model.state_dict().items() if name != "known_sites"}
    old = load_card(save_checkpoint(tmp_path / "old", model, weights, card.training))
    assert len(load_model(old).known_sites) == 0
    assert load_card(old.path).model == replace(card.model, critic=0)
