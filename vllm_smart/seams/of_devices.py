"""What workers need of vLLM on GPUs alone, and on CPUs alone."""

from vllm_smart.seams.seam import Seam, Where

_V2 = "vllm.v1.worker.gpu"
_FORWARD = (
    "(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=,"
    " output_block_scale=) -> Tensor"
)


def _worker(target: str, where: Where) -> tuple[Seam, ...]:
    outputs = "ModelRunnerOutput | AsyncModelRunnerOutput"
    return tuple(
        Seam(f"{target}.{name}", "override", where, signature=signature)
        for name, signature in (
            ("init_device", "(self)"),
            ("load_model", "(self, load_dummy_weights=) -> None"),
            ("determine_available_memory", "(self) -> int"),
            ("compile_or_warm_up_model", "(self) -> CompilationTimes"),
            ("execute_model", f"(self, scheduler_output) -> {outputs} | None"),
            ("sample_tokens", f"(self, grammar_output) -> {outputs}"),
            ("take_draft_token_ids", "(self) -> DraftTokenIds | None"),
        )
    )


_GPU = Where.GPU_WORKER
_MANAGER = f"{_V2}.spec_decode.adaptive_verification:AdaptiveVerificationManager"
# `DraftAllocation` stands in for the manager; what `reallocate_drafts` returns differs by version.
_ALLOCATION = (
    Seam(f"{_MANAGER}.add_request", "replace", _GPU, signature="(self, req_idx) -> None"),
    Seam(
        f"{_MANAGER}.get_num_tokens",
        "replace",
        _GPU,
        signature="(self, num_tokens_per_req, draft_tokens) -> int",
    ),
    Seam(
        f"{_MANAGER}.compact_batch",
        "replace",
        _GPU,
        signature="(self, num_draft_tokens_per_req, num_scheduled_tokens, cu_num_logits_np)"
        " -> tuple[ndarray, ndarray]",
    ),
    Seam(
        f"{_MANAGER}.record_confidences",
        "replace",
        _GPU,
        signature="(self, confidence_probs, input_batch) -> None",
    ),
)

_GRAPHS = (
    Seam(
        f"{_V2}.model_runner:GPUModelRunner.initialize_kv_cache",
        "rebind",
        _GPU,
        uses=("ModelCudaGraphManager", "cudagraph_manager"),
        remove_when="vLLM captures plain decoding beside decoding with drafts",
    ),
    Seam(
        f"{_V2}.cudagraph_utils:ModelCudaGraphManager.__init__",
        "override",
        _GPU,
        signature="(self, vllm_config, device, cudagraph_mode, decode_query_len, lora_capture_cases=,"
        " varlen_decode=, ...)",
    ),
    Seam(
        f"{_V2}.cudagraph_utils:CudaGraphManager.__init__",
        "call",
        _GPU,
        signature="(self, vllm_config, device, cudagraph_mode, decode_query_len, ...)",
        uses=("_init_candidates",),
    ),
    Seam(
        f"{_V2}.cudagraph_utils:CudaGraphManager._init_candidates",
        "override",
        _GPU,
        signature="(self) -> None",
        uses=("_capture_descs", "_candidates"),
    ),
    Seam(
        f"{_V2}.cudagraph_utils:CudaGraphManager.capture",
        "call",
        _GPU,
        signature="(self, create_forward_fn, progress_bar_desc=) -> None",
        uses=("_capture_descs", "graphs"),
    ),
    Seam(
        f"{_V2}.cudagraph_utils:CudaGraphManager.run_fullgraph",
        "call",
        _GPU,
        signature="(self, desc)",
        uses=("graphs",),
    ),
    Seam(
        f"{_V2}.cudagraph_utils:CudaGraphManager.dispatch",
        "call",
        _GPU,
        signature="(self, num_reqs, num_tokens, uniform_token_count, num_active_loras, ...)"
        " -> BatchExecutionDescriptor",
        uses=("_candidates",),
    ),
    Seam(
        f"{_V2}.cudagraph_utils:BatchExecutionDescriptor",
        "override",
        _GPU,
        names=(
            *("cg_mode: CUDAGraphMode", "num_tokens: int", "num_reqs: int | None"),
            *("uniform_token_count: int | None", "max_query_len: int | None", "num_active_loras"),
        ),
    ),
    Seam(
        f"{_V2}.cudagraph_utils:CudaGraphManager",
        "read",
        _GPU,
        names=("cudagraph_mode", "max_num_reqs", "lora_capture_cases"),
    ),
)

_GPU_ATTENTION = tuple(
    seam
    for module, kind in (("flash_attn", "FlashAttention"), ("triton_attn", "TritonAttention"))
    for seam in (
        Seam(
            f"vllm.v1.attention.backends.{module}:{kind}Impl.forward",
            "override",
            _GPU,
            signature=_FORWARD,
        ),
        Seam(
            f"vllm.v1.attention.backends.{module}:{kind}Impl",
            "read",
            _GPU,
            names=(
                *("alibi_slopes", "attn_type", "fused_output_quant_supported", "head_size"),
                *("logits_soft_cap", "num_heads", "scale", "sinks", "sliding_window"),
            ),
        ),
        Seam(
            f"vllm.v1.attention.backends.{module}:{kind}MetadataBuilder",
            "override",
            _GPU,
            names=(
                *("device", "get_cudagraph_support", "kv_cache_spec", "num_heads_q", "vllm_config"),
            ),
        ),
        Seam(
            f"vllm.v1.attention.backends.{module}:{kind}Metadata",
            "read",
            _GPU,
            names=(
                *("num_actual_tokens: int", "query_start_loc: Tensor", "seq_lens: Tensor"),
                *("block_table: Tensor", "slot_mapping: Tensor", "scheduler_metadata"),
            ),
        ),
    )
)

_CPU = Where.CPU_WORKER
_CPU_ATTN = "vllm.v1.attention.backends.cpu_attn"
_CPU_ATTENTION = (
    Seam(f"{_CPU_ATTN}:CPUAttentionBackendImpl.forward", "override", _CPU, signature=_FORWARD),
    Seam(
        f"{_CPU_ATTN}:CPUAttentionBackendImpl.do_kv_cache_update",
        "override",
        _CPU,
        signature="(self, layer, key, value, kv_cache, slot_mapping) -> None",
        uses=("isa", "_k_scale_float", "_v_scale_float"),
    ),
    Seam(
        f"{_CPU_ATTN}:CPUAttentionBackendImpl",
        "read",
        _CPU,
        names=(
            *("alibi_slopes", "attn_type", "head_size", "kv_cache_dtype", "logits_soft_cap", "scale"),
            *("sinks", "sliding_window"),
        ),
    ),
    # Which has attention write the KV cache where the backend says so.
    Seam(
        "vllm.model_executor.layers.attention.attention:Attention.forward",
        "read",
        _CPU,
        uses=("forward_includes_kv_cache_update", "kv_sharing_target_layer_name", "layer_name"),
    ),
    Seam("vllm.forward_context:get_forward_context", "call", _CPU, signature="() -> ForwardContext"),
    Seam("vllm.forward_context:ForwardContext", "read", _CPU, names=("slot_mapping",)),
    Seam(
        f"{_CPU_ATTN}:CPUAttentionMetadataBuilder._set_isa_to_layers",
        "override",
        _CPU,
        signature="(self, layer_names) -> None",
        uses=("isa",),
    ),
    Seam(
        f"{_CPU_ATTN}:CPUAttentionMetadataBuilder",
        "override",
        _CPU,
        names=(
            *("block_size", "dtype", "head_dim", "isa", "kv_cache_dtype", "num_heads"),
            *("num_kv_heads", "window_size"),
        ),
    ),
    Seam(
        f"{_CPU_ATTN}:CPUAttentionMetadata",
        "call",
        _CPU,
        names=(
            *("num_actual_tokens: int", "max_query_len: int", "query_start_loc: Tensor"),
            *("max_seq_len: int", "seq_lens: Tensor", "block_table: Tensor", "slot_mapping: Tensor"),
            *("scheduler_metadata",),
        ),
    ),
    # Whose classes, one for each size of chunks, are known by their names.
    Seam(
        "vllm.model_executor.layers.attention.chunked_local_attention"
        ":create_chunked_local_attention_backend",
        "read",
        _CPU,
        signature="(underlying_attn_backend, attention_chunk_size) -> type[AttentionBackend]",
        uses=("subclass_attention_backend",),
    ),
    Seam(
        "vllm.model_executor.layers.attention.chunked_local_attention:ChunkedLocalAttention",
        "read",
        _CPU,
        names=("attention_chunk_size",),
    ),
    # Of drafters, whose blocks vLLM gives away.
    *(
        Seam(f"vllm.v1.kv_cache_interface:{spec}", "read", _CPU, names=names)
        for spec, names in (
            ("SlidingWindowSpec", ("sliding_window: int",)),
            ("ChunkedLocalAttentionSpec", ("attention_chunk_size: int",)),
            ("UniformTypeKVCacheSpecs", ("first_spec",)),
        )
    ),
    Seam(
        "vllm._custom_ops:cpu_attn_reshape_and_cache",
        "call",
        _CPU,
        signature="(key, value, key_cache, value_cache, slot_mapping, isa, k_scale=, v_scale=,"
        " kv_cache_dtype=) -> None",
    ),
    Seam(
        "vllm._custom_ops:cpu_attn_get_scheduler_metadata",
        "call",
        _CPU,
        signature="(num_reqs, num_heads, num_kv_heads, head_dim, seq_lens, dtype, query_start_loc,"
        " causal, sliding_window_size, isa, enable_kv_split, dynamic_causal=, kv_cache_dtype=, ...)"
        " -> Tensor",
    ),
)

_GDN = "vllm.model_executor.layers.mamba.ops.cpu.gdn_attention"
_CPU_RECURRENT = (
    Seam(
        f"{_GDN}:cpu_gdn_attention_core",
        "read",
        _CPU,
        uses=("_cpu_gdn_attention_spec_aware",),
    ),
    Seam(
        f"{_GDN}:_cpu_gdn_attention_spec_aware",
        "rebind",
        _CPU,
        signature="(layer, attn_metadata_i, mixed_qkv, b, a, core_attn_out, width, state_len) -> None",
        remove_when="vLLM's rows of drafts have the bits of rows that decode",
    ),
    Seam(
        f"{_GDN}:_cpu_gdn_attention_nonspec",
        "call",
        _CPU,
        signature="(layer, attn_metadata_i, mixed_qkv, b, a, core_attn_out) -> None",
        uses=("kv_cache", "non_spec_state_indices_tensor", "non_spec_query_start_loc"),
    ),
    Seam(
        "vllm.model_executor.layers.mamba.mamba_mixer2:MambaMixer2.conv_ssm_forward",
        "rebind",
        _CPU,
        signature="(self, projected_states, output)",
        uses=("get_forward_context", "attn_metadata", "kv_cache", "prefix"),
        remove_when="its CPU kernels go on from the last accepted row",
    ),
    Seam(
        "vllm.v1.attention.backends.mamba2_attn:Mamba2AttentionMetadata",
        "override",
        _CPU,
        names=(
            *("num_prefills", "num_prefill_tokens", "num_decodes", "num_decode_tokens", "num_reqs"),
            *("has_initial_states_p", "query_start_loc_p", "state_indices_tensor_p", "chunk_size"),
            *("state_indices_tensor_d", "query_start_loc_d", "num_accepted_tokens", "seq_lens"),
        ),
    ),
    Seam(
        "vllm.v1.attention.backends.gdn_attn:GDNAttentionMetadata",
        "override",
        _CPU,
        names=(
            *("num_prefills: int", "num_decodes: int", "num_actual_tokens: int"),
            *("has_initial_state", "spec_query_start_loc", "spec_state_indices_tensor"),
            *("spec_sequence_masks", "spec_token_indx", "non_spec_token_indx", "num_accepted_tokens"),
        ),
    ),
    Seam(
        f"{_V2}.model_states.mamba_hybrid:MambaHybridModelState",
        "override",
        _CPU,
        names=("prepare_attn", "num_accepted_tokens_gpu"),
    ),
)

_UPSTREAM_PORT = "vLLM has Model Runner V2 on CPUs itself (its pull request 55847)"
_CPU_HOST = (
    Seam(
        "vllm.platforms.cpu:CpuPlatform.register_triton_kernel_overrides",
        "rebind",
        _CPU,
        signature="(cls) -> None",
        remove_when=_UPSTREAM_PORT,
    ),
    Seam(
        "vllm.config:VllmConfig.use_v2_model_runner",
        "rebind",
        _CPU,
        signature="(self) -> bool",
        uses=("HAS_TRITON",),
        remove_when=_UPSTREAM_PORT,
    ),
    Seam(
        "vllm.v1.worker.gpu.spec_decode.ngram.speculator:NgramGPUSpeculator.__init__",
        "rebind",
        _CPU,
        signature="(self, vllm_config, device, req_states)",
        uses=("HAS_TRITON",),
        remove_when=_UPSTREAM_PORT,
    ),
    Seam(
        "vllm.triton_utils.dispatcher:register_kernels",
        "call",
        _CPU,
        signature="(overrides) -> None",
        remove_when=_UPSTREAM_PORT,
    ),
    Seam("vllm.v1.worker.cpu.shm", "call", _CPU, remove_when=_UPSTREAM_PORT),
)

_LOADS_WHAT_IT_SAVES = "vLLM loads on CPUs what it has compiled"
_CPU_SAVED_MODELS = (
    Seam(
        "vllm.compilation.decorators:_try_load_aot_compiled_fn",
        "read",
        _CPU,
        signature="(model, aot_compilation_path) -> Any | None",
        uses=("load_compiled_function", "finalize_loading"),
        remove_when=_LOADS_WHAT_IT_SAVES,
    ),
    Seam(
        "torch._dynamo.aot_compile_types:BundledAOTAutogradSerializableCallable",
        "rebind",
        _CPU,
        names=("deserialize_compile_artifacts",),
        remove_when=_LOADS_WHAT_IT_SAVES,
    ),
)

SEAMS = (
    *_worker("vllm.v1.worker.gpu_worker:Worker", _GPU),
    *_ALLOCATION,
    *_GRAPHS,
    *_GPU_ATTENTION,
    *_worker("vllm.v1.worker.cpu_worker:CPUWorker", _CPU),
    *_CPU_ATTENTION,
    *_CPU_RECURRENT,
    *_CPU_HOST,
    *_CPU_SAVED_MODELS,
)
