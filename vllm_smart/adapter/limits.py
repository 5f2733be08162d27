"""What trees cannot work with, refused when the engine starts rather than served wrongly."""

import os
from collections.abc import Iterable, Iterator

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend

from vllm_smart.adapter.host import is_cpu
from vllm_smart.config import SmartConfig, TpotObjective
from vllm_smart.errors import ConfigError, UnsupportedError

TRY_CUDA_ENV = "VLLM_SMART_TRY_CUDA"


def check_limits(vllm_config: VllmConfig, config: SmartConfig) -> None:
    """Raises ConfigError or UnsupportedError for the first setting that trees cannot serve."""
    for setting, way_out in _unsupported(vllm_config):
        raise UnsupportedError(f"vllm_smart does not support {setting}. {way_out}")
    objective = getattr(config.policy, "objective", None)
    num_ranks = vllm_config.parallel_config.world_size
    if isinstance(objective, TpotObjective) and num_ranks > 1:
        raise UnsupportedError(
            f"vllm_smart does not support policy.objective tpot_ms={objective.tpot_ms:g} with "
            f"{num_ranks} ranks: each would time its steps, and grow other trees. "
            "Use objective: latency."
        )
    _check_token_budget(vllm_config, config)
    _check_vocabulary(vllm_config)


def _unsupported(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    """Pairs of (setting and its value, the way out) for each refused feature in use."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    spec = vllm_config.speculative_config
    assert spec is not None
    yield from _unsupported_device()
    if not vllm_config.use_v2_model_runner:
        yield "the old model runner", "Unset VLLM_USE_V2_MODEL_RUNNER, or set it to 1."
    if parallel.pipeline_parallel_size > 1:
        size = parallel.pipeline_parallel_size
        yield f"pipeline parallelism (pipeline_parallel_size={size})", "Use --tensor-parallel-size."
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            yield f"context parallelism ({name}={getattr(parallel, name)})", "Set it to 1."
    if parallel.enable_dbo:
        yield "dual batch overlap (--enable-dbo)", "Remove the flag."
    if parallel.enable_batch_sharded_sampling:
        yield "batch-sharded sampling", "Remove --enable-batch-sharded-sampling."
    if vllm_config.kv_transfer_config is not None:
        yield (
            f"KV connectors (kv_transfer_config={vllm_config.kv_transfer_config.kv_connector!r})",
            "A block may be saved before its accepted path is compacted: remove --kv-transfer-config.",
        )
    if model.use_mla:
        yield f"multi-head latent attention (model {model.model!r})", "Use a chain: vLLM's own methods."
    if model.is_mm_prefix_lm or model.rswa_window is not None:
        yield (
            f"attention that is neither causal nor a tree (model {model.model!r})",
            "Serve it without speculation.",
        )
    if model.is_hybrid or model.is_attention_free:
        yield f"recurrent state layers (model {model.model!r})", "Use a chain: vLLM's own methods."
    if model.is_encoder_decoder:
        yield f"encoder-decoder models ({model.model!r})", "Serve it without speculation."
    if model.get_sliding_window() is not None:
        yield (
            f"sliding-window attention (sliding_window={model.get_sliding_window()})",
            "Pass --disable-sliding-window, or use a model without it.",
        )
    if getattr(vllm_config, "watermark_config", None) is not None:
        yield "watermarking", "Remove the watermark settings."
    if model.return_sampling_mask or model.enable_trace_replay:
        yield "return_sampling_mask / enable_trace_replay", "Remove the flag."
    if spec.draft_sample_method == "probabilistic":
        yield (
            "draft_sample_method='probabilistic'",
            "Candidates are the draft's top choices; remove it from drafter.options.",
        )
    if spec.use_local_argmax_reduction:
        yield "use_local_argmax_reduction", "Remove it from drafter.options."
    if spec.enable_adaptive_verification:
        yield "enable_adaptive_verification", "The policy decides; remove it from drafter.options."
    if vllm_config.cache_config.cache_dtype not in ("auto", "bfloat16", "float16", "float32"):
        dtype = vllm_config.cache_config.cache_dtype
        yield f"a quantised KV cache (--kv-cache-dtype {dtype})", "Use --kv-cache-dtype auto."


def check_attention(backends: Iterable[type[AttentionBackend]]) -> None:
    """Raises UnsupportedError for the first attention backend that we do not extend with trees."""
    for backend in backends:
        if not hasattr(backend.get_builder_cls(), "with_trees"):
            raise UnsupportedError(
                f"vllm_smart does not support the attention backend {backend.get_name()}. "
                "Pass --attention-backend FLASH_ATTN or TRITON_ATTN."
            )


def _unsupported_device() -> Iterator[tuple[str, str]]:
    device = current_platform.device_name
    if is_cpu():
        return
    if not current_platform.is_cuda():
        yield f"the device {device!r}", "Use vLLM's own speculative methods there."
    elif os.environ.get(TRY_CUDA_ENV) != "1":
        yield (
            f"the device {device!r} unless {TRY_CUDA_ENV}=1 is set: trees have passed their tests "
            "in Triton's interpreter, but have not been run or measured on a GPU yet",
            f"Set {TRY_CUDA_ENV}=1 to try them, or use vLLM's own speculative methods.",
        )


def _check_token_budget(vllm_config: VllmConfig, config: SmartConfig) -> None:
    budget = vllm_config.scheduler_config.max_num_batched_tokens
    largest = config.growth.node_budget + 1
    if largest > budget:
        raise ConfigError(
            f"tree.node_budget={largest - 1}: a tree and its root need {largest} tokens in one "
            f"step, but --max-num-batched-tokens is {budget}. Raise it, or lower the budget."
        )


def _check_vocabulary(vllm_config: VllmConfig) -> None:
    spec = vllm_config.speculative_config
    assert spec is not None
    target = vllm_config.model_config.get_vocab_size()
    draft = spec.draft_model_config.get_vocab_size()
    if target != draft:
        raise ConfigError(
            f"drafter.model={spec.model!r} has a vocabulary of {draft} tokens, the target "
            f"{vllm_config.model_config.model!r} one of {target}. Use a drafter made for this target."
        )
