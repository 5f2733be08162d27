"""What drafts cannot work with, refused when the engine starts rather than served wrongly.

Some of it only branches cannot work with: then drafts are chains (`why_only_chains`).
"""

import math
import os
from collections.abc import Iterator

import torch
from vllm import envs
from vllm.config import ModelConfig, VllmConfig
from vllm.platforms import current_platform

from vllm_smart.attention.backends import tree_backends
from vllm_smart.config import SmartConfig, TpotObjective
from vllm_smart.config.settings import METHODS_OF_BLOCKS
from vllm_smart.errors import ConfigError, UnsupportedError
from vllm_smart.refusals.model_limits import (
    attention_limits,
    has_gated_delta_rules,
    special_attention,
    tree_limits,
)
from vllm_smart.seams.host import is_cpu, runs_on_triton

TRY_CUDA_ENV = "VLLM_SMART_TRY_CUDA"
_BACKENDS = "FLASH_ATTN or TRITON_ATTN"  # on GPUs
_WITH_CANDIDATE_HEADS = {"DFlash2DraftModel", "LiLiCorrDraftModel"}
_NO_CONNECTOR = "Remove --kv-transfer-config and --kv-offloading-size."
_CACHE_DTYPES = ("auto", "bfloat16", "float16", "float32")
_PLAIN = "serve the model without speculation: remove --speculative-config"
_OTHER = "use another drafter"


def check_limits(vllm_config: VllmConfig, config: SmartConfig) -> None:
    """Raises ConfigError or UnsupportedError for the first setting that drafts cannot serve."""
    unsupported = *_unsupported(vllm_config), *_unsupported_placement(vllm_config, config)
    for setting, way_out in unsupported:
        raise UnsupportedError(f"vllm_smart does not support {setting}. {way_out}")
    objective = getattr(config.policy, "objective", None)
    num_ranks = vllm_config.parallel_config.world_size
    if isinstance(objective, TpotObjective) and num_ranks > 1:
        raise UnsupportedError(
            f"vllm_smart does not support policy.objective tpot_ms={objective.tpot_ms:g} with "
            f"{num_ranks} ranks: each would time its steps, and grow other trees. "
            "Use objective: latency."
        )
    check_token_budget(vllm_config.scheduler_config.max_num_batched_tokens, config)
    _check_drafter(vllm_config)


def _unsupported(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    """Pairs of (setting and its value, the way out) for each refused feature in use."""
    yield from _unsupported_device()
    yield from _unsupported_parallelism(vllm_config)
    yield from _unsupported_models(vllm_config)
    yield from _unsupported_chunks(vllm_config)
    yield from _unsupported_with_recurrent_layers(vllm_config)
    yield from _unsupported_backends(vllm_config)
    yield from _unsupported_caching(vllm_config)
    yield from _unsupported_outputs(vllm_config)
    yield from _unsupported_runner(vllm_config)


def _unsupported_parallelism(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        size = parallel.pipeline_parallel_size
        yield (
            f"pipeline parallelism (pipeline_parallel_size={size})",
            "Pass --pipeline-parallel-size 1, and --tensor-parallel-size for more devices.",
        )
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            flag = "--" + name.replace("_", "-")
            yield f"context parallelism ({name}={getattr(parallel, name)})", f"Pass {flag} 1."
    if is_cpu() and parallel.enable_expert_parallel and parallel.world_size > 1:
        yield (  # a rank of vLLM 0.32's own engines dies in its first step
            f"expert parallelism on CPUs (--enable-expert-parallel over {parallel.world_size} ranks)",
            "Remove --enable-expert-parallel: each rank then computes a part of every expert.",
        )
    if parallel.enable_dbo:
        yield "dual batch overlap (--enable-dbo)", "Remove the flag."
    if parallel.enable_batch_sharded_sampling:
        yield "batch-sharded sampling", "Remove --enable-batch-sharded-sampling."


def _unsupported_models(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    model, spec = vllm_config.model_config, vllm_config.speculative_config
    assert spec is not None
    if model.runner_type != "generate":
        yield f"--runner {model.runner_type}", "Remove --speculative-config: there is nothing to draft."
    draft = spec.draft_model_config
    for of, name, last_resort in ((model, "model", _PLAIN), (draft, "drafter.model", _OTHER)):
        for what in attention_limits(of):
            yield f"{what} ({name} {of.model!r})", _sentence(None, last_resort)
    yield from _unsupported_beside_latents(vllm_config)
    if spec.method in METHODS_OF_BLOCKS:
        yield from _unsupported_blocks(draft)
    if runs_on_triton():  # where chains have not been proven with them
        yield from _only_chains(vllm_config)
    if spec.uses_draft_model() and draft.max_model_len < model.max_model_len:
        yield (
            f"contexts beyond the drafter's (drafter.model {draft.model!r} reads "
            f"{draft.max_model_len} tokens, and max_model_len={model.max_model_len})",
            f"Pass --max-model-len {draft.max_model_len}, or use another drafter.",
        )


def _unsupported_chunks(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    model, size = vllm_config.model_config, vllm_config.cache_config.block_size
    chunk = getattr(model.hf_text_config, "attention_chunk_size", None)
    if chunk and size and chunk % size:  # vLLM's own, which would end the engine in a step
        yield (
            f"chunks of attention that are no whole blocks (attention_chunk_size={chunk} of model "
            f"{model.model!r}, block_size={size})",
            f"Pass --block-size {math.gcd(chunk, size)}.",
        )


def _unsupported_beside_latents(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    model, spec = vllm_config.model_config, vllm_config.speculative_config
    assert spec is not None
    draft = spec.draft_model_config
    way_out = "Set drafter.method to ngram, or use another drafter."
    if draft.use_mla != model.use_mla:
        which = "drafter" if draft.use_mla else "target"
        yield (
            f"multi-head latent attention in the {which} alone (drafter.model {draft.model!r})",
            way_out,
        )
    elif draft.use_mla and spec.method == "eagle":
        yield f"EAGLE heads with multi-head latent attention (drafter.model {draft.model!r})", way_out


def _unsupported_blocks(draft: ModelConfig) -> Iterator[tuple[str, str]]:
    if runs_on_triton():
        yield "block drafters on GPUs yet: their levels are read on the host", _sentence(None, _OTHER)
    heads = _WITH_CANDIDATE_HEADS.intersection(draft.architectures)
    if heads:
        yield (
            f"block drafters with a head that chooses among their candidates (drafter.model "
            f"{draft.model!r} is a {heads.pop()})",
            "Set drafter.method to ngram, or use a DFlash or DSpark drafter.",
        )


def _unsupported_with_recurrent_layers(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    model, cache = vllm_config.model_config, vllm_config.cache_config
    if not model.is_hybrid:
        return
    if has_gated_delta_rules(model) and model.dtype != torch.bfloat16:
        yield (
            f"gated delta rules in {model.dtype} (model {model.model!r}): vLLM has kernels for CPUs in "
            "bfloat16 alone",
            "Pass --dtype bfloat16.",
        )
    if cache.enable_prefix_caching:
        yield (
            f"the prefix cache beside recurrent layers (model {model.model!r})",
            "Pass --no-enable-prefix-caching.",
        )


def why_only_chains(vllm_config: VllmConfig) -> str | None:
    """What of the model and its settings branches cannot work with, in a few words; None: nothing.

    Chains need no attention of ours and nothing is ever moved in the KV cache.
    """
    return next((what for what, _ in _only_chains(vllm_config)), None)


def _only_chains(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    """Pairs of (what branches cannot work with, the way out where chains cannot either)."""
    model, spec = vllm_config.model_config, vllm_config.speculative_config
    assert spec is not None
    draft, cache_dtype = spec.draft_model_config, vllm_config.cache_config.cache_dtype
    see_trees = [(model, "model", _PLAIN), (draft, "drafter.model", _OTHER)]
    if spec.method in METHODS_OF_BLOCKS:
        see_trees.pop()
    for of, name, last_resort in see_trees:
        for what, way_out in tree_limits(of, model.max_model_len):
            yield f"{what} ({name} {of.model!r})", _sentence(way_out, last_resort)
    if spec.use_multi_module_mtp():
        yield (
            f"several MTP heads, each of which reads all of its path (drafter.model {draft.model!r})",
            _sentence(None, _OTHER),
        )
    if spec.use_gemma4_mtp():
        yield (
            f"a drafter that reads the target's KV cache (drafter.model {draft.model!r})",
            _sentence(None, _OTHER),
        )
    if vllm_config.kv_transfer_config is not None:
        what = (
            f"{_connector(vllm_config)}, which may save a block before its accepted path is compacted"
        )
        yield what, _NO_CONNECTOR
    if cache_dtype not in _CACHE_DTYPES:
        yield (
            f"a quantised KV cache (--kv-cache-dtype {cache_dtype})",
            "Pass --kv-cache-dtype auto.",
        )


def _sentence(way_out: str | None, last_resort: str) -> str:
    if way_out is not None:
        return f"{way_out}, or {last_resort}."
    return f"{last_resort[0].upper()}{last_resort[1:]}."


def _unsupported_backends(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    if is_cpu():
        yield from _unsupported_latent_kernels(vllm_config)
        return
    spec, with_trees = vllm_config.speculative_config, tree_backends()
    assert spec is not None
    for of, backend, way_out in (
        ("", vllm_config.attention_config.backend, f"Pass --attention-backend {_BACKENDS}."),
        (" of the drafter", spec.attention_backend, f"Set {_BACKENDS} in drafter.options."),
    ):
        if backend is not None and backend not in with_trees:
            yield f"attention_backend={backend.name}{of}", way_out


def _unsupported_latent_kernels(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    is_asked_for = vllm_config.attention_config.backend == AttentionBackendEnum.CPU_MLA
    if vllm_config.model_config.use_mla and torch.cpu._is_amx_tile_supported() and not is_asked_for:
        yield (
            "vLLM's AMX kernels for multi-head latent attention, with which drafts have not been tried",
            "Pass --attention-backend CPU_MLA.",
        )


def _unsupported_caching(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    spec = vllm_config.speculative_config
    assert spec is not None
    if vllm_config.kv_transfer_config is not None and spec.method != "ngram_gpu":
        # A connector would load blocks in which the drafter's layers have nothing.
        yield (
            f"{_connector(vllm_config)} beside a drafter with a KV cache of its own",
            f"Set drafter.method to ngram, or {_NO_CONNECTOR[0].lower()}{_NO_CONNECTOR[1:]}",
        )
    if spec.kv_cache_dtype is not None and spec.kv_cache_dtype not in _CACHE_DTYPES:
        yield (
            f"a quantised KV cache of the drafter (kv_cache_dtype={spec.kv_cache_dtype})",
            "Remove it from drafter.options.",
        )


def _connector(vllm_config: VllmConfig) -> str:
    assert vllm_config.kv_transfer_config is not None
    return f"KV connectors (kv_connector={vllm_config.kv_transfer_config.kv_connector!r})"


def _unsupported_outputs(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    model = vllm_config.model_config
    if getattr(vllm_config, "watermark_config", None) is not None:
        yield "watermarking", "Remove --watermark-config."
    if model.return_sampling_mask:
        yield "--return-sampling-mask", "Remove the flag."
    if model.enable_trace_replay:
        yield "--enable-trace-replay", "Remove the flag."
    aux_output = getattr(vllm_config, "aux_output_config", None)
    if aux_output is not None and aux_output.enabled:
        yield "outputs for every token beside its text", "Remove --enable-return-routed-experts."


def _unsupported_runner(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    if vllm_config.lora_config is not None and vllm_config.scheduler_config.async_scheduling:
        # Which rows run is known on the device alone, which adapter a row has, on the host.
        yield "--enable-lora with asynchronous scheduling", "Pass --no-async-scheduling."
    if vllm_config.use_v2_model_runner:
        return
    if envs.VLLM_USE_V2_MODEL_RUNNER is False:
        yield "the old model runner (VLLM_USE_V2_MODEL_RUNNER=0)", "Unset it, or set it to 1."
    else:
        features = ", ".join(vllm_config._get_v2_model_runner_unsupported_features())
        yield f"{features}: vLLM's Model Runner V2 has no such thing", "Remove it."


def _unsupported_placement(vllm_config: VllmConfig, config: SmartConfig) -> Iterator[tuple[str, str]]:
    if config.drafter.placement == "process":
        for why, way_out in _not_beside(vllm_config):
            yield f"drafter.placement='process' {why}", way_out


def why_not_beside(vllm_config: VllmConfig, config: SmartConfig) -> str | None:
    """What a drafter in a process of its own does not work with, or on; None where it does."""
    if config.not_beside is not None:
        return f"with {config.not_beside}"
    return next((why for why, _ in _not_beside(vllm_config)), None)


def _not_beside(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    """Pairs of (what a drafter in a process of its own does not work with, the way out)."""
    inline, parallel = "Set drafter.placement to inline.", vllm_config.parallel_config
    num_engines = parallel.data_parallel_size
    if not is_cpu() or runs_on_triton():
        yield "on GPUs yet", inline
    if parallel.world_size > 1:
        yield f"with {parallel.world_size} ranks yet", inline
    if num_engines > 1:
        yield f"with {num_engines} data-parallel engines, whose drafters would share cores", inline
    if vllm_config.lora_config is not None:
        yield "with --enable-lora", f"Remove the flag, or: {inline}"
    why = why_only_chains(vllm_config)
    if why is not None:
        yield f"with {why}, where drafts are chains", inline
    model, spec = vllm_config.model_config, vllm_config.speculative_config
    assert spec is not None
    for of, name in (model, "model"), (spec.draft_model_config, "drafter.model"):
        for what, _ in special_attention(of, model.max_model_len):
            yield f"with {what} ({name} {of.model!r}) yet", inline


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


def check_token_budget(budget: int, config: SmartConfig) -> None:
    """Raises ConfigError unless a step of `budget` tokens has room for the largest tree."""
    node_budget = config.growth.node_budget
    needed, what = node_budget + 1, "a tree and its root need"
    if config.drafter.drafts_blocks:  # for which vLLM sets as many aside
        needed, what = needed + node_budget, "a tree, its root and a block need"
    if needed > budget:
        raise ConfigError(
            f"tree.node_budget={node_budget}: {what} {needed} tokens in one "
            f"step, but --max-num-batched-tokens is {budget}. Raise it, or lower the budget."
        )


def check_same_vocabulary(target: str, target_size: int, drafter: str, drafter_size: int) -> None:
    """Raises ConfigError unless two models know equally many tokens."""
    if drafter_size != target_size:
        raise ConfigError(
            f"drafter.model={drafter!r} has a vocabulary of {drafter_size} tokens, the target "
            f"{target!r} one of {target_size}. Use a drafter made for this target."
        )


def _check_drafter(vllm_config: VllmConfig) -> None:
    """The drafter fits the target, and can be loaded. vLLM finds out only while it loads or runs it."""
    spec = vllm_config.speculative_config
    assert spec is not None
    target, drafter = vllm_config.model_config, spec.draft_model_config
    check_same_vocabulary(
        target.model, target.get_vocab_size(), str(spec.model), drafter.get_vocab_size()
    )
    if spec.method in ("eagle", "eagle3", "mtp"):
        head = drafter.hf_text_config
        reads = getattr(head, "target_hidden_size", None) or head.hidden_size
        reads = getattr(drafter.hf_config, "backbone_hidden_size", None) or reads
        if reads != target.get_hidden_size():
            raise ConfigError(
                f"drafter.model={spec.model!r} reads hidden states of {reads} numbers, "
                f"those of the target {target.model!r} have {target.get_hidden_size()}. "
                "Use a drafter made for this target."
            )
    if drafter.quantization is not None:
        try:
            VllmConfig.get_quantization_config(drafter, vllm_config.load_config)
        except ValueError as error:
            raise UnsupportedError(
                f"drafter.options: quantization={drafter.quantization!r} does not work here ({error}). "
                "Remove it, or pass another --dtype."
            ) from error
