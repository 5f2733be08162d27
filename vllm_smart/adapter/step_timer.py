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
        """Milliseconds of one `kind` ("verify" or "draft") with `num_tokens` rows.

        A verification is the target's forward, its logits, greedy sampling and the drafter's pass
        over the same rows; a draft level is the drafter's forward and its top candidates.
        """
        start = time.perf_counter()
        if kind == "verify":
            self._verify(num_tokens)
        else:
            self._draft_level(num_tokens)
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
        batch = state.input_batch
        ones = torch.ones(batch.num_reqs, dtype=torch.int32, device=runner.device)
        sampling = runner.sampler.sampling_states
        self.speculator.propose(
            batch,
            state.attn_metadata,
            state.slot_mappings_by_layer,
            state.hidden_states,
            state.aux_hidden_states,
            ones,
            torch.zeros_like(ones),
            runner.req_states.last_sampled_tokens,
            runner.req_states.next_prefill_tokens,
            sampling.temperature.gpu,
            sampling.seeds.gpu,
            dummy_run=True,
        )

    def _draft_level(self, num_rows: int) -> None:
        # No attention metadata: its share of a draft level is small.
        rows = np.zeros(num_rows, np.int64)
        logits = self.speculator.forward_level(num_rows, rows, None, None)
        self.speculator.top_candidates(logits, torch.from_numpy(rows).to(self.runner.device))
