"""Rows of chains through gated delta rules have the bits of rows that decode alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.vllm
HEADS, VALUE_HEADS, SIZE, WIDTH, NUM_SPEC, SLOTS = 2, 4, 128, 4, 5, 40
KEY_DIM, VALUE_DIM = HEADS * SIZE, VALUE_HEADS * SIZE
DIM = 2 * KEY_DIM + VALUE_DIM
# Of each request: the rows of its step, and the state that it goes on from. Some have no drafts.
NUM_ROWS, ACCEPTED = [4, 1, 6, 3], [1, 3, 2, 1]
FIRST = [1] * len(NUM_ROWS)
PROMPT = 7  # rows of one that joins them


class Layer(SimpleNamespace):
    """What the kernels read of a layer, with the weights of `make_layer`."""

    def rearrange_mixed_qkv(self, mixed_qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = mixed_qkv.split([KEY_DIM, KEY_DIM, VALUE_DIM], dim=-1)
        return tuple(part.reshape(1, len(mixed_qkv), -1, SIZE).contiguous() for part in parts)


def make_layer(num_spec: int) -> Layer:
    """A layer whose states have room for `num_spec` drafts, all filled the same."""
    from vllm import _custom_ops as ops

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weight = (0.5 * random(DIM, WIDTH)).bfloat16()
    conv = SimpleNamespace(weight=weight.unsqueeze(1), bias=None)
    if torch.cpu._is_avx512_bf16_supported():
        conv._cpu_unpacked_conv_weight = weight
        conv.weight = ops.causal_conv1d_weight_pack(weight).view(DIM, 1, WIDTH)
    states = random(SLOTS, WIDTH - 1 + NUM_SPEC, DIM).bfloat16()
    recurrent = random(SLOTS, VALUE_HEADS, SIZE, SIZE)
    return Layer(
        kv_cache=(states[:, : WIDTH - 1 + num_spec].contiguous(), recurrent),
        conv1d=conv,
        activation="silu",
        A_log=random(VALUE_HEADS),
        dt_bias=random(VALUE_HEADS).bfloat16(),
        prefix="layer",
    )


def slots_of(req: int) -> torch.Tensor:
    return torch.arange(1 + req * (NUM_SPEC + 1), 1 + (req + 1) * (NUM_SPEC + 1))


def inputs(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(num_rows, width, generator=generator).bfloat16()
        for width in (DIM, VALUE_HEADS, VALUE_HEADS)
    )


def step(with_prompt: bool, accepted: list[int] = ACCEPTED) -> Any:
    """vLLM's metadata of a step; a prompt's rows come last."""
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

    num_reqs, num_decoded = len(NUM_ROWS), sum(NUM_ROWS)
    prompt = PROMPT if with_prompt else 0
    rows = torch.arange(num_decoded + prompt)
    ends = torch.tensor([0, *NUM_ROWS]).cumsum(0).int()
    metadata = GDNAttentionMetadata(
        num_prefills=int(with_prompt),
        num_prefill_tokens=prompt,
        num_decodes=0,
        num_decode_tokens=0,
        num_spec_decodes=num_reqs,
        num_spec_decode_tokens=num_decoded,
        num_actual_tokens=len(rows),
        spec_query_start_loc=ends,
        spec_state_indices_tensor=torch.stack([slots_of(req) for req in range(num_reqs)]).int(),
        spec_sequence_masks=torch.ones(num_reqs, dtype=torch.bool),
        spec_token_indx=rows[:num_decoded],
        num_accepted_tokens=torch.tensor(accepted, dtype=torch.int32),
    )
    if with_prompt:
        metadata.non_spec_token_indx = rows[num_decoded:]
        metadata.non_spec_query_start_loc = torch.tensor([0, PROMPT], dtype=torch.int32)
        metadata.non_spec_state_indices_tensor = slots_of(num_reqs)[:1].int()
        metadata.prefill_query_start_loc = metadata.non_spec_query_start_loc
        metadata.prefill_state_indices = metadata.non_spec_state_indices_tensor
        metadata.has_initial_state = torch.tensor([False])
    return metadata


def run(layer: Layer, metadata: Any, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a layer of an engine with drafts makes of a step."""
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    from vllm_smart.attention.recurrent_rows import use_chain_rows

    use_chain_rows()
    out = torch.zeros(len(rows[0]), VALUE_HEADS, SIZE, dtype=torch.bfloat16)
    state_len = layer.kv_cache[0].shape[1]
    gdn_attention._cpu_gdn_attention_spec_aware(layer, metadata, *rows, out, WIDTH, state_len)
    return out


def run_plain(
    rows: tuple[torch.Tensor, ...], with_prompt: bool, accepted: list[int] = ACCEPTED
) -> torch.Tensor:
    """Each row alone, in an engine without drafts: from the state that was accepted, one by one."""
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

    layer = make_layer(num_spec=0)
    out = torch.zeros(len(rows[0]), VALUE_HEADS, SIZE, dtype=torch.bfloat16)

    def alone(first: int, last: int, slot: int, is_prompt: bool) -> None:
        of_rows = torch.zeros_like(out[first:last])
        num = last - first
        metadata = GDNAttentionMetadata(
            num_prefills=int(is_prompt),
            num_prefill_tokens=num * is_prompt,
            num_decodes=int(not is_prompt),
            num_decode_tokens=num * (not is_prompt),
            num_spec_decodes=0,
            num_spec_decode_tokens=0,
            num_actual_tokens=num,
            has_initial_state=torch.tensor([False]) if is_prompt else None,
            non_spec_query_start_loc=torch.tensor([0, num], dtype=torch.int32),
            non_spec_state_indices_tensor=torch.tensor([slot], dtype=torch.int32),
        )
        args = (part[first:last].contiguous() for part in rows)
        gdn_attention._cpu_gdn_attention_nonspec(layer, metadata, *args, of_rows)
        out[first:last] = of_rows

    row = 0
    for req, (num_rows, of_req) in enumerate(zip(NUM_ROWS, accepted, strict=True)):
        slot = int(slots_of(req)[of_req - 1])
        for _ in range(num_rows):
            alone(row, row + 1, slot, is_prompt=False)
            row += 1
    if with_prompt:
        alone(row, row + PROMPT, int(slots_of(len(NUM_ROWS))[0]), is_prompt=True)
    return out


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("with_prompt", [False, True])
def test_rows_of_chains_have_the_bits_of_rows_that_decode_alone(with_prompt):
    from vllm_smart.attention.recurrent_rows import with_chains

    rows = inputs(sum(NUM_ROWS) + PROMPT * with_prompt)
    out = run(make_layer(NUM_SPEC), with_chains(step(with_prompt)), rows)
    assert torch.equal(out, run_plain(rows, with_prompt))


def test_the_next_step_may_go_on_from_any_row():
    from vllm_smart.attention.recurrent_rows import with_chains

    def after(accepted: list[int]) -> torch.Tensor:
        layer = make_layer(NUM_SPEC)
        run(layer, with_chains(step(False)), inputs(sum(NUM_ROWS)))
        return run(layer, with_chains(step(False, accepted)), inputs(sum(NUM_ROWS)))

    after_all, after_one = after(NUM_ROWS), after(FIRST)
    first_rows = torch.tensor([0, *NUM_ROWS]).cumsum(0)[:-1]
    for row, num_rows in zip(first_rows.tolist(), NUM_ROWS, strict=True):
        assert torch.equal(after_all[row], after_one[row]) == (num_rows == 1)


def test_vllms_own_path_for_drafts_rounds_otherwise():
    rows = inputs(sum(NUM_ROWS))
    theirs, plain = run(make_layer(NUM_SPEC), step(False, FIRST), rows), run_plain(rows, False, FIRST)
    torch.testing.assert_close(theirs, plain, rtol=0.1, atol=0.1)
    if torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported():
        assert not torch.equal(theirs, plain)


def test_a_step_that_goes_on_from_another_state_is_noticed():
    from vllm_smart.attention.recurrent_rows import with_chains

    rows = inputs(sum(NUM_ROWS))
    out = run(make_layer(NUM_SPEC), with_chains(step(False, FIRST)), rows)
    assert not torch.equal(out, run_plain(rows, False))
