"""The estimator: what it learns, and how the sampler listens where a property is asked for."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pymatgen.core.structure import Structure

from symmbfn.checkpoint import load_card, load_model
from symmbfn.conditions import Conditions
from symmbfn.critic import add_critic
from symmbfn.data import CrystalData, preprocess
from symmbfn.errors import SymmBFNError
from symmbfn.estimator import add_estimator, enough
from symmbfn.sample import proposals_of, sample
from symmbfn.site_heads import FEWEST, summaries_of
from tests.crystals import SYMBOLS
from tests.flows_support import PROPERTIES, crystals, tiny_checkpoint


def measured() -> CrystalData:
    """Cells of two atoms; each with oxygen has a band gap of 4 eV, no other has any."""
    cell = crystals()[0]
    pairs = [(one, other) for one in SYMBOLS for other in SYMBOLS if one != other]
    structures = [Structure(cell.lattice, pair, cell.frac_coords) for pair in pairs]
    gaps = [4.0 if "O" in pair else 0.0 for pair in pairs]
    formation = [-1.0 if index % 7 else math.nan for index in range(len(pairs))]
    columns = {"formation_energy_per_atom": formation, "band_gap": gaps}
    return preprocess(structures, columns, views=1)[0]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("parent") / "parent")


@pytest.fixture(scope="module")
def with_estimator(parent: Path) -> Path:
    return add_estimator(load_card(parent), measured(), parent.with_name("estimator"))


def test_it_learns_every_property_and_leaves_the_rest_alone(
    parent: Path, with_estimator: Path
) -> None:
    card, data = load_card(with_estimator), measured()
    model, before = load_model(card), load_model(load_card(parent))
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        told = model.expected_properties(summaries_of(model, data))
    gaps = (told * model.property_std + model.property_mean)[:, PROPERTIES.index("band_gap")]
    known = data.properties[:, data.names.index("band_gap")]
    assert (gaps - known).abs().mean() < 0.5
    figures = card.training["estimator"]
    assert isinstance(figures, dict) and figures.keys() == set(PROPERTIES)
    gap = figures["band_gap"]
    assert gap["skill"] > 0.8 and gap["mean_absolute_error"] < 1


def test_the_sampler_keeps_what_comes_near_to_a_target(with_estimator: Path) -> None:
    def share(gap: float | None, proposals: int | None) -> float:
        asked = Conditions({} if gap is None else {"band_gap": gap})
        drawn = sample(with_estimator, 60, seed=3, steps=3, proposals=proposals, conditions=asked)
        return sum(8 in one.species for one in drawn) / len(drawn)

    assert share(4.0, 16) > share(4.0, 1) + 0.1
    assert share(0.0, 16) < share(0.0, 1) - 0.1


def test_several_proposals_are_the_default_with_an_estimator(
    parent: Path, with_estimator: Path
) -> None:
    assert proposals_of(load_card(parent)) == 1 < proposals_of(load_card(with_estimator))


def test_what_cannot_be_learned_has_no_say(parent: Path, tmp_path: Path) -> None:
    """A property that is noise, and one that too few crystals have."""
    data = measured()
    formation, gap = (data.names.index(name) for name in PROPERTIES)
    data.properties[:, gap] = torch.rand(len(data), generator=torch.Generator().manual_seed(1))
    data.properties[FEWEST - 1 :, formation] = torch.nan
    card = load_card(add_estimator(load_card(parent), data, tmp_path))
    assert card.training["estimator"].keys() == {"band_gap"}  # type: ignore[attr-defined]
    assert (load_model(card).estimator_skill < 0.2).all()
    data.properties[FEWEST - 1 :] = torch.nan
    assert not enough(data, PROPERTIES) and not enough(data, ())
    with pytest.raises(SymmBFNError, match=f"fewer than {FEWEST} crystals have"):
        add_estimator(load_card(parent), data, tmp_path)


def test_a_guidance_of_nothing_leaves_the_target_out_of_the_choice(with_estimator: Path) -> None:
    def drawn(**asked: dict[str, float]) -> list[list[int]]:
        conditions = Conditions(properties={"band_gap": 4.0}, **asked)
        found = sample(with_estimator, 40, seed=3, steps=2, proposals=16, conditions=conditions)
        return [one.species.tolist() for one in found]

    share = sum(8 in one for one in drawn()) / 40
    assert share > sum(8 in one for one in drawn(guidance={"band_gap": 0.0})) / 40 + 0.1


def test_with_a_critic_each_speaks_of_its_own(tmp_path: Path) -> None:
    """The shipped case: energy above hull and balance are the critic's, the gap the estimator's."""
    data = measured()
    oxides = (data.species[:, :2] == 7).any(1)
    energies = torch.where(oxides, 0.5, 0.0)[:, None]
    base = tiny_checkpoint(tmp_path / "base", ("energy_above_hull", "band_gap"))
    known = replace(
        data,
        properties=torch.cat([energies, data.properties[:, 1:]], 1),
        names=("energy_above_hull", "band_gap"),
    )
    judged = replace(data, properties=energies, names=("energy_above_hull",))
    critic = add_critic(load_card(base), judged, tmp_path / "critic")
    both = add_estimator(load_card(critic), known, tmp_path / "both")

    def share(**targets: float) -> float:
        asked = Conditions(properties=targets)
        drawn = sample(both, 60, seed=3, steps=2, proposals=16, conditions=asked)
        return sum(8 in one.species for one in drawn) / len(drawn)

    assert share() < 0.2 < share(energy_above_hull=0.5)
    assert share(band_gap=4.0) > share() + 0.1
