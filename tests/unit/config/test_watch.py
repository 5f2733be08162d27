import os
import shutil
from pathlib import Path

import pytest
import yaml

from vllm_smart.config import SmartConfig, load_config
from vllm_smart.config.reload import ConfigReload
from vllm_smart.config.watch import ConfigWatch, changed_sections, reloadable
from vllm_smart.errors import ConfigError

DRAFTER = "drafter: {method: eagle, model: some/head}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "smart.yaml"
    path.write_text(DRAFTER)
    return path


def replace(path: Path, text: str) -> None:
    """Save as editors do: aside, then renamed."""
    aside = path.with_suffix(".swp")
    aside.write_text(text)
    os.replace(aside, path)


def config(text: str = "", node_budget: int | None = 16) -> SmartConfig:
    loaded = load_config(yaml.safe_load(DRAFTER + text))
    return loaded if node_budget is None else loaded.resolve_node_budget(node_budget)


def test_the_first_poll_tells_what_the_file_says(path):
    found = ConfigWatch(path).poll(0.0)
    assert isinstance(found, SmartConfig)
    assert found == load_config(path)


def test_nothing_is_new_in_a_file_that_says_what_was_loaded(path):
    watch = ConfigWatch(path, load_config(path))
    assert watch.poll(0.0) is None
    os.utime(path)
    assert watch.poll(5.0) is None


@pytest.mark.parametrize("save", [Path.write_text, replace])
def test_an_edit_is_told_once(path, save):
    watch = ConfigWatch(path, load_config(path))
    assert watch.poll(0.0) is None
    save(path, DRAFTER + "policy: {name: off}\n")
    found = watch.poll(1.0)
    assert isinstance(found, SmartConfig)
    assert found.policy.name == "off"
    assert watch.poll(2.0) is None


def test_a_replacement_of_the_same_size_and_time_is_seen(path):
    path.write_text(DRAFTER + "tree: {depth: 3}\n")
    watch = ConfigWatch(path, load_config(path))
    assert watch.poll(0.0) is None
    time_ns = path.stat().st_mtime_ns
    aside = path.with_suffix(".swp")
    aside.write_text(DRAFTER + "tree: {depth: 4}\n")
    os.utime(aside, ns=(time_ns, time_ns))
    os.replace(aside, path)
    found = watch.poll(1.0)
    assert isinstance(found, SmartConfig)
    assert found.tree.depth == 4


def test_the_file_is_looked_at_once_a_second(path):
    watch = ConfigWatch(path, load_config(path))
    assert watch.poll(10.0) is None
    path.write_text(DRAFTER + "tree: {depth: 3}\n")
    assert watch.poll(10.9) is None
    assert watch.poll(11.0) is not None


def test_a_bad_edit_is_an_error_once_and_mending_it_is_news(path):
    watch = ConfigWatch(path, load_config(path))
    assert watch.poll(0.0) is None
    path.write_text(DRAFTER + "tree: {deepth: 3}\n")
    error = watch.poll(1.0)
    assert isinstance(error, ConfigError)
    assert "deepth" in str(error)
    assert watch.poll(2.0) is None
    replace(path, DRAFTER + "tree: {depth: 3}\n")
    assert isinstance(watch.poll(3.0), SmartConfig)


def test_undoing_a_bad_edit_is_no_news(path):
    watch = ConfigWatch(path, load_config(path))
    path.write_text("drafter: {")
    assert isinstance(watch.poll(0.0), ConfigError)
    replace(path, DRAFTER)
    assert watch.poll(1.0) is None


def test_a_file_that_is_deleted_and_comes_back_is_read_again(path):
    watch = ConfigWatch(path, load_config(path))
    assert watch.poll(0.0) is None
    path.unlink()
    assert watch.poll(1.0) is None
    assert watch.poll(2.0) is None
    path.write_text(DRAFTER + "policy: {name: paper}\n")
    found = watch.poll(3.0)
    assert isinstance(found, SmartConfig)
    assert found.policy.name == "paper"


def test_a_link_that_is_pointed_elsewhere_is_an_edit(path, tmp_path):
    link, other = tmp_path / "link.yaml", tmp_path / "other.yaml"
    other.write_text(DRAFTER + "tree: {depth: 2}\n")
    link.symlink_to(path)
    watch = ConfigWatch(link, load_config(path))
    assert watch.poll(0.0) is None
    link.unlink()
    link.symlink_to(other)
    assert isinstance(watch.poll(1.0), SmartConfig)


def test_changed_sections_are_named():
    new = config("tree: {depth: 3}\npolicy: {name: chain}\n")
    assert changed_sections(config(), new) == ["tree", "policy"]
    assert changed_sections(config(), config()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "policy: {name: off}\n",
        "policy: {name: chain, num_tokens: 16}\n",
        "policy: {name: fixed_tree, num_nodes: 16, depth: 9}\n",
        "policy: {name: smart, min_gain: 0.1}\n",
        "tree: {depth: 9, width: 20, children: 8}\n",
        "tree: {node_budget: 16}\n",
        "tree: {node_budget: 4}\n",
        "acceptance: {calibrate: false}\n",
    ],
)
def test_policy_acceptance_and_shapes_within_the_budget_can_change(text):
    new = config(text, node_budget=None)
    resolved = reloadable(config(), new)
    assert resolved.policy == new.policy
    assert resolved.acceptance == new.acceptance
    assert resolved.tree.node_budget == (new.tree.node_budget or 16)
    assert resolved.growth.node_budget <= 16


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("metrics: false\n", "metrics=False"),
        ("cost_table: {measure: never}\n", "cost_table.measure='never'"),
        ("cost_table: {path: /table.json}\n", "cost_table.path="),
        ("tree: {node_budget: 17}\n", "tree.node_budget=17 exceeds the 16"),
        ("policy: {name: chain, num_tokens: 17}\n", "policy.num_tokens=17 exceeds"),
        ("policy: {name: fixed_tree, num_nodes: 17}\n", "policy.num_nodes=17 exceeds"),
    ],
)
def test_what_needs_a_restart_is_refused_by_name(text, setting):
    with pytest.raises(ConfigError) as error:
        reloadable(config(), config(text, node_budget=None))
    assert setting in str(error.value)


def test_another_drafter_needs_a_restart():
    new = load_config({"drafter": {"method": "eagle", "model": "other/head"}})
    with pytest.raises(ConfigError, match=r"drafter\.model='other/head' .*it was 'some/head'"):
        reloadable(config(), new)


@pytest.mark.parametrize(
    ("started", "reserved"),
    [("policy: {name: chain, num_tokens: 5}\n", 5), ("policy: {name: off}\n", 0)],
)
def test_a_policy_that_needs_more_memory_than_the_first_one_is_refused(started, reserved):
    with pytest.raises(ConfigError, match=f"reserves memory for {reserved}"):
        reloadable(config(started), config("", node_budget=None))
    assert reloadable(config(started), config("policy: {name: off}\n", node_budget=None))


def test_the_shape_stays_what_it_was_unless_it_becomes_a_chain():
    trees, chains = config().resolve_shape(None), config().resolve_shape("windows")
    unsaid = config("", node_budget=None)
    assert reloadable(trees, unsaid).tree.shape == "tree"
    assert reloadable(chains, unsaid).tree.shape == "chain"
    assert reloadable(trees, config("tree: {shape: chain}\n", node_budget=None)).growth.children == 1
    with pytest.raises(ConfigError, match=r"tree\.shape='tree' cannot take effect without a restart"):
        reloadable(chains, config("tree: {shape: tree}\n", node_budget=None))
    with pytest.raises(ConfigError, match=r"policy\.name='fixed_tree' branches"):
        reloadable(chains, config("policy: {name: fixed_tree, num_nodes: 4}\n", node_budget=None))


def test_the_drafter_stays_what_it_was_where_the_edit_leaves_it_open():
    started = load_config({"tree": {"node_budget": 8}}).resolve_drafter("mtp", None)
    assert reloadable(started, load_config({})).drafter == started.drafter
    with pytest.raises(ConfigError, match=r"drafter\.method='ngram' cannot take effect without"):
        reloadable(started, load_config({"drafter": {"method": "ngram"}}))


@pytest.mark.parametrize("placement", ["inline", "process"])
def test_where_the_drafter_runs_stays_what_was_chosen_at_the_start(placement):
    drafter = {"method": "draft_model", "model": "some/model", "placement": "auto", "cores": [1]}
    asked = load_config({"drafter": drafter}).resolve_node_budget(8)
    found = reloadable(asked.with_placement(placement), asked)
    assert found.drafter.placement == placement


def test_a_reload_is_judged_by_the_start_and_not_by_the_reload_before():
    started = config()
    reloadable(started, config("tree: {node_budget: 4}\n", node_budget=None))
    assert reloadable(started, config("", node_budget=None)).tree.node_budget == 16


class ConfigMap:
    """A volume as kubelet lays it out: files are links through `..data` into their version's folder."""

    def __init__(self, folder: Path, **files: str) -> None:
        self._folder = folder
        self.update(1, **files)
        for name in files:
            (folder / name).symlink_to(Path("..data") / name)

    def update(self, version: int, **files: str) -> None:
        """Write the new version beside the old one, swap one link, and remove the old version."""
        data, old = self._folder / "..data", sorted(self._folder.glob("..2*"))
        new = self._folder / f"..2026_01_01_00_00_{version:02d}"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text)
        aside = self._folder / "..data_tmp"
        aside.symlink_to(new.name)
        os.rename(aside, data)
        for folder in old:
            shutil.rmtree(folder)


def test_a_config_map_is_reloaded_when_its_link_is_swapped(tmp_path):
    """As `launch` names the file, and with a cost table in the same map."""
    text = DRAFTER + "cost_table: {path: table.json}\ntree: {node_budget: 16}\n"
    files = {"smart.yaml": text, "table.json": "{}"}
    volume = ConfigMap(tmp_path, **files)
    path = tmp_path / "smart.yaml"
    started = load_config(path)
    applied: list[SmartConfig] = []
    reload = ConfigReload(path, started, applied.append)
    reload._watch._next_look_s = 0.0
    reload.poll()
    assert applied == []
    volume.update(2, **{**files, "smart.yaml": text + "policy: {name: off}\n"})
    reload._watch._next_look_s = 0.0
    reload.poll()
    assert [config.policy.name for config in applied] == ["off"]
    assert applied[0].cost_table.path.is_file()
