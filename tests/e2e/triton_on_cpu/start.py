"""Starting an interpreted engine as a GPU's starts."""

import functools
from typing import Any
from unittest import mock

from tests.e2e.triton_on_cpu.graphs import capture_as_on_gpus
from tests.quick_interpreter import replace_once


def warm_up_as_on_gpus(captures: bool) -> None:
    """Let vLLM's CPU worker run the requests of its own making with which GPUs are warmed up.

    Args:
        captures: whether full graphs are captured, too.
    """
    replace_once()
    from vllm import SamplingParams
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    stock = CPUWorker.compile_or_warm_up_model

    @functools.wraps(stock)
    def compile_or_warm_up_model(worker: CPUWorker) -> Any:
        # The interpreter does not take vLLM's kernels for grammars, nor those for top-k and top-p.
        params = SamplingParams.for_sampler_warmup()
        params.top_k, params.top_p = 0, 1.0
        with mock.patch.object(SamplingParams, "for_sampler_warmup", return_value=params):
            warmup_kernels(
                worker.model_runner, worker.execute_model, lambda grammar: worker.sample_tokens(None)
            )
        if captures:
            capture_as_on_gpus(worker.model_runner)
        return stock(worker)

    CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model
