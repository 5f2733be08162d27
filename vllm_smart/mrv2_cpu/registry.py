"""Which CPU function stands in for which of vLLM's Triton kernels."""

from collections.abc import Callable, Mapping

import vllm

from vllm_smart.mrv2_cpu import (
    kernels_block_drafter,
    kernels_block_table,
    kernels_heads,
    kernels_hybrid,
    kernels_input_batch,
    kernels_logits_processors,
    kernels_model_inputs,
    kernels_ngram,
    kernels_rejection,
    kernels_resample,
    kernels_sampling,
    kernels_speculator,
    kernels_thinking_budget,
    v0_33,
)

Kernels = Mapping[str, tuple[Callable[..., None], ...]]

# vLLM module (under vllm.v1.worker.gpu) -> functions named like its kernels
_KERNELS: Kernels = {
    "buffer_utils": (kernels_block_table._apply_write_kernel,),
    "block_table": (
        kernels_block_table._gather_block_tables_kernel,
        kernels_block_table._compute_slot_mappings_kernel,
    ),
    "input_batch": (
        kernels_input_batch._prepare_prefill_inputs_kernel,
        kernels_input_batch._prepare_pos_seq_lens_kernel,
        kernels_input_batch._combine_sampled_and_draft_tokens_kernel,
        kernels_input_batch._get_num_sampled_and_rejected_kernel,
        kernels_input_batch._post_update_kernel,
        kernels_input_batch._post_update_num_computed_tokens_kernel,
        kernels_input_batch._expand_idx_mapping_kernel,
    ),
    "model_states.mamba_hybrid": (
        kernels_hybrid._scatter_num_accepted_kernel,
        kernels_hybrid._fill_num_accepted_kernel,
    ),
    "mm.rope": (kernels_model_inputs._prepare_rope_positions_kernel,),
    "model_states.prompt_embeds": (kernels_model_inputs._apply_prompt_embeds_kernel,),
    "metrics.logits": (kernels_model_inputs._num_nans_kernel,),
    "structured_outputs": (kernels_logits_processors._apply_grammar_bitmask_kernel,),
    "sample.gumbel": (
        kernels_sampling._temperature_kernel,
        kernels_sampling._gumbel_sample_kernel,
    ),
    "sample.min_p": (kernels_sampling._min_p_kernel,),
    "sample.logprob": (
        kernels_sampling._topk_log_softmax_kernel,
        kernels_sampling._ranks_kernel,
        kernels_sampling._fill_logprob_token_ids_kernel,
    ),
    "sample.prompt_logprob": (kernels_sampling._prompt_logprobs_token_ids_kernel,),
    "sample.penalties": (
        kernels_logits_processors._penalties_kernel,
        kernels_logits_processors._bincount_kernel,
    ),
    "sample.bad_words": (kernels_logits_processors._bad_words_kernel,),
    "sample.logit_bias": (kernels_logits_processors._bias_kernel,),
    "sample.thinking_budget": (
        kernels_thinking_budget._update_committed_marker_cache_kernel,
        kernels_thinking_budget._thinking_budget_kernel,
    ),
    "spec_decode.rejection_sampler": (
        kernels_rejection._flatten_sampled_kernel,
        kernels_rejection._gather_draft_sampled_kernel,
    ),
    "spec_decode.rejection_sampler_utils": (
        kernels_rejection._compute_local_logits_stats_kernel,
        kernels_rejection._rejection_kernel,
        kernels_resample._resample_kernel,
        kernels_resample._insert_resampled_kernel,
    ),
    "spec_decode.dflash.speculator": (kernels_block_drafter._prepare_dflash_inputs_kernel,),
    "spec_decode.multi_module_mtp.speculator": (
        kernels_heads._prepare_input_buffers_kernel,
        kernels_heads._prepare_input_hidden_states_and_embeddings_kernel,
        kernels_heads._pad_trailing_draft_slots_kernel,
        kernels_heads._cache_inputs_kernel,
        kernels_heads._shift_input_ids_kernel,
        kernels_heads._shift_input_embeds_kernel,
    ),
    "spec_decode.ngram.speculator": (
        kernels_ngram._ngram_scan_kernel,
        kernels_ngram._ngram_finalize_kernel,
    ),
    "spec_decode.target_dependent_ar.speculator": (
        kernels_speculator._prepare_prefill_inputs_kernel,
        kernels_speculator._prepare_decode_inputs_kernel,
        kernels_speculator._update_draft_inputs_kernel,
    ),
}


def cpu_kernels() -> dict[str, Callable[..., None]]:
    """Qualified name of every Triton kernel we stand in for -> the CPU function."""
    kernels = _by_name(_KERNELS)
    if vllm.__version_tuple__[:2] >= (0, 33):
        kernels |= _by_name(v0_33.KERNELS)
    kernels["vllm.v1.worker.utils._zero_kv_blocks_kernel"] = kernels_hybrid._zero_kv_blocks_kernel
    # Two modules call different kernels by the same name.
    standalone = "vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator"
    kernels[f"{standalone}._prepare_prefill_inputs_kernel"] = (
        kernels_speculator._prepare_standalone_prefill_inputs_kernel
    )
    return kernels


def _by_name(of_modules: Kernels) -> dict[str, Callable[..., None]]:
    return {
        f"vllm.v1.worker.gpu.{module}.{function.__name__}": function
        for module, functions in of_modules.items()
        for function in functions
    }
