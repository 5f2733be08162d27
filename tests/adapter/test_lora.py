"""Adapters by row, and the places in vLLM that ask for them."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


def test_rows_of_logits_take_the_adapter_of_their_request():
    from vllm.lora.request import LoRARequest

    from vllm_smart.adapter.lora import RowLoraState

    slots = np.array([4, 0, 2])
    batch = SimpleNamespace(num_reqs=3, idx_mapping_np=slots, cu_num_logits_np=np.array([0, 3, 4, 6]))
    plan = SimpleNamespace(input_batch=batch)
    runner = SimpleNamespace(max_num_reqs=5, model_state=SimpleNamespace(plan=plan))
    state = RowLoraState(runner)
    adapters = [LoRARequest(f"adapter {i}", i, "/nowhere") for i in (1, 2)]
    state.add_request("a", 4, adapters[1])
    state.add_request("b", 0, None)
    state.add_request("c", 2, adapters[0])
    of_logits, of_tokens, active = state.make_lora_inputs(["a", "b", "c"], slots, np.array([3, 5, 2]))
    assert of_logits == (2, 2, 2, 0, 1, 1)
    assert of_tokens == (2, 2, 2, 0, 0, 0, 0, 0, 1, 1)
    assert active == set(adapters)


def test_the_runner_maps_adapters_once_its_step_is_planned():
    from vllm.v1.worker.gpu.lora_utils import LoraState
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    assert list(inspect.signature(LoraState.make_lora_inputs).parameters) == [
        "self",
        "req_ids",
        "idx_mapping",
        "num_scheduled_tokens",
    ]
    assert "self.lora_state = LoraState(" in inspect.getsource(GPUModelRunner.__init__)
    step = inspect.getsource(GPUModelRunner.execute_model)
    planned = step.index("self.model_state.preprocess_state(")
    mapped = step.index("self.lora_state.make_lora_inputs(")
    assert planned < mapped
    assert "input_batch.idx_mapping_np," in step[mapped : mapped + 200]
