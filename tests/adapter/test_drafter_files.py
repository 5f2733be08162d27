"""A folder of the wrong kind is refused before weights are loaded, with what it is instead."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vllm_smart.demo_model import demo_model_paths
from vllm_smart.errors import ConfigError
from vllm_smart.refusals.drafter_files import check_drafter_files, tensor_shapes

pytestmark = pytest.mark.vllm
SHIPPED = demo_model_paths()


@pytest.mark.parametrize(
    ("method", "kind"), [("eagle", "eagle"), ("eagle3", "eagle3"), ("draft_model", "draft")]
)
def test_drafters_of_their_own_kind_pass(method, kind):
    check_drafter_files(method, SHIPPED[kind])


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_a_whole_model_is_no_head(method):
    with pytest.raises(ConfigError, match=r"is no EAGLE head: .* drafter\.method to draft_model"):
        check_drafter_files(method, SHIPPED["target"])


@pytest.mark.parametrize(("method", "other"), [("eagle", "eagle3"), ("eagle3", "eagle")])
def test_a_head_of_the_other_kind_is_named(method, other):
    with pytest.raises(ConfigError, match=f"Set drafter.method to {other}"):
        check_drafter_files(method, SHIPPED[other])


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config\.json"):
        check_drafter_files("draft_model", tmp_path)


def test_a_file_that_is_only_a_pointer_to_one_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"model\.safetensors is no safetensors file"):
        check_drafter_files("eagle", tmp_path)


def test_names_on_the_hub_and_other_formats_pass(tmp_path):
    check_drafter_files("eagle3", "someone/a-head")
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    check_drafter_files("eagle3", tmp_path)


def test_shapes_are_read_from_all_shards(tmp_path):
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"fc.weight": torch.zeros(4, 8)}, tmp_path / "model-00002-of-00002.safetensors")
    assert tensor_shapes(tmp_path) == {"a": (2, 3), "fc.weight": (4, 8)}
