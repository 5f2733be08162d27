"""Suites: what is accepted, what a mistake looks like, and what arms send to the engine."""

from pathlib import Path

import pytest
import yaml

from tests.unit.bench.synthetic import ARMS, suite
from vllm_smart.bench.arms import SmartArm, SmartSettings, is_fixed_chain
from vllm_smart.bench.load_suite import load_suite
from vllm_smart.errors import ConfigError

SUITES = sorted((Path(__file__).parents[3] / "benchmarks" / "suites").glob("*.yaml"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_loads_and_has_a_quick_version(path):
    loaded = load_suite(path)
    assert len(loaded.made_quick().batch_sizes) <= len(loaded.batch_sizes)
    assert not loaded.batch_sizes or any(is_fixed_chain(arm) for arm in loaded.arms)


def _error(tmp_path, **changes) -> str:
    path = tmp_path / "suite.yaml"
    content = suite().model_dump(mode="json", exclude_defaults=True) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(ConfigError) as error:
        load_suite(path)
    assert str(path) in str(error.value)
    return str(error.value)


PLAIN = {"kind": "plain"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"drafters": None}, "drafters is required"),
        ({"drafters": ["medusa"]}, "drafters.0='medusa'"),
        ({"repeat": 3}, "repeat is not a setting"),
        ({"repeats": 0}, "repeats=0"),
        ({"arms": [PLAIN, {"kind": "stock_chain", "k": 0}]}, "k=0"),
        ({"arms": [{"kind": "stock_chain", "k": 2}]}, "exactly one arm of kind 'plain'"),
        (
            {"arms": [PLAIN, {"kind": "stock_chain", "k": 2}] + [{"kind": "stock_chain", "k": 2}]},
            "two are",
        ),
        ({"arms": [PLAIN, {"kind": "smart", "policy": {"name": "best"}}]}, "'best' is no policy"),
        ({"arms": [PLAIN, {"kind": "smart", "policy": {"name": "paper", "alfa": 1}}]}, "policy.alfa"),
        (
            {"arms": [PLAIN, {"kind": "smart", "policy": {"name": "chain", "num_tokens": 40}}]},
            "node_budget=32",
        ),
        ({"workloads": [{"temperature": 0.8}]}, "stock_runner: v2"),
        ({"workloads": [{"text": "poems"}]}, "workloads.0.text='poems'"),
        ({"workloads": [{}, {"prompt_tokens": 64}]}, "have the same name"),
        ({"output_tokens": {}}, "output_tokens"),
        ({"output_tokens": 1}, "at least 2"),
        ({"arms": [PLAIN, {"kind": "stock_schedule"}]}, "needs arms of kind 'stock_chain'"),
        ({"share_stock_engine": False, "arms": [*ARMS, {"kind": "stock_schedule"}]}, "too late"),
        (
            {"arms": [PLAIN, {"kind": "smart", "drafter": {"method": "eagle"}}]},
            "of drafter, an arm can",
        ),
        ({"arms": [PLAIN, {"kind": "smart", "colour": {}}]}, "colour is not"),
        ({"arms": [PLAIN, {"kind": "smart", "acceptance": {"calibrat": True}}]}, "calibrat"),
        ({"batch_sizes": []}, "nothing to run"),
        ({"serving": {"arms": ["best"], "rates": [1]}}, "there is no arm 'best'"),
        ({"batch_sizes": [64]}, "engine.max_num_seqs=32"),
        ({"drafters": ["mtp"]}, "has no heads for 'mtp'"),
        ({"pair": {"target": "/models/mine"}}, "has none for the drafter 'eagle3'"),
        (
            {"pair": {"inflate": {"hidden_size": 768}}},
            "inflate.num_layers is required",
        ),
        ({"engine": {"max_model_len": 128}}, "engine.max_model_len=128"),
    ],
)
def test_a_mistake_names_the_file_the_key_and_the_value(tmp_path, changes, named):
    assert named in _error(tmp_path, **changes)


@pytest.mark.parametrize("text", ["- a list", "key: [", ""])
def test_what_is_no_suite_at_all_is_refused(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"suite\.yaml"):
        load_suite(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")


def test_quick_changes_only_what_it_names():
    quick = suite(quick={"repeats": 1}).made_quick()
    assert quick.repeats == 1
    assert quick.batch_sizes == [1, 4]


def test_a_bare_off_is_a_name_and_not_a_boolean():
    arm = SmartArm(kind="smart", policy=yaml.safe_load("{name: off}"))
    assert arm.label == "off"
    assert SmartSettings().switched(arm)["policy"]["name"] == "off"


def test_every_arm_sends_all_sections_in_full():
    shared = SmartSettings(tree={"depth": 3}, acceptance={"window": 100})
    first = SmartArm(kind="smart", policy={"name": "smart"}, acceptance={"calibrate": False})
    second = SmartArm(kind="smart", policy={"name": "paper"})
    ours, theirs = shared.switched(first), shared.switched(second)
    assert ours.keys() == theirs.keys() == {"policy", "tree", "acceptance", "cost_table"}
    assert ours["tree"] == theirs["tree"]
    assert ours["tree"]["node_budget"] == shared.node_budget
    assert ours["acceptance"]["calibrate"] is False
    assert theirs["acceptance"] == {**ours["acceptance"], "calibrate": True, "window": 100}


def test_overrides_of_an_arm_leave_the_rest_of_a_section_alone():
    shared = SmartSettings(tree={"depth": 3, "width": 5})
    arm = SmartArm(kind="smart", name="chain_of_ours", tree={"width": 1})
    assert shared.content(arm, {})["tree"] == {"depth": 3, "width": 1}


def test_how_the_suites_drafter_is_used_may_differ():
    arm = SmartArm(kind="smart", name="uncoupled", drafter={"coupled_sampling": False})
    assert arm.needs_own_engine
    drafter = SmartSettings().content(arm, {"method": "eagle3", "model": "any"})["drafter"]
    assert drafter == {"method": "eagle3", "model": "any", "coupled_sampling": False}


def test_what_cannot_change_in_a_living_engine_gets_one_of_its_own():
    assert not SmartArm(kind="smart", acceptance={"calibrate": False}).needs_own_engine
    assert not SmartArm(kind="smart", name="x", cost_table={"correct": False}).needs_own_engine
    assert SmartArm(kind="smart", name="x", threads=1).needs_own_engine
    assert SmartArm(kind="smart", name="x", cost_table={"repeats": 1}).needs_own_engine


def test_only_fixed_chains_are_chains_by_hindsight():
    kinds = [is_fixed_chain(arm) for arm in suite().arms]
    assert kinds == [False, True, True, False]


def test_all_of_a_suite_can_run_in_another_dtype():
    other = suite(pair={"inflate": {"hidden_size": 384, "num_layers": 8}}).in_dtype("float32")
    assert other.engine.dtype == "float32"
    assert other.pair.inflate.dtype == "float32"
    assert suite(pair="demo").in_dtype("float32").pair == "demo"
