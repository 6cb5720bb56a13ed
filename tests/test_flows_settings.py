"""Campaign settings: what is accepted, what is refused and how it is said."""

from pathlib import Path

import pytest

from flows.commands.common import _space_groups
from flows.errors import ConfigError
from flows.retrain_settings import LoopConfig, RetrainConfig
from flows.settings import CampaignConfig, ConditionSettings, RelaxationSettings, parse_number

EXAMPLE = Path(__file__).parent.parent / "examples" / "campaign.toml"


def test_the_example_file_is_valid_and_options_win_over_it() -> None:
    plain = CampaignConfig.from_toml(EXAMPLE)
    changed = CampaignConfig.from_toml(EXAMPLE, {"n": 3, "conditions": {"max_atoms": 8}})
    assert (plain.n, changed.n) == (64, 3)
    assert changed.conditions.max_atoms == 8
    assert changed.conditions.elements == plain.conditions.elements


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sed = 1", "unknown key 'sed'; did you mean 'seed'?"),
        ("[conditions]\nelemnts = ['Li']", "unknown key 'conditions.elemnts'"),
        ("[conditions]\nelemnts = ['Li']", "did you mean 'elements'?"),
        ("[relaxation]\nsteps = 3", "unknown key 'relaxation.steps'; did you mean 'max_steps'?"),
        ("n = 0", "n: input should be greater than or equal to 1, got 0"),
        ("n = 'many'", "n: "),
        ("[conditions]\nelements = ['li']", "did you mean 'Li'?"),
        ("[conditions]\nelements = ['Xx']", "unknown element 'Xx'"),
        ("[conditions]\nelements = ['Li']\nexclude = ['Li']", "conditions: elements is empty"),
        ("[conditions]\nspace_groups = [231]", "no space group 231"),
        ("[conditions]\nproperties = {band_gap = nan}", "conditions.properties.band_gap"),
        ("[thresholds]\nstable = 1.0", "thresholds must rise"),
        ("key = 'a b'", "key: "),
        ("key = '-a'", "key: "),
        ("key = '../a'", "key: "),
        ("n == 3", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        CampaignConfig.from_toml(file)
    message = str(raised.value)
    assert message.startswith(str(file))
    assert says in message
    assert "\n" not in message


def test_a_missing_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*examples/campaign\.toml"):
        CampaignConfig.from_toml(tmp_path / "nothing.toml")


def test_the_key_follows_what_decides_the_result_and_nothing_else() -> None:
    key = CampaignConfig().idempotency_key("checkpoint")
    same = CampaignConfig(database="sqlite:///other.db", workers=3, lease_seconds=30)
    assert same.idempotency_key("checkpoint") == key
    others = [CampaignConfig(seed=1), CampaignConfig(n=65), CampaignConfig(steps=7)]
    keys = {key, *(other.idempotency_key("checkpoint") for other in others)}
    keys.add(CampaignConfig().idempotency_key("another checkpoint"))
    assert len(keys) == 5
    assert CampaignConfig(key="mine").idempotency_key("checkpoint") == "mine"


def test_settings_that_come_later_leave_older_keys_as_they_were() -> None:
    class Later(CampaignConfig):
        colour: str = "red"

    key = "discover-a1bc9ac7ad1a7be5"  # before there was keep_symmetry
    assert CampaignConfig().idempotency_key("checkpoint") == key
    assert Later().idempotency_key("checkpoint") == key
    assert Later(colour="blue").idempotency_key("checkpoint") != key
    kept = CampaignConfig(relaxation=RelaxationSettings(keep_symmetry=True))
    assert kept.identity()["relaxation"]["keep_symmetry"] is True


def test_batches_add_up_and_have_seeds_of_their_own() -> None:
    config = CampaignConfig(n=10, batch_size=4)
    sizes = [config.size_of_batch(number) for number in range(config.number_of_batches)]
    assert sizes == [4, 4, 2]
    seeds = [CampaignConfig(seed=seed).batch_seed(n) for seed in (0, 1) for n in range(50)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert CampaignConfig().batch_seed(3) == 4281200824149327689  # the same on every machine


def test_a_missing_seed_follows_from_the_run() -> None:
    config = CampaignConfig(seed=None)
    assert config.with_run_seed("a") == config.with_run_seed("a")
    assert config.with_run_seed("a").seed != config.with_run_seed("b").seed
    assert CampaignConfig(seed=5).with_run_seed("a").seed == 5


def test_a_key_needs_a_seed_or_it_could_be_run_only_once() -> None:
    with pytest.raises(ConfigError, match=r"^here: key 'mine' without a seed: .*give a seed$"):
        CampaignConfig.build({"key": "mine", "seed": None}, where="here")
    assert CampaignConfig.build({"key": "mine", "seed": 3}, where="here").key == "mine"


@pytest.mark.parametrize("name", ["-a", ".", "../a"])
def test_names_that_become_folders_begin_with_a_word(name: str) -> None:
    with pytest.raises(ConfigError, match="key: "):
        RetrainConfig.build({"key": name}, where="here")
    with pytest.raises(ConfigError, match="name: "):
        LoopConfig.build({"name": name}, where="here")


def test_a_property_is_a_name_and_a_finite_number() -> None:
    assert parse_number("band_gap=1.5", "--property", "x=1") == ("band_gap", 1.5)
    for text in ("band_gap", "=1", "band_gap=wide", "band_gap=nan"):
        with pytest.raises(ConfigError, match="write NAME=VALUE"):
            parse_number(text, "--property", "x=1")


def test_space_groups_are_numbers_or_symbols_and_systems_of_any_case() -> None:
    assert _space_groups("225, Fd-3m,P1") == [225, 227, 1] and _space_groups(None) is None
    settings = ConditionSettings(crystal_systems=("Cubic",))
    assert settings.crystal_systems == ("cubic",)
