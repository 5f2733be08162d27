"""What workers need of vLLM on any device: Model Runner V2 and what hangs on it."""

from vllm_smart.seams.seam import Seam, Where

_HERE = Where.WORKER
_GPU = "vllm.v1.worker.gpu"
_RUNNER_PLUGINS = "a plugin may give Model Runner V2 its parts"

_STEP = (
    Seam(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "read",
        _HERE,
        names=(
            "scheduled_new_reqs: list[NewRequestData]",
            "scheduled_cached_reqs: CachedRequestData",
            "num_scheduled_tokens: dict[str, int]",
            "total_num_scheduled_tokens: int",
            "scheduled_spec_decode_tokens: dict[str, list[int]]",
            "num_spec_tokens_to_schedule",
        ),
    ),
    Seam(
        "vllm.v1.core.sched.output:CachedRequestData",
        "read",
        _HERE,
        names=(
            "req_ids: list[str]",
            "resumed_req_ids: set[str]",
            "new_block_ids: list[tuple[list[int], ...] | None]",
            "num_computed_tokens: list[int]",
        ),
    ),
    Seam(
        "vllm.v1.core.sched.output:GrammarOutput",
        "read",
        _HERE,
        names=(
            "structured_output_request_ids: list[str]",
            "grammar_bitmask",
            "num_acceptable_drafts: list[int] | None",
        ),
    ),
    # A worker has grammars of its own, of requests that are not the engine core's.
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager",
        "call",
        _HERE,
        signature="(vllm_config)",
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager.accept_tokens",
        "call",
        _HERE,
        signature="(self, request, new_token_ids) -> bool",
        uses=("structured_output_request", "request_id", "_get_constraint_bounds", "reasoning_ended"),
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager._create_grammar",
        "read",
        _HERE,
        uses=("structured_output_key", "sampling_params", "compile_grammar"),
    ),
    Seam(
        "vllm.v1.structured_output.request:StructuredOutputRequest",
        "read",
        _HERE,
        names=(
            *("from_sampling_params", "grammar", "reasoning_ended: bool | None"),
            "reasoning_parser_kwargs: dict[str, Any] | None",
        ),
    ),
    Seam(
        "vllm.v1.core.sched.output:NewRequestData",
        "read",
        _HERE,
        names=("prompt_len", "prefill_token_ids: list[int] | None", "sampling_params"),
    ),
    # Read by plans, samplers and drafting; `StepPlan.complete` rewrites the first five.
    Seam(
        f"{_GPU}.input_batch:InputBatch",
        "read",
        _HERE,
        names=(
            "num_computed_tokens_np: ndarray",
            "num_draft_tokens_per_req: ndarray | None",
            "num_scheduled_tokens: ndarray",
            "query_start_loc_np: ndarray",
            "cu_num_logits_np: ndarray",
            "req_ids: list[str]",
            "num_reqs: int",
            "num_tokens: int",
            "num_tokens_after_padding: int",
            "is_padding: Tensor",
            "idx_mapping: Tensor",
            "idx_mapping_np: ndarray",
            "expanded_idx_mapping: Tensor",
            "query_start_loc: Tensor",
            "seq_lens: Tensor",
            "seq_lens_cpu_upper_bound: Tensor",
            "prefill_len_np: ndarray",
            "is_prefilling_np: ndarray",
            "has_prefill: bool",
            "input_ids: Tensor",
            "positions: Tensor",
            "logits_indices: Tensor",
            "cu_num_logits: Tensor",
            "has_structured_output_reqs: bool",
            "max_query_len: int | None",
        ),
    ),
)

_RUNNER = (
    Seam(
        f"{_GPU}.model_runner:init_speculator",
        "rebind",
        _HERE,
        signature="(vllm_config, device, req_states)",
        remove_when=_RUNNER_PLUGINS,
    ),
    Seam(
        f"{_GPU}.model_runner:GPUModelRunner.__init__",
        "rebind",
        _HERE,
        uses=("init_speculator", "draft_tokens_handler", "DraftTokensHandler"),
        remove_when=_RUNNER_PLUGINS,
    ),
    Seam(
        f"{_GPU}.model_states:resolve_model_state_cls",
        "rebind",
        _HERE,
        signature="(vllm_config, model) -> type[ModelState]",
        remove_when="models served with trees may name their model state",
    ),
    Seam(
        "vllm.distributed.parallel_state:_node_count",
        "call",
        _HERE,
        signature="(pg) -> int",
    ),
    Seam(f"{_GPU}.model_states:init_model_state", "rebind", _HERE, uses=("resolve_model_state_cls",)),
    Seam(
        f"{_GPU}.model_runner:GPUModelRunner.execute_model",
        "call",
        _HERE,
        signature="(self, scheduler_output, intermediate_tensors=, dummy_run=, ...)"
        " -> ModelRunnerOutput | IntermediateTensors | None",
        uses=("prepare_inputs", "prepare_attn", "preprocess_state", "execute_model_state"),
    ),
    Seam(
        f"{_GPU}.model_runner:GPUModelRunner.sample_tokens",
        "read",
        _HERE,
        uses=("postprocess_sampled", "propose", "set_draft_tokens"),
    ),
    Seam(
        f"{_GPU}.model_runner:sort_batch_req_ids",
        "read",
        _HERE,
        signature="(num_tokens_per_req, draft_tokens, decode_query_len) -> list[str]",
    ),
    Seam(
        f"{_GPU}.model_runner:GPUModelRunner",
        "read",
        _HERE,
        names=(
            *("adaptive_verification", "decode_query_len", "device", "draft_tokens_handler"),
            *("execute_model_state", "input_buffers", "kv_connector", "max_model_len"),
            *("max_num_reqs", "max_num_tokens", "model", "model_state", "req_states"),
            *("speculator", "vocab_size"),
        ),
    ),
    Seam(
        f"{_GPU}.kv_connector:ActiveKVConnector.set_disabled",
        "call",
        _HERE,
        signature="(self, disabled) -> None",
    ),
    Seam(
        f"{_GPU}.states:RequestState",
        "read",
        _HERE,
        names=("all_token_ids", "prefill_len", "req_id_to_index"),
    ),
    Seam(
        f"{_GPU}.block_table:BlockTables",
        "read",
        _HERE,
        names=("block_sizes", "block_tables", "input_block_tables", "compute_slot_mappings"),
    ),
    Seam(
        f"{_GPU}.block_table:BlockTables.gather_block_tables",
        "call",
        _HERE,
        signature="(self, idx_mapping, num_reqs_padded, ...) -> tuple[Tensor, ...]",
    ),
    Seam(
        f"{_GPU}.spec_decode.utils:DraftTokensHandler.set_draft_tokens",
        "override",
        _HERE,
        signature="(self, input_batch, draft_tokens) -> None",
    ),
    Seam(
        f"{_GPU}.spec_decode.utils:DraftTokensHandler.get_draft_tokens",
        "override",
        _HERE,
        signature="(self) -> DraftTokenIds | None",
    ),
)

_STATE = f"{_GPU}.model_states.default:DefaultModelState"
_MODEL_STATE = tuple(
    Seam(f"{_STATE}.{name}", "override", _HERE, signature=signature)
    for name, signature in (
        ("custom_sampler", "(self, sampler) -> tuple[Any, Any] | None"),
        ("initialize_kv_cache", "(self, kv_cache_config, block_tables) -> None"),
        ("add_request", "(self, req_index, new_req_data) -> None"),
        (
            "preprocess_state",
            "(self, input_batch, block_tables, kv_cache_config, num_computed_tokens) -> None",
        ),
        ("prepare_inputs", "(self, input_batch, req_states) -> dict[str, Tensor | None]"),
        ("prepare_dummy_inputs", "(self, num_reqs, num_tokens) -> dict[str, Any]"),
        ("dummy_inputs_embeds", "(self, num_tokens) -> Tensor"),
        (
            "prepare_attn",
            "(self, input_batch, cudagraph_mode, block_tables, slot_mappings, attn_groups,"
            " kv_cache_config, for_capture=, ubatch_idx=, ...) -> dict[str, Any]",
        ),
        ("postprocess_state", "(self, idx_mapping, num_sampled, num_computed_tokens=) -> None"),
    )
)

_AR = f"{_GPU}.spec_decode.target_dependent_ar.speculator:TargetDependentARSpeculator"
_STANDALONE = f"{_GPU}.spec_decode.standalone_ar.speculator:StandaloneARSpeculator"
_DRAFT = f"{_GPU}.spec_decode.speculator:DraftModelSpeculator"
_PROPOSE = (
    "(self, input_batch, attn_metadata, slot_mappings, last_hidden_states, aux_hidden_states,"
    " num_sampled, num_rejected, last_sampled, next_prefill_tokens, temperature, seeds, ...) -> Tensor"
)
_SPECULATORS = (
    *(
        Seam(f"{kind}.{name}", "override", _HERE, signature=signature, uses=uses)
        for kind in (_AR, _STANDALONE)
        for name, signature, uses in (
            ("propose", _PROPOSE, ("_multi_step_decode",)),
            ("init_cudagraph_manager", "(self, cudagraph_mode) -> None", ()),
            ("capture", "(self) -> None", ()),
        )
    ),
    Seam(
        f"{_AR}._run_model",
        "call",
        _HERE,
        signature="(self, num_tokens, attn_metadata, slot_mappings, num_tokens_across_dp,"
        " cudagraph_runtime_mode=, mm_inputs=, ...) -> tuple[Tensor, Tensor]",
    ),
    Seam(
        f"{_STANDALONE}._run_model",
        "call",
        _HERE,
        signature="(self, input_ids, positions, attn_metadata, slot_mappings, num_tokens_across_dp)"
        " -> Tensor",
    ),
    Seam(
        f"{_DRAFT}._configure_decode_metadata_update",
        "override",
        _HERE,
        signature="(self) -> None",
        uses=("supports_decode_metadata_update",),
    ),
    Seam(
        f"{_DRAFT}._build_attn_metadata",
        "call",
        _HERE,
        signature="(self, num_reqs, batch_desc, query_start_loc_np, seq_lens_cpu_upper_bound, step,"
        " causal=, dcp_local_seq_lens=, slot_mappings=, ...) -> dict[str, Any] | None",
        uses=("draft_max_seq_len",),
    ),
    Seam(
        _DRAFT,
        "read",
        _HERE,
        names=(
            *("attn_groups", "block_tables", "compute_draft_logits", "draft_attn_layer_names"),
            *("draft_max_seq_len", "draft_tokens", "dtype", "hidden_size", "idx_mapping"),
            *("input_buffers", "kv_cache_config", "max_model_len", "max_num_reqs", "max_num_tokens"),
            *("method", "model", "model_state", "num_speculative_steps", "set_attn"),
            *("supports_mm_inputs", "target_attn_groups", "vocab_size"),
        ),
    ),
    Seam(_AR, "read", _HERE, names=("hidden_states", "prefill_cudagraph_manager")),
    Seam(
        "vllm.model_executor.models.llama_eagle3:Eagle3LlamaForCausalLM.combine_hidden_states",
        "call",
        _HERE,
        signature="(self, hidden_states) -> Tensor",
    ),
    Seam(
        f"{_GPU}.attn_utils:build_slot_mappings_by_layer",
        "call",
        _HERE,
        signature="(slot_mappings, kv_cache_config) -> dict[str, Tensor]",
    ),
)

_SAMPLING = (
    # Our verifier stands in for vLLM's.
    Seam(
        f"{_GPU}.spec_decode.rejection_sampler:RejectionSampler.__call__",
        "replace",
        _HERE,
        signature="(self, logits, input_batch, draft_logits=, invalid_drafts=) -> SamplerOutput",
    ),
    Seam(
        f"{_GPU}.sample.sampler:Sampler.sample",
        "call",
        _HERE,
        signature="(self, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids,"
        " expanded_local_pos, seq_lens_upper_bound_np, return_logprobs=, ...) -> tuple[Tensor, Tensor]",
    ),
    Seam(
        f"{_GPU}.sample.sampler:Sampler.get_logprobs_dims",
        "call",
        _HERE,
        signature="(self, idx_mapping_np, include_token_ids=) -> tuple[int, int] | None",
    ),
    Seam(
        f"{_GPU}.sample.sampler:Sampler",
        "read",
        _HERE,
        names=(
            *("compute_nans", "logits_processors", "logprob_token_ids_state", "logprobs_mode"),
            *("needs_logits_processing", "penalties_state", "req_states", "return_sampling_mask"),
            *("sampling_states", "trace_replay_state", "use_flashinfer", "use_fp64_gumbel"),
        ),
    ),
    # Read to draft with the noise and under the terms that the target is going to sample with.
    Seam(
        f"{_GPU}.sample.states:SamplingStates",
        "read",
        _HERE,
        names=("temperature", "top_k", "top_p", "seeds"),
    ),
    Seam(f"{_GPU}.sample.logit_bias:LogitBiasState", "read", _HERE, names=("use_logit_bias",)),
    Seam(f"{_GPU}.sample.penalties:PenaltiesState", "read", _HERE, names=("use_penalty",)),
    Seam(f"{_GPU}.sample.bad_words:BadWordsState", "read", _HERE, names=("num_bad_words",)),
    Seam(
        f"{_GPU}.sample.logits_processor.interface:LogitsContext",
        "call",
        _HERE,
        names=(
            *("expanded_idx_mapping: Tensor", "idx_mapping: Tensor", "idx_mapping_np: ndarray"),
            *("expanded_local_pos: Tensor", "input_ids: Tensor", "pos: Tensor"),
            "seq_lens_upper_bound_np: ndarray",
        ),
    ),
    Seam(
        f"{_GPU}.sample.logprob:compute_topk_scores",
        "call",
        _HERE,
        signature="(logits, num_logprobs, sampled_token_ids, cu_num_logits=, logprob_token_ids_state=,"
        " expanded_idx_mapping=, max_per_req_token_ids=, logits_mode=, ...) -> LogprobsTensors",
    ),
    Seam(
        f"{_GPU}.spec_decode.rejection_sampler:get_max_chunk_logits",
        "call",
        _HERE,
        signature="(vocab_size) -> int",
    ),
    Seam(f"{_GPU}.metrics.logits:get_num_nans", "call", _HERE, signature="(logits) -> Tensor"),
    Seam(
        f"{_GPU}.input_batch:get_num_sampled_and_rejected",
        "call",
        _HERE,
        signature="(num_sampled, seq_lens, cu_num_logits, idx_mapping, prefill_len)"
        " -> tuple[Tensor, Tensor]",
    ),
)

_ATTENTION = (
    Seam(
        "vllm.v1.attention.backends.registry:register_backend",
        "call",
        _HERE,
        signature="(backend, class_path=, ...) -> Callable[[type], type]",
        remove_when="an engine may be given attention backends of its own",
    ),
    Seam("vllm.v1.attention.backends.registry", "rebind", _HERE, names=("_ATTN_OVERRIDES",)),
    Seam("vllm.v1.attention.selector", "call", _HERE, names=("_cached_get_attn_backend",)),
    Seam("vllm.v1.worker.utils:AttentionGroup", "read", _HERE, names=("backend", "layer_names")),
)

# A draft model in a process of its own is loaded, and given a KV cache, as a worker does it.
_LONE_DRAFTER = (
    Seam(
        "vllm.v1.worker.gpu_worker:init_worker_distributed_environment",
        "call",
        Where.CPU_WORKER,
        signature="(vllm_config, rank, distributed_init_method=, local_rank=, backend=) -> None",
    ),
    Seam(
        f"{_DRAFT}.load_model",
        "call",
        Where.CPU_WORKER,
        signature="(self, target_model) -> None",
        uses=("load_draft_model", "draft_attn_layer_names"),
    ),
    Seam(
        f"{_STANDALONE}.set_attn",
        "override",
        Where.CPU_WORKER,
        signature="(self, model_state, kv_cache_config, block_tables, target_input_buffers,"
        " target_attn_groups) -> None",
    ),
    Seam(
        f"{_GPU}.attn_utils:get_kv_cache_spec",
        "call",
        Where.CPU_WORKER,
        signature="(vllm_config) -> dict[str, KVCacheSpec]",
    ),
    Seam(
        f"{_GPU}.attn_utils:init_attn_backend",
        "call",
        Where.CPU_WORKER,
        signature="(kv_cache_config, vllm_config, device, ...)"
        " -> tuple[list[list[AttentionGroup]], AttentionCGSupportInfo, list[int]]",
    ),
    Seam(
        f"{_GPU}.attn_utils:init_kv_cache",
        "call",
        Where.CPU_WORKER,
        signature="(forward_context, kv_cache_config, device, kernel_block_sizes, vllm_config,"
        " kv_cache_allocation_context=, block_tables=, attn_groups=, ...) -> dict[str, Any]",
    ),
    Seam(
        "vllm.v1.attention.backends.utils:resolve_kv_cache_layout",
        "call",
        Where.CPU_WORKER,
        signature="(vllm_config, supported_layouts, kv_cache_specs=, ...) -> KVCacheLayout",
    ),
    Seam(
        "vllm.v1.attention.backends.utils",
        "call",
        Where.CPU_WORKER,
        names=("get_supported_kv_cache_layouts",),
    ),
    Seam(
        f"{_GPU}.block_table:BlockTables.append_block_ids",
        "call",
        Where.CPU_WORKER,
        signature="(self, req_index, new_block_ids, overwrite) -> None",
    ),
    Seam("vllm.plugins:load_general_plugins", "call", Where.CPU_WORKER, signature="()"),
)

SEAMS = (
    *_STEP,
    *_RUNNER,
    *_MODEL_STATE,
    *_SPECULATORS,
    *_SAMPLING,
    *_ATTENTION,
    *_LONE_DRAFTER,
)
