"""Network, model, training and sampling, on a small model and crystals made on the spot."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from symmbfn.checkpoint import CONFIG, WEIGHTS, load_card, load_model
from symmbfn.conditions import CRYSTAL_SYSTEMS, Conditions, nearness
from symmbfn.crystal import Crystal, k_to_lattice, to_structures
from symmbfn.data import CrystalData, count_kinds, preprocess
from symmbfn.draw import Rules, _guided, draw_sites
from symmbfn.errors import SymmBFNError
from symmbfn.geometry_network import CUTOFF, pair_features
from symmbfn.group_tables import GroupTables, expand
from symmbfn.layers import NetworkConfig, Template
from symmbfn.model import Geometry, ModelConfig, SymmBFN
from symmbfn.occupation import up_to
from symmbfn.sample import Tally, sample
from symmbfn.site_network import HIDDEN_ELEMENT, HIDDEN_LETTER, Sites
from symmbfn.train import RESUME, train
from symmbfn.train_config import TrainConfig, model_config
from symmbfn.wyckoff import space_group
from tests.crystals import NAMES, make

SMALL = ModelConfig(
    sites=NetworkConfig(width=32, layers=2, heads=4, dropout=0.0),
    geometry=NetworkConfig(width=32, layers=2, heads=4, pair_width=8, dropout=0.0),
)


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


def template(data: CrystalData) -> Template:
    batch = data.batch(range(len(data)))
    return Template(
        group=batch.group,
        mask=batch.mask,
        kinds=count_kinds(batch.species, batch.mask),
        properties=torch.full((len(data), 1), torch.nan),
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


@pytest.mark.parametrize(
    "name", ["cubic rock salt", "tetragonal rutile", "trigonal Bi2Te3", "triclinic P1"]
)
def test_atoms_and_pair_features_are_those_of_the_structure(name: str) -> None:
    """Shells, directions and nearest distances agree with pymatgen's neighbours."""
    crystal = Crystal.from_structure(make(name))
    structure = crystal.to_structure()
    tables = GroupTables()
    group = torch.tensor([crystal.space_group - 1])
    letters = torch.tensor(crystal.letters)[None]
    atoms = expand(tables, group, letters, torch.ones_like(letters, dtype=torch.bool))
    assert int(atoms.real.sum()) == len(structure)
    orbits = atoms.orbit[0].tolist()
    features = pair_features(
        torch.tensor(crystal.frac_coords)[None].float(),
        torch.tensor(k_to_lattice(crystal.lattice))[None].float(),
        atoms,
        tables.primitive[group],
        tables.to_primitive[group],
    )[0]
    for i in range(len(crystal.species)):
        site = structure[orbits.index(i)]
        neighbours = structure.get_neighbors(site, CUTOFF)
        for j in range(len(crystal.species)):
            distances = np.array([n.nn_distance for n in neighbours if orbits[n.index] == j])
            shell = np.exp(-(((distances - 2.25) / 0.5) ** 2)).sum()
            assert features[i, j, 3].expm1().item() == pytest.approx(shell, rel=1e-2, abs=1e-3)
            nearest = distances.min() if len(distances) else CUTOFF
            assert 4 * features[i, j, -1].item() == pytest.approx(nearest, rel=1e-3)


def noisy_model(data: CrystalData) -> SymmBFN:
    torch.manual_seed(0)
    model = SymmBFN.for_data(model_config(data, SMALL), data).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_estimates_do_not_depend_on_padding_or_order(data: CrystalData) -> None:
    model = noisy_model(data)
    batch = data.batch([NAMES.index("cubic perovskite")])
    lattice = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    points = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))

    def estimate(order: list[int], padding: int) -> tuple[torch.Tensor, ...]:
        pick = torch.tensor(order)
        given = Template(
            group=batch.group,
            mask=torch.arange(3 + padding)[None] < 3,
            kinds=torch.tensor([3]),
            properties=torch.tensor([[1.0]]),
        )
        pad = torch.nn.functional.pad
        letters, species = (pad(x[:, pick], (0, padding)) for x in (batch.letters, batch.species))
        half = Sites(letters.clone(), species.clone())
        half.letters[0, order.index(1)] = HIDDEN_LETTER
        half.species[0, order.index(2)] = HIDDEN_ELEMENT
        sites = Sites(letters, species)
        beliefs = Geometry(pad(points[:, pick], (0, 0, 0, padding)), lattice)
        atoms = expand(model.tables, batch.group, letters, given.mask)
        with torch.no_grad():
            drawn = model.site_estimates(half, given)
            geometry = model.estimate(beliefs, torch.tensor([0.4]), sites, atoms, given)
        return drawn[0][:, :3], drawn[1][:, :3], geometry.coordinates[:, :3], geometry.lattice

    plain = estimate([0, 1, 2], 0)
    for padded, original in zip(estimate([0, 1, 2], 4), plain, strict=True):
        torch.testing.assert_close(padded, original, atol=1e-5, rtol=1e-4)
    *of_orbits, of_lattice = estimate([2, 0, 1], 0)
    torch.testing.assert_close(of_lattice, plain[3], atol=1e-5, rtol=1e-4)
    for turned, original in zip(of_orbits, plain[:3], strict=True):
        torch.testing.assert_close(turned, original[:, [2, 0, 1]], atol=1e-5, rtol=1e-4)


def test_certain_beliefs_are_believed(data: CrystalData) -> None:
    """An untrained model already copies what the beliefs say at t = 1."""
    model = SymmBFN.for_data(model_config(data, SMALL), data).eval()
    batch = data.batch(range(len(data)))
    lattice = model._standardise_lattice(batch.lattice, batch.group)
    atoms = expand(model.tables, batch.group, batch.letters, batch.mask)
    with torch.no_grad():
        estimate = model.estimate(
            Geometry(2 * batch.coordinates - 1, lattice),
            torch.ones(len(data)),
            Sites(batch.letters, batch.species),
            atoms,
            template(data),
        )
    points = (estimate.coordinates + 1) / 2
    torch.testing.assert_close(points[batch.mask], batch.coordinates[batch.mask], atol=2e-3, rtol=0)
    cell = model.lattice_parameters(estimate.lattice, batch.group)
    torch.testing.assert_close(cell, batch.lattice, atol=2e-3, rtol=0)


def test_sites_keep_the_rules_whatever_the_network_says(data: CrystalData) -> None:
    """Number of elements, atoms and fixed positions hold for a network of random weights."""
    model = noisy_model(data)
    groups = torch.tensor([225, 221, 62, 2, 1]).repeat(40) - 1
    orbits = torch.tensor([3, 4, 3, 4, 5]).repeat(40)
    given = Template(
        group=groups,
        mask=torch.arange(5) < orbits[:, None],
        kinds=torch.tensor([2, 3, 1, 3, 4]).repeat(40),
        properties=torch.full((200, 1), torch.nan),
    )
    allowed, required = torch.zeros(2, 100, dtype=torch.bool)
    allowed[[2, 7, 8, 25, 55]] = True
    required[8] = True
    rules = Rules(allowed, required, up_to(16))
    sites, weights = draw_sites(model, given, rules, torch.Generator().manual_seed(0))
    atoms = model.tables.multiplicities[groups[:, None], sites.letters] * given.mask
    assert (atoms.sum(1) <= 16).all()
    assert allowed[sites.species[given.mask]].all()
    assert ((sites.species == 8) & given.mask).any(1).all()
    assert (weights <= 1e-4).all() and weights.isfinite().all()
    torch.testing.assert_close(count_kinds(sites.species, given.mask), given.kinds)
    freedom = model.tables.freedom[groups[:, None], sites.letters]
    for letters, free, mask in zip(sites.letters, freedom, given.mask, strict=True):
        fixed = letters[mask & (free == 0)].tolist()
        assert len(set(fixed)) == len(fixed)


def test_guidance_of_strength_one_is_the_conditional_estimate(data: CrystalData) -> None:
    """And a stronger one moves on from the free estimate through the conditional one."""
    model = noisy_model(data)
    given = template(data)
    given.properties = torch.full((len(data), 1), 0.7)
    free = template(data)
    batch = data.batch(range(len(data)))
    sites = Sites(torch.full_like(batch.letters, HIDDEN_LETTER), batch.species)

    def call(template: Template) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (model.site_estimates(sites, template)[0],)

    (conditional,), (unconditional,) = call(given), call(free)
    torch.testing.assert_close(_guided(call, given, torch.tensor([1.0]))[0], conditional)
    finite = conditional.isfinite()
    strong = _guided(call, given, torch.tensor([3.0]))[0][finite]
    expected = (unconditional + 3 * (conditional - unconditional))[finite]
    torch.testing.assert_close(strong, expected, atol=1e-5, rtol=1e-4)


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
    metrics = tmp_path / "metrics.csv"
    lost = metrics.read_text().splitlines()[-1].replace("60,", "63,", 1)  # reported, not saved
    metrics.write_text(metrics.read_text() + lost + "\n")
    train(replace(config, max_steps=65), data)
    steps = [int(line.split(",")[0]) for line in metrics.read_text().splitlines()[1:]]
    assert steps == list(range(1, 66))
    second = load_card(tmp_path)
    assert (first.training["steps"], second.training["steps"]) == (60, 65)
    other = replace(SMALL, sigma1_lattice=0.1)
    with pytest.raises(SymmBFNError, match="another configuration"):
        train(replace(config, model=model_config(data, other)), data)
    with pytest.raises(SymmBFNError, match="on other data"):
        train(config, replace(data, properties=data.properties + 1))
    with pytest.raises(SymmBFNError, match="on other data"):
        train(config, preprocess([make(NAMES[0])], {"band_gap": [1.0]})[0])


def test_a_frozen_network_stays(data: CrystalData, checkpoint: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        out=tmp_path,
        max_steps=2,
        batch_size=8,
        model=model_config(data, SMALL),
        start_from=checkpoint,
        freeze=("sites",),
    )
    before = load_model(load_card(checkpoint)).state_dict()
    after = load_model(load_card(train(config, data))).state_dict()
    names = [n for n in before if n.startswith(("sites.", "geometry."))]
    moved = {n.split(".")[0] for n in names if not torch.equal(before[n], after[n])}
    assert moved == {"geometry"}
    with pytest.raises(SymmBFNError, match="freeze is sites, geometry: it may be one of"):
        replace(config, freeze=("sites", "geometry"))


def test_training_without_properties_resumes(tmp_path: Path) -> None:
    plain, _ = preprocess([make(name) for name in NAMES[:4]], {})
    config = TrainConfig(out=tmp_path, max_steps=2, model=model_config(plain, SMALL))
    train(config, plain)
    train(replace(config, max_steps=4), plain)
    assert load_card(tmp_path).training["steps"] == 4
    assert len(sample(tmp_path, 2, seed=0, steps=2)) == 2


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
    refused = tally.impossible_sites + tally.overlapping + tally.other_symmetry
    assert tally.drawn == tally.accepted + refused
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


def test_a_formula_is_kept_and_an_impossible_one_refused(checkpoint: Path) -> None:
    for formula, atoms in (("SrTiO3", None), ("TiO2", 6), ("NaCl", None)):
        conditions = Conditions(formula=formula, num_atoms=atoms)
        crystals = sample(checkpoint, 3, seed=0, steps=3, conditions=conditions)
        assert len(crystals) == 3
        sites = {(c.space_group, *c.letters, *c.species) for c in crystals}
        assert len(sites) > 1, "one arrangement, however likely, is not all there is"
        for crystal in crystals:
            assert crystal.formula == formula
            assert crystal.num_atoms == atoms or (atoms is None and crystal.num_atoms <= 20)
    for conditions, message in (
        (Conditions(formula="SrTiO3", num_atoms=6), "does not go into 6 atoms"),
        (Conditions(formula="SrTiO3", exclude=("O",)), "has other elements"),
        (Conditions(formula="Quux"), "cannot be read"),
        (Conditions(formula="SrU"), "U, which does not occur in the training data"),
        (Conditions(formula="SrTiO3", space_groups=(227,), max_atoms=5), "loosen the number"),
        (Conditions(formula="SrTiO3", space_groups=(225,), max_atoms=10), "no Wyckoff positions"),
    ):
        with pytest.raises(SymmBFNError, match=message):
            sample(checkpoint, 1, seed=0, steps=1, conditions=conditions)


def test_crystals_near_a_target_lend_their_templates() -> None:
    """Far beyond all of them the nearest ones still do; unknown ones count as moderately near."""
    column = np.array([[0.0], [1.0], [2.0], [3.0], [np.nan]])
    near = nearness(column, np.array([3.0]))
    assert near.sum() == pytest.approx(1)
    assert (np.diff(near[:4]) > 0).all() and near[3] > near[4] >= near[0]
    far = nearness(column, np.array([50.0]))
    assert (np.diff(far[:4]) > 0).all() and np.isfinite(far).all()
    np.testing.assert_allclose(nearness(column, np.array([np.nan])), 0.2)


def test_required_elements_systems_and_numbers_of_atoms_hold(checkpoint: Path) -> None:
    conditions = Conditions(require=("O",), crystal_systems=("cubic", "tetragonal"), num_atoms=5)
    groups = {n for name in conditions.crystal_systems or () for n in CRYSTAL_SYSTEMS[name]}
    for crystal in sample(checkpoint, 6, seed=0, steps=4, conditions=conditions):
        assert crystal.space_group in groups
        assert "O" in {element.symbol for element in crystal.composition}
        assert crystal.num_atoms == 5


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Conditions(properties={"hardness": 1.0}), "knows band_gap"),
        (Conditions(properties={"band_gap": np.inf}), "finite"),
        (Conditions(properties={"band_gap": 1e30}), "far from the training data"),
        (Conditions(elements=("Xx",)), "unknown element 'Xx'"),
        (Conditions(elements=("Pu",)), "Pu does not occur in the training data"),
        (Conditions(elements=("Na",), exclude=("Na",)), "no element is left"),
        (Conditions(space_groups=(3,)), "no crystal of space group 3"),
        (Conditions(space_groups=(400,)), "choose 1-230"),
        (Conditions(space_groups=(227,), max_atoms=1), "cannot be made of at most 1 atoms"),
        (Conditions(space_groups=(225,), num_atoms=1), "cannot be made of 1 atoms"),
        (Conditions(num_atoms=30), "raise --max-atoms"),
        (Conditions(crystal_systems=("cubist",)), "choose triclinic"),
        (Conditions(crystal_systems=("cubic",), space_groups=(1,)), "none of the space groups"),
        (Conditions(require=("Na",), exclude=("Na",)), "required element Na is excluded"),
        (
            Conditions(
                require=("Na", "Cl", "O", "Mg"),
                elements=("Na", "Cl", "O", "Mg"),
                space_groups=(225,),
            ),
            "4 to 4 elements",
        ),
        (Conditions(guidance={"band_gap": 2.0}), "has no target"),
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
