"""What timed steps are made of: vLLM's dummy rows are all one token, and marked as padding."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.vllm
VOCAB = 2048


@pytest.fixture
def timer():
    from vllm_smart.adapter.step_timer import StepTimer

    timer = StepTimer.__new__(StepTimer)
    timer.runner = SimpleNamespace(device=torch.device("cpu"), vocab_size=VOCAB)
    timer._num_tokens = 0
    return timer


def test_timed_rows_are_tokens_each_another_and_no_padding(timer):
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    from vllm_smart.adapter.model_state import TreeModelState

    buffers = InputBuffers(4, 64, torch.device("cpu"))
    dummy = InputBatch.make_dummy(4, 24, buffers)
    assert dummy.is_padding.all()  # what this is for
    assert not dummy.input_ids.any()
    TreeModelState._fill(TreeModelState.__new__(TreeModelState), dummy, timer._tokens(20))
    assert len(set(dummy.input_ids[:20].tolist())) == 20
    assert not dummy.is_padding[:20].any()
    assert dummy.is_padding[20:].all()  # of a graph that has more rows


def test_the_next_step_has_other_tokens_and_all_are_in_the_vocabulary(timer):
    seen = torch.cat([timer._tokens(count) for count in (1, 7, 300, VOCAB - 308)])
    assert sorted(seen.tolist()) == list(range(VOCAB))
    assert seen.dtype == torch.int32
