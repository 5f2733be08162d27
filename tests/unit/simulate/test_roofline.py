"""Estimated costs: what they must agree with."""

import json

import pytest

from vllm_smart.errors import ConfigError
from vllm_smart.profiling import Context
from vllm_smart.simulate.roofline import estimate

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


def test_a_step_of_one_row_reads_the_weights_and_one_of_many_multiplies_them(model):
    found = estimate("H200", model, 1, 8192).table
    # 15 GB at 4.8 TB/s take 3.1 ms; no step is faster than that, and few rows come with it.
    assert 3.1 < found.verify_ms(1) < 6.5
    assert found.verify_ms(16) < 1.05 * found.verify_ms(1)
    # 2 x 7.5e9 x 8192 operations at 989 TFLOPS take 124 ms.
    assert 124 < found.verify_ms(8192) < 300
    assert found.draft_ms(1) < 0.15 * found.verify_ms(1)
    context = Context(32 * 4096, 4096)
    assert found.verify_ms(32, context) - found.verify_ms(32) == pytest.approx(4.47, rel=0.05)


def test_more_ranks_are_faster_but_not_by_as_much(model):
    one, four = (estimate("H200", model, ranks, 4096) for ranks in (1, 4))
    assert 0.25 < four.table.verify_ms(4096) / one.table.verify_ms(4096) < 0.7
    assert four.num_kv_tokens > 4 * one.num_kv_tokens


def test_what_cannot_be_is_an_error_that_names_the_way_out(model, tmp_path):
    with pytest.raises(ConfigError, match="Known: A100"):
        estimate("Z900", model, 1, 1024)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B | {"num_hidden_layers": 900}))
    with pytest.raises(ConfigError, match="Raise --tp"):
        estimate("H200", tmp_path, 1, 1024)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B | {"num_local_experts": 8}))
    with pytest.raises(ConfigError, match="--table"):
        estimate("H200", tmp_path, 1, 1024)
    with pytest.raises(ConfigError, match="cannot be read"):
        estimate("H200", tmp_path / "none", 1, 1024)
