"""Attention that trees, or any drafts, do not fit into, told from a model's configuration alone."""

from collections.abc import Iterator
from typing import Any

from vllm.config import ModelConfig

from vllm_smart.seams.host import runs_on_triton

# Of vLLM's own kernels for CPUs; ours has all of these.
CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# What vLLM's kernel without AMX reads of a token: 512 numbers, and 64 that its position has turned.
CPU_LATENT_SIZE = 576
# What models of several families call a window, or windows by layer.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "interleaved_sliding_window",
    "attn_window_size",
)
# Models that say nothing of it in their configuration.
_WITH_ALIBI = {"BaichuanForCausalLM", "Step1ForCausalLM"}
_WITH_SINKS = {"GptOssForCausalLM", "GraniteSWAForCausalLM"}
_SINKS = (
    "attention_sinks",
    "add_swa_attention_sink_bias",
    "add_full_attention_sink_bias",
    "swa_attention_sink_enabled",
)


def attention_limits(model: ModelConfig) -> Iterator[str]:
    """What the model, target or drafter, has that no drafts can work with, with its value."""
    config = model.hf_text_config
    if getattr(config, "index_topk", None):
        yield "sparse attention"
    if model.is_encoder_decoder:
        yield "encoder-decoder models"
    knows_states = has_gated_delta_rules(model) or has_mamba2(model)
    if model.is_attention_free or (model.is_hybrid and not knows_states):
        yield "recurrent state layers other than gated delta rules and Mamba2"
    elif model.is_hybrid and runs_on_triton():
        yield "recurrent state layers on GPUs"
    if model.is_mm_prefix_lm or model.rswa_window is not None:
        yield "attention that is neither causal nor a tree"
    if getattr(config, "param_sink_number", None):
        yield "attention sinks that stand in the KV cache"
    head_size = model.get_head_size()
    if runs_on_triton():
        return
    if model.use_mla:
        if head_size != CPU_LATENT_SIZE:
            kernel = f"there is a kernel for {CPU_LATENT_SIZE}"
            yield f"latent attention of {head_size} numbers on CPUs ({kernel})"
    elif head_size and head_size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        yield f"attention heads of {head_size} numbers on CPUs (there are kernels for {sizes})"


def tree_limits(model: ModelConfig, max_model_len: int) -> Iterator[tuple[str, str | None]]:
    """Pairs of (what the model has and its value, the way out) that trees alone cannot work with.

    Args:
        model: target or drafter.
        max_model_len: the longest context that the target serves.

    Yields:
        The way out is None where only another model, chains, or no speculation, is one.
    """
    if model.use_mla:
        yield "multi-head latent attention", None
    if model.is_hybrid:
        yield "recurrent layers", None
    if runs_on_triton():
        yield from special_attention(model, max_model_len)


def special_attention(model: ModelConfig, max_model_len: int) -> Iterator[tuple[str, str | None]]:
    """Pairs, likewise, of what our kernel for CPUs knows and that for GPUs does not.

    A window that is no smaller than `max_model_len` never hides anything.
    """
    config = model.hf_text_config
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk:
        yield f"chunked local attention (attention_chunk_size={chunk})", None
    if model.uses_alibi or _is_one_of(model, _WITH_ALIBI):
        yield "ALiBi position biases", None
    if _is_one_of(model, _WITH_SINKS) or any(getattr(config, name, None) for name in _SINKS):
        yield "attention sinks", None
    window = smallest_window(config)
    if window is not None and window < max_model_len:
        yield (
            f"sliding windows ({window} tokens, and max_model_len={max_model_len})",
            f"Pass --max-model-len {window}, up to which nothing is out of sight",
        )


def has_gated_delta_rules(model: ModelConfig) -> bool:
    """Whether recurrent layers of the model are those of Qwen3-Next and its successors."""
    return getattr(model.hf_text_config, "linear_num_value_heads", None) is not None


def has_mamba2(model: ModelConfig) -> bool:
    """Whether recurrent layers of the model are Mamba2's, which have heads; Mamba's have none."""
    config = model.hf_text_config
    return any(getattr(config, name, None) for name in ("mamba_n_heads", "mamba_num_heads"))


def smallest_window(config: Any) -> int | None:
    """The fewest tokens that a layer of the model sees; None where all see everything."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types and all(kind == "full_attention" for kind in layer_types):
        return None
    windows: list[int] = []
    for name in _WINDOWS:
        value = getattr(config, name, None)
        windows += [
            w for w in (value if isinstance(value, list) else [value]) if w is not None and w > 0
        ]
    return min(windows, default=None)


def _is_one_of(model: ModelConfig, architectures: set[str]) -> bool:
    return not architectures.isdisjoint(model.architectures)
