"""Rows of chains through Mamba2 layers have the bits of rows that decode alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.vllm
HEADS, SIZE, STATE, WIDTH, NUM_SPEC, SLOTS = 4, 32, 64, 4, 5, 40
INNER = HEADS * SIZE
DIM = INNER + 2 * STATE
# Of each request: the rows of its step, and the state that it goes on from. Some have no drafts.
NUM_ROWS, ACCEPTED = [4, 1, 6, 3], [1, 3, 2, 1]
FIRST = [1] * len(NUM_ROWS)
PROMPT = 7  # rows of one that joins them
PREFIX = "layer"


class Layer(SimpleNamespace):
    """What `MambaMixer2.conv_ssm_forward` reads of a layer, with the weights of `make_layer`."""

    def split_hidden_states_B_C_fn(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return hidden.split([INNER, STATE, STATE], dim=-1)


def make_layer(dtype: torch.dtype, num_spec: int) -> Layer:
    """A layer whose states have room for `num_spec` drafts, all filled the same."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weight = (0.5 * random(DIM, WIDTH)).to(dtype)
    bias = random(DIM).to(dtype)
    states, recurrent = random(SLOTS, WIDTH - 1 + NUM_SPEC, DIM), random(SLOTS, HEADS, SIZE, STATE)
    return Layer(
        kv_cache=(states[:, : WIDTH - 1 + num_spec].to(dtype).contiguous(), recurrent),
        conv1d=SimpleNamespace(weight=weight.unsqueeze(1), bias=bias),
        conv_weights=weight,
        activation="silu",
        A=-random(HEADS).exp(),
        D=random(HEADS),
        dt_bias=random(HEADS),
        cache_config=object(),
        num_spec=num_spec,
        prefix=PREFIX,
        tped_intermediate_size=INNER,
        tped_conv_size=DIM,
        tped_dt_size=HEADS,
        conv_kernel_size=WIDTH,
        num_heads=HEADS,
        head_dim=SIZE,
        ssm_state_size=STATE,
        n_groups=1,
        tp_size=1,
        use_replayssm=False,
        is_blackwell=False,
    )


def slots_of(req: int) -> torch.Tensor:
    return torch.arange(1 + req * (NUM_SPEC + 1), 1 + (req + 1) * (NUM_SPEC + 1)).int()


def inputs(dtype: torch.dtype, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, INNER + DIM + HEADS, generator=generator).to(dtype)


def metadata(num_decoded: int, prompt: int, **more: Any) -> Any:
    """vLLM's, of a batch of rows that decode and of a prompt."""
    from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionMetadata

    num_decodes = len(more["state_indices_tensor_d"]) if num_decoded else 0
    of_prompt = {
        "has_initial_states_p": None,
        "query_start_loc_p": None,
        "state_indices_tensor_p": None,
    }
    if prompt:
        of_prompt = {
            "has_initial_states_p": torch.tensor([False]),
            "query_start_loc_p": torch.tensor([0, prompt], dtype=torch.int32),
            "state_indices_tensor_p": slots_of(len(NUM_ROWS))[:1],
            "cu_chunk_seqlen_p": torch.tensor([0, prompt], dtype=torch.int32),
            "last_chunk_indices_p": torch.tensor([0], dtype=torch.int32),
            "seq_idx_p": torch.tensor([0], dtype=torch.int32),
        }
    defaults = {"state_indices_tensor_d": None, "query_start_loc_d": None, "num_accepted_tokens": None}
    return Mamba2AttentionMetadata(
        num_prefills=int(prompt > 0),
        num_prefill_tokens=prompt,
        num_decodes=num_decodes,
        num_decode_tokens=num_decoded,
        num_reqs=num_decodes + int(prompt > 0),
        seq_lens=torch.ones(num_decodes + 1, dtype=torch.int32),
        chunk_size=256,
        **of_prompt,
        **{**defaults, **more},
    )


def step(with_prompt: bool, accepted: list[int] = ACCEPTED) -> Any:
    """vLLM's metadata of a step with drafts; a prompt's rows come last."""
    return metadata(
        sum(NUM_ROWS),
        PROMPT if with_prompt else 0,
        state_indices_tensor_d=torch.stack([slots_of(req) for req in range(len(NUM_ROWS))]),
        query_start_loc_d=torch.tensor([0, *NUM_ROWS]).cumsum(0).int(),
        num_accepted_tokens=torch.tensor(accepted, dtype=torch.int32),
    )


def forward(layer: Layer, of_step: Any, rows: torch.Tensor) -> torch.Tensor:
    """What vLLM's layer makes of a step, by its own way where `of_step` is its own metadata."""
    from vllm.forward_context import override_forward_context
    from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

    out = torch.zeros(len(rows), INNER, dtype=rows.dtype)
    with override_forward_context(SimpleNamespace(attn_metadata={PREFIX: of_step})):
        MambaMixer2.conv_ssm_forward(layer, rows, out)
    return out


def run_plain(rows: torch.Tensor, with_prompt: bool, accepted: list[int] = ACCEPTED) -> torch.Tensor:
    """Each row alone, in an engine without drafts: from the state that was accepted, one by one."""
    layer, outputs, row = make_layer(rows.dtype, num_spec=0), [], 0
    for req, (num_rows, of_req) in enumerate(zip(NUM_ROWS, accepted, strict=True)):
        alone = metadata(1, 0, state_indices_tensor_d=slots_of(req)[of_req - 1].reshape(1, 1))
        for _ in range(num_rows):
            outputs.append(forward(layer, alone, rows[row : row + 1]))
            row += 1
    if with_prompt:
        outputs.append(forward(layer, metadata(0, PROMPT), rows[row:]))
    return torch.cat(outputs)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """One thread, and vLLM's kernels for CPUs, as its runner chooses them for a Mamba2 model."""
    from vllm.config.mamba import MambaConfig
    from vllm.model_executor.layers.mamba.ops import ssu_dispatch

    from vllm_smart.attention.mamba_rows import use_mamba_chain_rows

    use_mamba_chain_rows()
    monkeypatch.setattr(ssu_dispatch, "_mamba_ssu_backend", ssu_dispatch.CPUSSUBackend(MambaConfig()))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_prompt", [False, True])
def test_rows_of_chains_have_the_bits_of_rows_that_decode_alone(dtype, with_prompt):
    from vllm_smart.attention.mamba_rows import with_mamba_chains

    rows = inputs(dtype, sum(NUM_ROWS) + PROMPT * with_prompt)
    out = forward(make_layer(dtype, NUM_SPEC), with_mamba_chains(step(with_prompt)), rows)
    assert torch.equal(out, run_plain(rows, with_prompt))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_next_step_may_go_on_from_any_row(dtype):
    from vllm_smart.attention.mamba_rows import with_mamba_chains

    def after(accepted: list[int]) -> torch.Tensor:
        layer, rows = make_layer(dtype, NUM_SPEC), inputs(dtype, sum(NUM_ROWS))
        forward(layer, with_mamba_chains(step(False)), rows)
        return forward(layer, with_mamba_chains(step(False, accepted)), rows)

    after_all, after_one = after(NUM_ROWS), after(FIRST)
    first_rows = torch.tensor([0, *NUM_ROWS]).cumsum(0)[:-1]
    for row, num_rows in zip(first_rows.tolist(), NUM_ROWS, strict=True):
        assert torch.equal(after_all[row], after_one[row]) == (num_rows == 1)


def test_a_step_that_goes_on_from_another_state_is_noticed():
    from vllm_smart.attention.mamba_rows import with_mamba_chains

    rows = inputs(torch.bfloat16, sum(NUM_ROWS))
    out = forward(make_layer(torch.bfloat16, NUM_SPEC), with_mamba_chains(step(False, FIRST)), rows)
    assert not torch.equal(out, run_plain(rows, False))
