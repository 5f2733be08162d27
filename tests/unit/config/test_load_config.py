from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.config import GrowthLimits, NgramConfig, SmartConfig, load_config
from vllm_smart.config.settings import DEFAULT_BUDGET
from vllm_smart.errors import ConfigError

DRAFTER = {"method": "eagle3", "model": "some/head"}
BESIDE = {"method": "draft_model", "model": "some/model", "placement": "process"}
CONFIGS = Path(__file__).parents[3] / "configs"


def complaint(content: object) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(content)
    return str(error.value)


def complaint_in_file(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "smart.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_drafter_is_all_that_must_be_given():
    config = load_config({"drafter": DRAFTER})
    assert config.policy.name == "smart"
    assert config.tree.node_budget is None
    assert (config.tree.depth, config.tree.width, config.tree.children) == (6, 8, 4)
    assert config.acceptance.calibrate
    assert config.cost_table.measure == "auto"
    assert config.metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"polcy": 1}, "polcy is not a setting. Known here: drafter, ngram, tree, policy,"),
        ({"tree": {"dept": 3}}, "tree.dept is not a setting. Known here: node_budget, depth, width"),
        ({"tree": {"depth": "3"}}, "tree.depth='3': should be a valid integer."),
        ({"tree": {"width": True}}, "tree.width=True: should be a valid integer."),
        ({"tree": {"depth": 0}}, "tree.depth=0: should be greater than or equal to 1."),
        ({"tree": {"node_budget": 5000}}, "tree.node_budget=5000: should be less than or equal to"),
        ({"tree": None}, "tree=None: should be a valid dictionary"),
        ({"policy": {"name": "smrt"}}, "policy.name='smrt' is no policy. Allowed: smart, paper,"),
        ({"policy": {"min_gain": 0.1}}, "policy.name is required and missing. Allowed: smart, paper,"),
        ({"policy": {"name": "smart", "alpha": 1}}, "policy.alpha is not a setting. Known here: name,"),
        ({"policy": {"name": "smart", "min_gain": -1}}, "policy.min_gain=-1: should be greater than"),
        ({"policy": {"name": "paper", "alpha": 0}}, "policy.alpha=0: should be greater than 0."),
        ({"policy": {"name": "chain", "num_tokens": 0.5}}, "policy.num_tokens=0.5: should be a valid"),
        ({"policy": "smart"}, "policy='smart': should be a valid dictionary"),
        (
            {"drafter": {**DRAFTER, "placement": "process"}},
            "drafter.placement='process' does not work with drafter.method='eagle3' yet. Set",
        ),
        (
            {"drafter": BESIDE, "ngram": {}},
            "drafter.placement='process' does not work with an ngram block yet. Set",
        ),
        (
            {"drafter": BESIDE, "trace": {"path": "trace.jsonl"}},
            "drafter.placement='process' does not work with trace.path yet.",
        ),
        (
            {"drafter": {**BESIDE, "placement": "inline", "max_wait_ms": 2.0}},
            "drafter.max_wait_ms=2.0 is not read with drafter.placement 'inline'. Remove it, or set",
        ),
        ({"drafter": {**BESIDE, "placement": "elsewhere"}}, "drafter.placement='elsewhere'"),
        ({"drafter": {**BESIDE, "max_wait_ms": -1.0}}, "drafter.max_wait_ms=-1.0: should be greater"),
        ({"drafter": {**BESIDE, "cores": []}}, "drafter.cores=[]: "),
        (
            {"drafter": {**BESIDE, "memory_gib": 0.0}},
            "drafter.memory_gib=0.0: should be greater than 0",
        ),
        (
            {"drafter": {"method": "eagle"}},
            "drafter.model is required and missing: method 'eagle' needs",
        ),
        (
            {"drafter": {"method": "ngram", "model": "some/head"}},
            "drafter.model='some/head' is not read with method 'ngram'. Remove it",
        ),
        (
            {"drafter": {"model": "some/head"}},
            "drafter.model='some/head' is not read with method 'auto'. Remove it, or set "
            "drafter.method to one of eagle, eagle3, draft_model, mtp",
        ),
        ({"ngram": {"max_nodes": 0}}, "ngram.max_nodes=0: should be greater than or equal to 1."),
        ({"ngram": {"nodes": 3}}, "ngram.nodes is not a setting. Known here: max_nodes,"),
        ({"ngram": {"min_match": 9, "max_match": 4}}, "ngram.min_match=9 exceeds ngram.max_match=4."),
        (
            {"ngram": {}, "policy": {"name": "paper"}},
            "policy.name='paper' knows no n-grams: its rule is about one drafter's tree.",
        ),
        ({"drafter": {**DRAFTER, "method": "medusa"}}, "drafter.method='medusa': should be 'auto',"),
        ({"drafter": {**DRAFTER, "model": ""}}, "drafter.model='': String should have at least 1"),
        ({"acceptance": {"window": 0}}, "acceptance.window=0: should be greater than or equal to 10."),
        ({"cost_table": {"measure": "yes"}}, "cost_table.measure='yes': should be 'auto', 'start'"),
        ({"cost_table": {"path": 3}}, "cost_table.path=3: is not a valid path"),
        ({"metrics": 1}, "metrics=1: should be a valid boolean."),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(settings, message):
    assert complaint({"drafter": DRAFTER, **settings}).startswith(message)


def test_all_wrong_settings_are_named_at_once():
    message = complaint({"drafter": DRAFTER, "tree": {"depth": 0}, "metrics": 1})
    assert "tree.depth=0" in message
    assert "metrics=1" in message


def test_a_drafter_without_a_model_in_the_settings_has_trees_of_a_size_by_default():
    for method in ("auto", "mtp", "ngram"):
        config = load_config({"drafter": {"method": method}}).resolve_node_budget(None)
        assert config.growth.node_budget == DEFAULT_BUDGET


def test_ngrams_are_drafted_where_they_are_the_method_or_have_a_block():
    assert load_config({"drafter": {"method": "ngram"}}).ngrams == NgramConfig()
    assert load_config({"drafter": DRAFTER}).ngrams is None
    assert load_config({"drafter": {"method": "mtp"}}).ngrams is None
    assert load_config({"drafter": {"method": "mtp"}, "ngram": {}}).ngrams == NgramConfig()


@pytest.mark.parametrize(("method", "model"), [("mtp", None), ("ngram", None), ("eagle3", "a/b")])
def test_what_auto_stands_for_is_filled_in(method, model):
    unresolved = load_config({})
    assert (unresolved.drafter.method, unresolved.ngrams) == ("auto", None)
    config = unresolved.resolve_drafter(method, model)
    assert (config.drafter.method, config.drafter.model) == (method, model)
    assert config.ngrams == (NgramConfig() if method == "ngram" else None)
    assert config.drafter.is_model == (method != "ngram")


def test_auto_may_not_become_ngrams_under_a_policy_that_knows_none():
    paper = load_config({"policy": {"name": "paper"}})
    assert paper.resolve_drafter("mtp", None).policy.name == "paper"
    with pytest.raises(ConfigError, match=r"policy\.name='paper' knows no"):
        paper.resolve_drafter("ngram", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty. It needs at least a drafter.method: auto takes what"),
        ("# only a comment\n", "is empty."),
        ("- drafter\n", "must be a mapping of settings, got ['drafter']."),
        ("drafter: {method: eagle", "is not valid YAML:"),
        (b"\xff\xfe\x00", "cannot be read (not UTF-8 text)."),
        ("drafter:\n  method: eagle\n", "drafter.model is required and missing"),
        ("1: 2\n", "1=1: Keys should be strings."),
    ],
)
def test_a_file_that_holds_no_settings_says_why(tmp_path, text, message):
    assert complaint_in_file(tmp_path, text).startswith(message)


def test_a_bare_off_in_yaml_is_the_policy_off(tmp_path):
    path = tmp_path / "smart.yaml"
    path.write_text("drafter: {method: eagle, model: any}\npolicy: {name: off}\n")
    assert load_config(path).policy.name == "off"


def test_a_missing_file_and_a_folder_are_no_settings(tmp_path):
    assert "nowhere.yaml: cannot be read (No such file or directory)." in complaint(
        tmp_path / "nowhere.yaml"
    )
    assert "cannot be read (Is a directory)." in complaint(str(tmp_path))


def write(path: Path, model: str, table: str = "null") -> Path:
    path.write_text(f"drafter: {{method: eagle, model: {model!r}}}\ncost_table: {{path: {table}}}\n")
    return path


def test_a_drafter_folder_beside_the_yaml_is_found_from_anywhere(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "head"
    folder.mkdir(parents=True)
    (tmp_path / "costs.json").touch()
    path = write(tmp_path / "smart.yaml", "models/head", "costs.json")
    monkeypatch.chdir("/")
    config = load_config(path)
    assert config.drafter.model == str(folder)
    assert config.cost_table.path == tmp_path / "costs.json"


@pytest.mark.parametrize(
    "model", ["yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "demo:eagle3", "/a/b", "~/head"]
)
def test_other_drafter_names_are_left_alone(tmp_path, model):
    assert load_config(write(tmp_path / "smart.yaml", model)).drafter.model == model


@given(
    st.sampled_from(["smart", "paper", "sssd", "first_drop", "fixed_tree", "chain", "off"]),
    st.integers(60, 1024),
    st.sampled_from([None, "/tmp/table.json"]),
)
def test_settings_survive_the_way_to_the_workers(name, budget, path):
    config = load_config(
        {"drafter": DRAFTER, "policy": {"name": name}, "cost_table": {"path": path}}
    ).resolve_node_budget(budget)
    assert SmartConfig.model_validate(config.model_dump(mode="json")) == config


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_config({"drafter": DRAFTER}).metrics = False


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_and_explains_itself(path):
    config = load_config(path).resolve_node_budget(64)
    assert config.growth.node_budget <= 64
    assert path.read_text().startswith("#")


def test_there_are_examples():
    assert len(list(CONFIGS.glob("*.yaml"))) >= 6


@pytest.mark.parametrize(
    ("policy", "limits"),
    [
        ({"name": "smart"}, GrowthLimits(32, depth=6, width=8, children=4)),
        ({"name": "paper"}, GrowthLimits(32, depth=6, width=8, children=4)),
        ({"name": "sssd"}, GrowthLimits(32, depth=6, width=8, children=5)),
        ({"name": "first_drop"}, GrowthLimits(32, depth=6, width=8, children=4)),
        (
            {"name": "fixed_tree", "num_nodes": 20, "depth": 3, "width": 5, "children": 6},
            GrowthLimits(20, depth=3, width=5, children=6),
        ),
        ({"name": "chain", "num_tokens": 7}, GrowthLimits(7, depth=7, width=1, children=1)),
        ({"name": "off"}, GrowthLimits(0, depth=0, width=0, children=0)),
    ],
)
def test_each_policy_has_its_growth_limits(policy, limits):
    config = load_config({"drafter": DRAFTER, "policy": policy})
    config = config.resolve_node_budget(32)
    assert config.growth == limits
    assert config.resolve_shape(None).growth == limits
    if policy["name"] == "fixed_tree":
        with pytest.raises(ConfigError, match="branches, and drafts are chains here: trees do not"):
            config.resolve_shape("windows")
    elif limits.node_budget:
        as_chain = config.resolve_shape("windows").growth
        assert as_chain == replace(limits, width=1, children=1)


def test_acceptance_is_kept_in_one_place():
    assert load_config({"acceptance": {"shared_dir": "/a"}}).acceptance.is_kept
    with pytest.raises(ConfigError, match=r"acceptance\.state='/b' and acceptance\.shared_dir='/a'"):
        load_config({"acceptance": {"shared_dir": "/a", "state": "/b"}})


def test_settings_of_a_process_are_read_unless_the_drafter_is_inline():
    asked = {**BESIDE, "placement": "auto", "cores": [3], "max_wait_ms": 1.0}
    config = load_config({"drafter": asked})
    process, inline = config.with_placement("process"), config.with_placement("inline")
    assert process.drafter.cores == [3]
    assert load_config({"drafter": {**BESIDE, "placement": "inline"}}).drafter == inline.drafter


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"drafter": {**DRAFTER, "placement": "auto"}}, "drafter.method='eagle3'"),
        ({"drafter": {**BESIDE, "placement": "auto"}, "ngram": {}}, "an ngram block"),
        ({"drafter": {**BESIDE, "placement": "auto"}}, None),
    ],
)
def test_what_a_process_does_not_work_with_is_no_fault_of_auto(settings, what):
    assert load_config(settings).not_beside == what
