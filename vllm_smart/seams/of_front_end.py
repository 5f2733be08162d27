"""What the front end and the scheduler's process need of vLLM."""

from vllm_smart.seams.seam import Seam, Where

_HERE = Where.FRONT_END
_SPECULATIVE_PLUGINS = "a plugin may register a speculative method"

SEAMS = (
    Seam(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        "rebind",
        _HERE,
        signature="(self, ...) -> VllmConfig",
        uses=("worker_cls", "additional_config", "scheduler_cls", "async_scheduling"),
        remove_when=_SPECULATIVE_PLUGINS,
    ),
    Seam(
        "vllm.engine.arg_utils:EngineArgs",
        "read",
        _HERE,
        names=(
            *("speculative_config", "spec_model", "spec_method", "spec_tokens"),
            *("additional_config", "worker_cls", "scheduler_cls", "async_scheduling"),
            *("tensor_parallel_size", "distributed_executor_backend", "kv_sharing_fast_prefill"),
            *("max_num_batched_tokens", "_api_process_count", "_api_process_rank"),
            *("model", "tokenizer", "revision", "code_revision", "trust_remote_code", "hf_token"),
            *("config_format", "hf_config_path"),
        ),
        remove_when=_SPECULATIVE_PLUGINS,
    ),
    Seam(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "rebind",
        _HERE,
        signature="(self, ...) -> EngineCoreRequest",
        remove_when="a plugin may refuse requests",
    ),
    Seam("vllm.v1.engine.input_processor:InputProcessor", "read", _HERE, names=("vllm_config",)),
    Seam("vllm.plugins:STAT_LOGGER_PLUGINS_GROUP", "read", _HERE),
    Seam(
        "vllm.plugins.endpoint_plugins.interface:EndpointPlugin",
        "read",
        _HERE,
        names=("name", "required_tasks", "attach_router", "init_state"),
    ),
    Seam(
        "vllm.v1.engine.core_client:AsyncMPClient.call_utility_all_async",
        "call",
        _HERE,
        signature="(self, method, *args) -> list[Any]",
        remove_when="`collective_rpc` answers for all data-parallel engines",
    ),
    Seam(
        "vllm.v1.engine.async_llm:AsyncLLM._run_output_handler",
        "rebind",
        _HERE,
        signature="(self)",
        uses=("output_handler", "engine_core", "logger_manager"),
        remove_when="a stat logger may ask engines",
    ),
    Seam("vllm.v1.metrics.loggers:StatLoggerManager", "read", _HERE, names=("stat_loggers",)),
    Seam(
        "vllm.v1.metrics.loggers:AggregateStatLoggerBase",
        "read",
        _HERE,
        names=("record", "log_engine_initialized"),
    ),
    Seam(
        "vllm.config:VllmConfig",
        "read",
        _HERE,
        names=(
            *("additional_config", "attention_config", "cache_config", "compilation_config"),
            *("device_config", "kv_transfer_config", "model_config"),
            *("parallel_config", "scheduler_config", "speculative_config"),
            *("use_v2_model_runner", "_get_v2_model_runner_unsupported_features"),
        ),
    ),
    Seam(
        "vllm.config:SpeculativeConfig",
        "read",
        _HERE,
        names=(
            *("method", "model", "num_speculative_tokens", "draft_model_config"),
            *("attention_backend", "kv_cache_dtype", "uses_draft_model"),
        ),
    ),
    # Which drafter a model brings, or is.
    Seam(
        "vllm.transformers_utils.config:maybe_override_with_speculators",
        "call",
        _HERE,
        signature="(model, tokenizer, trust_remote_code, revision=, vllm_speculative_config=,"
        " hf_token=, ...) -> tuple[str, str | None, dict[str, Any] | None]",
    ),
    Seam(
        "vllm.config:SpeculativeConfig.hf_config_override",
        "call",
        _HERE,
        signature="(hf_config, ...) -> Any",
    ),
    Seam("vllm.config.speculative:MTPModelTypes", "read", _HERE),
    Seam(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
        "override",
        _HERE,
        signature="(self, scheduler_output) -> None",
        uses=("num_spec_tokens_to_schedule",),
        remove_when="a scheduler may be told how much room to leave for drafts",
    ),
    Seam(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        "read",
        _HERE,
        names=(
            *("num_spec_tokens", "max_num_scheduled_tokens", "max_num_running_reqs"),
            "get_request_counts",
        ),
    ),
    Seam(
        "vllm.v1.engine.core:EngineCoreProc._process_input_queue",
        "rebind",
        _HERE,
        signature="(self)",
        uses=("has_work", "input_queue", "process_input_queue_block"),
        remove_when="a plugin may use the time in which an engine is idle",
    ),
    Seam(
        "vllm.v1.engine.core:EngineCoreProc",
        "read",
        _HERE,
        names=(
            *("vllm_config", "model_executor", "input_queue", "has_work", "is_running"),
            *("is_sleeping", "process_input_queue_block"),
        ),
    ),
    Seam(
        "vllm.v1.engine.core:EngineCore.post_step",
        "rebind",
        _HERE,
        signature="(self, model_executed) -> None",
        uses=("async_scheduling", "take_draft_token_ids"),
        remove_when="workers are told how many requests wait",
    ),
    # It sends a step's tokens before it asks for drafts.
    Seam(
        "vllm.v1.engine.core:EngineCoreProc._process_engine_step",
        "read",
        _HERE,
        uses=("step_fn", "output_queue", "post_step"),
    ),
    Seam(
        "vllm.v1.engine.core:EngineCore",
        "read",
        _HERE,
        names=("vllm_config", "model_executor", "scheduler", "async_scheduling"),
    ),
    Seam("vllm.v1.engine:EngineCoreRequestType", "read", _HERE, names=("ADD",)),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler",
        "read",
        _HERE,
        names=("get_request_counts", "max_num_running_reqs"),
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager.grammar_bitmask",
        "rebind",
        _HERE,
        signature="(self, requests, structured_output_request_ids, scheduled_spec_decode_tokens)"
        " -> NDArray[int32] | None",
        uses=("_grammar_bitmask", "_get_constraint_bounds", "num_speculative_tokens"),
        remove_when="vLLM masks drafts by their parents",
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager.validate_tokens",
        "rebind",
        _HERE,
        signature="(self, request, spec_tokens) -> list[int]",
        remove_when="vLLM masks drafts by their parents",
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager.grammar_init",
        "rebind",
        _HERE,
        signature="(self, request) -> None",
        uses=("structured_output_request", "executor", "_use_async_grammar_compilation", "backend"),
        remove_when="workers are told whether reasoning has ended",
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager",
        "read",
        _HERE,
        names=("vllm_config", "reasoner_cls"),
    ),
    Seam(
        "vllm.v1.structured_output:StructuredOutputManager._get_constraint_bounds",
        "call",
        _HERE,
        signature="(self, request, spec_tokens, ...) -> ConstraintBounds",
    ),
    Seam(
        "vllm.v1.structured_output.backend_types:StructuredOutputGrammar",
        "read",
        _HERE,
        names=("accept_tokens", "fill_bitmask", "is_terminated", "rollback", "validate_tokens"),
    ),
    Seam(
        "vllm.v1.executor.abstract:Executor.collective_rpc",
        "call",
        _HERE,
        signature="(self, method, ...)",
    ),
)
