"""Pairs with another attention, for benchmarks: they say what the shipped one says."""

import json

import pytest

from benchmarks.attention_pairs import with_latents
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.demo_model.inflate import inflate_pair

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["target", "draft"])
def test_latents_say_what_keys_and_values_say(tmp_path, name):
    shipped = demo_model_paths()["target"].parent
    inflate_pair(shipped, tmp_path / "pair", hidden_size=768, num_layers=5, dtype="float32")
    with_latents(tmp_path / "pair", tmp_path / "latents")
    tokens = torch.arange(2, 130)[None] * 7 % 2048
    with torch.no_grad():
        expected, found = (
            transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)(
                tokens
            ).logits
            for folder in (tmp_path / "pair", tmp_path / "latents")
        )
    config = json.loads((tmp_path / "latents" / name / "config.json").read_text())
    assert config["kv_lora_rank"] == 512
    # Hidden states are not quite equally long: their norm adds a little to what it divides by.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-2)
    assert expected.std() > 1  # what is compared says something
