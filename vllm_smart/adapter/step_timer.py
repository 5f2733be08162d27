"""Times the parts of a step through the real runner, outside any request."""

import time

import numpy as np
import torch
from vllm.distributed import get_tp_group
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_smart.adapter.speculator import TreeGrowth

CONTEXT_LEN = 256  # tokens before each dummy request's rows


class StepTimer:
    """Runs dummy verification steps and draft levels; KV of block 0 and scratch is overwritten."""

    def __init__(self, runner: GPUModelRunner) -> None:
        assert isinstance(runner.speculator, TreeGrowth)
        self.runner = runner
        self.speculator = runner.speculator
        self.rows_per_request = runner.decode_query_len
        self.max_verify_tokens = min(
            runner.max_num_tokens - runner.max_num_reqs, runner.max_num_reqs * self.rows_per_request
        )
        self.max_draft_rows = min(
            runner.max_num_reqs * self.speculator.runtime.limits.width, self.max_verify_tokens
        )

    @torch.inference_mode()
    def run(self, kind: str, num_tokens: int) -> float:
        """Milliseconds of one step of `kind` with `num_tokens` rows.

        "verify" is the target's forward, its logits and greedy sampling; "draft" the drafter's
        forward and its top candidates; "read" its forward alone.
        """
        start = time.perf_counter()
        {"verify": self._verify, "draft": self._draft_level, "read": self._read}[kind](num_tokens)
        torch.accelerator.synchronize()
        elapsed_ms = (time.perf_counter() - start) * 1e3
        # What is measured next depends on the timings, so all ranks must see the same ones.
        group = get_tp_group()
        return group.broadcast_object(elapsed_ms, src=0) if group.world_size > 1 else elapsed_ms

    def _verify(self, num_tokens: int) -> None:
        runner = self.runner
        num_reqs = -(-num_tokens // self.rows_per_request)
        sizes = [len(part) for part in np.array_split(np.arange(num_tokens), num_reqs)]
        output = SchedulerOutput.make_empty()
        output.num_scheduled_tokens = {f"_smart_{i}": n for i, n in enumerate(sizes)}
        output.total_num_scheduled_tokens = num_tokens
        context_len = min(CONTEXT_LEN, runner.max_model_len - self.rows_per_request - 1)
        runner.execute_model(output, dummy_run=True, context_len=max(context_len, 0))
        state = runner.execute_model_state
        assert state is not None
        runner.execute_model_state = None
        runner.model.compute_logits(state.hidden_states[:num_tokens]).argmax(dim=-1)

    # No attention metadata below: its share of a forward of the drafter is small.

    def _draft_level(self, num_rows: int) -> None:
        out = self._read(num_rows)
        logits = self.speculator.compute_draft_logits(out, 0)
        slots = torch.zeros(num_rows, dtype=torch.int64, device=self.runner.device)
        self.speculator.top_candidates(logits, slots)

    def _read(self, num_rows: int) -> torch.Tensor:
        return self.speculator.forward_rows(num_rows, None, None, None)[0]
