"""Inflated checkpoints compute what the small ones compute, at every width, layer and head."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from training.heads import Eagle1Head, Eagle3Head, load_head, save_head
from training.model import Llama, LlamaShape, load_llama, save_llama
from vllm_smart.demo_model.inflate import inflate_pair, write_shards
from vllm_smart.demo_model.layout import Model
from vllm_smart.demo_model.shapes import Size
from vllm_smart.errors import ConfigError

SHAPE = LlamaShape(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=97,
)
DRAFT_SHAPE = LlamaShape(**{**vars(SHAPE), "hidden_size": 12, "num_hidden_layers": 2})
LARGE = {
    "hidden_size": 96,
    "num_layers": 7,
    "intermediate_size": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
}
# Sums over more columns may be taken in another order: float32 rounding of values near one.
FLOAT32_TOLERANCE = 2e-5


def randomise(module):
    """Gives every tensor, norms included, values that no rule could get right by accident."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return module


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    target = randomise(Llama(SHAPE))
    save_llama(target, folder / "target")
    save_llama(randomise(Llama(DRAFT_SHAPE)), folder / "draft")
    save_head(randomise(Eagle1Head(target)), folder / "eagle")
    save_head(randomise(Eagle3Head(target)), folder / "eagle3")
    return folder


@pytest.fixture(scope="module")
def large(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    inflate_pair(small, folder, **LARGE)
    return folder


@pytest.fixture
def ids():
    return torch.randint(0, SHAPE.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))


def run_transformers(folder, ids, dtype):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(ids, output_hidden_states=True)


def test_float32_logits_and_hidden_states_are_those_of_the_small_target(small, large, ids):
    before = run_transformers(small / "target", ids, torch.float32)
    after = run_transformers(large / "target", ids, torch.float32)
    torch.testing.assert_close(before.logits, after.logits, atol=FLOAT32_TOLERANCE, rtol=0)
    last = after.hidden_states[-1]
    torch.testing.assert_close(
        before.hidden_states[-1], last[..., : SHAPE.hidden_size], atol=FLOAT32_TOLERANCE, rtol=0
    )
    assert not last[..., SHAPE.hidden_size :].any()


def test_bfloat16_logits_are_those_of_the_small_target(small, large, ids):
    before = run_transformers(small / "target", ids, torch.bfloat16).logits.float()
    after = run_transformers(large / "target", ids, torch.bfloat16).logits.float()
    exact = run_transformers(small / "target", ids, torch.float32).logits
    # Another summation order may round a bfloat16 the other way; it must not add an error.
    assert (after - before).abs().max() <= (before - exact).abs().max()


def aux_layer_ids(folder):
    config = json.loads((folder / "eagle3/config.json").read_text())
    return tuple(config["eagle_aux_hidden_state_layer_ids"])


def test_aux_layer_ids_name_the_same_residual_streams(small, large, ids):
    with torch.no_grad():  # transformers norms its last hidden state, our own model does not
        before = load_llama(small / "target")(ids)[1]
        after = load_llama(large / "target")(ids)[1]
    small_ids, large_ids = aux_layer_ids(small), aux_layer_ids(large)
    assert len(set(large_ids)) == len(small_ids)
    assert large_ids[-1] == LARGE["num_layers"]
    for small_id, large_id in zip(small_ids, large_ids, strict=True):
        torch.testing.assert_close(
            before[small_id],
            after[large_id][..., : SHAPE.hidden_size],
            atol=FLOAT32_TOLERANCE,
            rtol=0,
        )


def chain_logits(folder, kind, ids):
    """Logits of three chain steps of a head, plain torch."""
    target = load_llama(folder / "target")
    head = Eagle1Head(target) if kind == "eagle" else Eagle3Head(target, aux_layer_ids(folder))
    load_head(head, folder / kind)
    with torch.no_grad():
        normed, streams = target(ids)
        return [logits for logits, _ in head.unroll(ids, normed, streams, 3)]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_heads_guess_what_the_small_heads_guess_along_a_chain(kind, small, large, ids):
    before, after = chain_logits(small, kind, ids), chain_logits(large, kind, ids)
    for small_logits, large_logits in zip(before, after, strict=True):
        scale = small_logits.abs().max()
        torch.testing.assert_close(
            small_logits / scale, large_logits / scale, atol=FLOAT32_TOLERANCE, rtol=0
        )


def test_draft_model_takes_the_same_width_ratio_and_any_number_of_layers(small, tmp_path, ids):
    inflate_pair(small, tmp_path, **LARGE, draft_num_layers=5)
    after = run_transformers(tmp_path / "draft", ids, torch.float32)
    before = run_transformers(small / "draft", ids, torch.float32)
    assert after.hidden_states[0].shape[-1] == 4 * DRAFT_SHAPE.hidden_size
    assert len(after.hidden_states) == 6
    torch.testing.assert_close(before.logits, after.logits, atol=FLOAT32_TOLERANCE, rtol=0)


def test_filler_is_random_so_that_kernels_do_real_work(large):
    tensors = load_file(str(large / "target/model.safetensors"))
    idle = [name for name in tensors if name.startswith("model.layers.2.")]
    by_kind = {name.split(".")[-2]: tensors[name] for name in idle}
    assert not by_kind["o_proj"].any()
    assert not by_kind["down_proj"].any()
    for kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        assert by_kind[kind].float().std() > 0.01


def test_shards_hold_the_tensors_of_the_single_file(small, large, tmp_path):
    config = json.loads((small / "target/config.json").read_text())
    target_size = Size.of(json.loads((large / "target/config.json").read_text()))
    tensors = load_file(str(small / "target/model.safetensors"))
    model = Model(tensors, Size.of(config), target_size, 8, torch.bfloat16, "cpu", 0)
    write_shards(model, tmp_path, max_shard_bytes=30_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    whole = load_file(str(large / "target/model.safetensors"))
    assert set(index["weight_map"]) == set(whole)
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(str(tmp_path / file))[name], whole[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, "hidden_size=48.*24, 96, 384"),
        ({"hidden_size": 100}, "hidden_size=100"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_layers": 3}, "num_hidden_layers=3.*Use 4"),
        ({"intermediate_size": 32}, "intermediate_size=32.*Use 40"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1.*Use 2"),
        ({"num_attention_heads": 21}, "num_attention_heads=21.*Use num_attention_heads=12"),
        ({"num_attention_heads": 8}, "num_attention_heads=8.*Use num_attention_heads=12"),
        ({"num_attention_heads": 20}, "num_attention_heads=20.*Use one of 12, 16, 24, 32"),
        ({"dtype": "int8"}, "dtype='int8'.*bfloat16"),
    ],
)
def test_a_shape_that_cannot_be_exact_is_refused_with_the_way_out(changes, message, small, tmp_path):
    with pytest.raises(ConfigError, match=message):
        inflate_pair(small, tmp_path, **{**LARGE, **changes})
    assert not list(tmp_path.iterdir())


def test_an_existing_checkpoint_is_not_overwritten(small, large):
    with pytest.raises(ConfigError, match="not empty"):
        inflate_pair(small, large, **LARGE)
