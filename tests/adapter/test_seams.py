"""Contract with vLLM: each seam exists with the signature that we use."""

import inspect

import pytest

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def host():
    from vllm_smart.adapter.host import is_cpu
    from vllm_smart.adapter.launch import is_ours
    from vllm_smart.mrv2_cpu import enable_cpu_host

    if is_cpu():
        enable_cpu_host(is_ours)
        import vllm.v1.worker.cpu.shm  # noqa: F401


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_front_end_builds_its_configuration_where_we_rewrite_it():
    from vllm.engine.arg_utils import EngineArgs

    fields = set(EngineArgs.__dataclass_fields__)
    assert {"speculative_config", "additional_config", "async_scheduling", "worker_cls"} <= fields
    assert {"spec_model", "spec_method", "spec_tokens"} <= fields
    source = inspect.getsource(inspect.unwrap(EngineArgs.create_engine_config))
    assert "worker_cls=self.worker_cls" in source
    assert "additional_config=self.additional_config" in source


def test_the_runner_builds_its_parts_by_the_names_that_we_rebind():
    from vllm.v1.worker.gpu import model_runner, model_states

    init = inspect.getsource(model_runner.GPUModelRunner.__init__)
    assert "init_speculator(" in init
    assert "self.draft_tokens_handler = DraftTokensHandler(" in init
    assert "resolve_model_state_cls(" in inspect.getsource(model_states.init_model_state)
    kv_cache = inspect.getsource(model_runner.GPUModelRunner.initialize_kv_cache)
    assert "self.cudagraph_manager = ModelCudaGraphManager(" in kv_cache


def test_the_model_state_is_called_where_we_extend_it():
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    execute = inspect.getsource(GPUModelRunner.execute_model)
    order = [
        execute.index(call)
        for call in (
            "self.prepare_attn(input_batch)",  # slots, from sequential positions
            "self.model_state.preprocess_state(",
            "self.model_state.prepare_attn(",
            "self.model_state.prepare_inputs(",
        )
    ]
    assert order == sorted(order)
    sample = inspect.getsource(GPUModelRunner.sample_tokens)
    assert sample.index("self.postprocess_sampled(") < sample.index("self.speculator.propose(")
    assert parameters(DefaultModelState.prepare_attn)[:9] == [
        "self",
        "input_batch",
        "cudagraph_mode",
        "block_tables",
        "slot_mappings",
        "attn_groups",
        "kv_cache_config",
        "for_capture",
        "ubatch_idx",
    ]
    assert parameters(DefaultModelState.postprocess_state) == [
        "self",
        "idx_mapping",
        "num_sampled",
        "num_computed_tokens",
    ]


def test_requests_with_drafts_lead_the_batch():
    from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids

    assert sort_batch_req_ids({"a": 9, "b": 3, "c": 1}, {"b": [1, 2]}, 8)[0] == "b"


def test_the_speculators_call_what_we_override():
    from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
        TargetDependentARSpeculator,
    )

    shared = ["input_batch", "attn_metadata", "slot_mappings", "last_hidden_states"]
    shared += ["aux_hidden_states", "num_sampled", "num_rejected", "last_sampled"]
    shared += ["next_prefill_tokens", "temperature", "seeds"]
    for speculator in (StandaloneARSpeculator, TargetDependentARSpeculator):
        assert parameters(speculator.propose)[1:12] == shared
        assert "_multi_step_decode" in inspect.getsource(speculator.propose)
    rows = ["num_tokens", "attn_metadata", "slot_mappings", "num_tokens_across_dp"]
    assert parameters(TargetDependentARSpeculator._run_model)[1:5] == rows
    rows = ["input_ids", "positions", "attn_metadata", "slot_mappings", "num_tokens_across_dp"]
    assert parameters(StandaloneARSpeculator._run_model)[1:] == rows


def test_the_tokens_of_a_step_are_known_before_the_drafter_is_asked():
    from vllm.v1.worker.gpu import model_runner

    source = inspect.getsource(model_runner.GPUModelRunner.postprocess_sampled)
    assert "self.req_states.all_token_ids.gpu" in source


def test_the_sampler_takes_rows_and_local_positions():
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    assert parameters(Sampler.sample)[1:] == [
        "logits",
        "expanded_idx_mapping",
        "idx_mapping",
        "idx_mapping_np",
        "pos",
        "input_ids",
        "expanded_local_pos",
        "seq_lens_upper_bound_np",
        "return_logprobs",
    ]


def test_native_logits_processors_are_the_three_that_we_know():
    """A fourth might read a row's history too; see TreeVerifier._needs_history."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    source = inspect.getsource(Sampler.__init__)
    start = source.index("self.logits_processors: list[LogitsProcessor] = [")
    entries = source[start : source.index("]\n", start + 60)].split("[\n")[1].split(",")
    names = [entry.strip() for entry in entries if entry.strip()]
    assert names == [
        "logit_bias_state",
        "self.penalties_state",
        "bad_words_state",
        "*custom_logits_processors",
    ]
