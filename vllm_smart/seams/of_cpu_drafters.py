"""What workers need of the drafters that run on CPUs alone: block drafters and several MTP heads."""

from vllm_smart.seams.seam import Seam, Where

_HERE = Where.WORKER
_DFLASH = "vllm.v1.worker.gpu.spec_decode.dflash.speculator:DFlashSpeculator"
_DSPARK = "vllm.v1.worker.gpu.spec_decode.dspark.speculator:DSparkSpeculator"
_MODEL = "vllm.model_executor.models.qwen3_dflash:DFlashQwen3ForCausalLM"
_HEADS = "vllm.v1.worker.gpu.spec_decode.multi_module_mtp.speculator:MultiModuleMTPSpeculator"
_MARKOV = "vllm.model_executor.models.qwen3_dspark:Qwen3DSparkForCausalLM"

SEAMS = (
    Seam(
        f"{_DFLASH}.load_draft_model",
        "override",
        _HERE,
        signature="(self, target_model, target_attn_layer_names) -> Module",
    ),
    Seam(
        f"{_DFLASH}._run_model",
        "call",
        _HERE,
        signature="(self, num_tokens, attn_metadata, slot_mappings, num_tokens_across_dp, ...)"
        " -> Tensor",
    ),
    # Writes the keys and values of what we have put into the buffers that it reads.
    Seam(
        f"{_DFLASH}._precompute_context_kv",
        "call",
        _HERE,
        signature="(self, start, end, ...) -> None",
        uses=("_context_slot_mappings", "hidden_states", "context_positions", "_layer_group_idx"),
    ),
    Seam(
        _DFLASH,
        "read",
        _HERE,
        names=(
            *("_context_slot_mappings", "_group_causal", "context_positions"),
            *("draft_kv_cache_group_ids", "parallel_drafting_token_id", "sample_from_anchor"),
        ),
    ),
    Seam(
        "vllm._custom_ops:rms_norm",
        "rebind",
        Where.CPU_WORKER,
        signature="(out, input, weight, epsilon) -> None",
        remove_when="its kernel for CPUs takes a weight for each layer",
    ),
    Seam(
        "vllm.model_executor.models.qwen3_dflash:DFlashQwen3Model._normalize_context_k",
        "read",
        Where.CPU_WORKER,
        uses=("rms_norm", "_k_norm_weights"),
    ),
    Seam(
        "vllm._custom_ops:rotary_embedding",
        "rebind",
        Where.CPU_WORKER,
        signature="(positions, query, key, head_size, cos_sin_cache, is_neox, ...) -> None",
        remove_when="its kernel for CPUs turns all heads of a token by its position",
    ),
    Seam(
        "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cpu",
        "read",
        Where.CPU_WORKER,
        uses=("rotary_embedding",),
    ),
    Seam("vllm.v1.attention.backends.mla.cpu_mla:CPUMLABackend", "read", Where.CPU_WORKER),
    Seam(
        "vllm.v1.worker.gpu.attn_utils:build_attn_metadata",
        "call",
        Where.CPU_WORKER,
        signature="(attn_groups, num_reqs, num_tokens, query_start_loc_gpu, query_start_loc_cpu,"
        " max_query_len, seq_lens, max_seq_len, block_tables, slot_mappings, kv_cache_config,"
        " seq_lens_cpu_upper_bound=, ...) -> dict[str, Any]",
    ),
    Seam(_DSPARK, "read", _HERE, names=("sample_from_anchor",)),
    Seam(
        f"{_MODEL}.combine_hidden_states",
        "call",
        _HERE,
        signature="(self, hidden_states) -> Tensor",
    ),
    Seam(
        f"{_MARKOV}.compute_draft_logits",
        "call",
        _HERE,
        signature="(self, hidden_states) -> Tensor",
    ),
    Seam(f"{_MARKOV}.markov_embed", "call", _HERE, signature="(self, token_ids) -> Tensor"),
    Seam(f"{_MARKOV}.markov_bias", "call", _HERE, signature="(self, markov_embed) -> Tensor"),
    Seam(f"{_MARKOV}.map_draft_to_target", "call", _HERE, signature="(self, draft_ids) -> Tensor"),
    Seam(_MARKOV, "read", _HERE, names=("draft_id_to_target_id",)),
    Seam(
        f"{_HEADS}._run_model",
        "call",
        _HERE,
        signature="(self, num_tokens, attn_metadata, slot_mappings, num_tokens_across_dp,"
        " spec_module_idx, ...) -> tuple[Tensor, Tensor]",
        uses=("hidden_states", "input_buffers", "inputs_embeds"),
    ),
    Seam(
        f"{_HEADS}.compute_draft_logits",
        "override",
        _HERE,
        signature="(self, hidden_states, spec_step_idx) -> Tensor",
    ),
)
