"""Times the parts of a step through the real runner, outside any request."""

import time
from typing import Any

import numpy as np
import torch
from vllm.distributed import get_tp_group
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_smart.adapter.drafter.block_speculator import TreeBlockSpeculator
from vllm_smart.adapter.drafter.reading import side_by_side
from vllm_smart.adapter.drafter.speculator import TreeSpeculator
from vllm_smart.adapter.model_state import TimedRows, TreeModelState

_CONTEXT_LEN = 2048  # tokens before the rows of each dummy request, where there is room for them
_CONTEXT_REQUESTS = 8
_STRIDE = 7919  # between the ids of timed tokens: a prime, so that all of a vocabulary have their turn


class StepTimer:
    """Runs dummy verification steps and draft levels; KV of block 0 and scratch is overwritten."""

    def __init__(self, runner: GPUModelRunner) -> None:
        self.runner = runner
        self._hidden_states: list[
            torch.Tensor
        ] = []  # of the latest target step, what the drafter reads
        self._num_tokens = 0  # timed so far
        self.speculator: Any = runner.speculator
        has_drafter = isinstance(runner.speculator, TreeSpeculator)
        self.rows_per_request = runner.decode_query_len
        self.max_verify_tokens = min(
            runner.max_num_tokens - runner.max_num_reqs, runner.max_num_reqs * self.rows_per_request
        )
        width = self.speculator.runtime.limits.width if has_drafter else 0
        self.max_draft_rows = min(runner.max_num_reqs * width, self.max_verify_tokens)

    @property
    def context_shapes(self) -> list[tuple[int, int, int]]:
        """(requests, rows of each, tokens before them): many short ones and few long ones."""
        rows = self.rows_per_request
        length = max(0, min(_CONTEXT_LEN, self.runner.max_model_len - rows - 1))
        many = min(self.runner.max_num_reqs, _CONTEXT_REQUESTS)
        few = max(1, many // rows)
        return [(reqs, each, n) for reqs, each in ((many, 1), (few, rows)) for n in (0, length)]

    @torch.inference_mode()
    def run(self, kind: str, *size: int) -> float:
        """Milliseconds of one step of `kind`.

        "verify" is the target's forward over `size` tokens, its logits and greedy sampling;
        "context" the same for (requests, rows of each, tokens before them); "draft" the drafter's
        forward and its top candidates; "read" its forward over rows of the target, without; "slowed" a
        "verify" beside a drafter in a process of its own that drafts without a pause.
        """
        if kind == "slowed":
            boards = self.speculator.runtime.boards
            assert boards is not None
            with boards.drafter.rehearsing():
                return self.run("verify", *size)
        steps = {
            "verify": self._verify,
            "context": self._verify_in_context,
            "draft": self._draft_level,
            "read": self._read,
        }
        self.runner.kv_connector.set_disabled(True)  # as in vLLM's own dummy runs
        try:
            start = time.perf_counter()
            steps[kind](*size)
            torch.accelerator.synchronize()
            elapsed_ms = (time.perf_counter() - start) * 1e3
        finally:
            self.runner.kv_connector.set_disabled(False)
        # What is measured next depends on the timings, so all ranks must see the same ones.
        group = get_tp_group()
        return group.broadcast_object(elapsed_ms, src=0) if group.world_size > 1 else elapsed_ms

    def _verify(self, num_tokens: int) -> None:
        num_reqs = -(-num_tokens // self.rows_per_request)
        self._target_step([len(part) for part in np.array_split(np.arange(num_tokens), num_reqs)], 0)

    def _verify_in_context(self, num_reqs: int, rows: int, context_len: int) -> None:
        self._target_step([rows] * num_reqs, context_len)

    def _target_step(self, sizes: list[int], context_len: int) -> None:
        runner, num_tokens = self.runner, sum(sizes)
        output = SchedulerOutput.make_empty()
        output.num_scheduled_tokens = {f"_smart_{i}": n for i, n in enumerate(sizes)}
        output.total_num_scheduled_tokens = num_tokens
        model_state = runner.model_state
        assert isinstance(model_state, TreeModelState)
        model_state.timed = TimedRows(sizes, context_len, self._tokens(num_tokens))
        runner.execute_model(output, dummy_run=True, context_len=context_len)
        model_state.timed = None
        state = runner.execute_model_state
        assert state is not None
        runner.execute_model_state = None
        self._hidden_states = state.aux_hidden_states or [state.hidden_states]
        runner.model.compute_logits(state.hidden_states[:num_tokens]).argmax(dim=-1)

    def _tokens(self, count: int) -> torch.Tensor:
        """[count] int32 ids, others each time: experts are read from memory, as those of text are."""
        ids = torch.arange(self._num_tokens, self._num_tokens + count, device=self.runner.device)
        self._num_tokens += count
        return (ids * _STRIDE % self.runner.vocab_size).to(torch.int32)

    # No attention metadata below: its share of a forward of the drafter is small.

    def _draft_level(self, num_rows: int) -> None:
        on_device = self.speculator.drafting.on_device
        if on_device is not None and on_device.parts.has_graphs:
            on_device.parts.run_padded_level(num_rows)
            return
        out = self._level_outputs(num_rows)
        temperature = torch.zeros(num_rows, device=self.runner.device)
        children = max(1, self.speculator.drafting.runtime.limits.children)
        self.speculator.drafting.drafter.candidates_after(out, temperature, children)

    def _level_outputs(self, num_rows: int) -> torch.Tensor:
        """What the logits of a level are computed from; levels of blocks are read off them."""
        if not isinstance(self.speculator, TreeBlockSpeculator):
            return self._forward(num_rows, None)
        rows = self.speculator.hidden_states[:1].expand(num_rows, -1)
        token = torch.zeros(num_rows, dtype=torch.int64, device=self.runner.device)
        return self.speculator.after_tokens(rows, token)

    def _read(self, num_rows: int) -> None:
        hidden = None
        if self.speculator.reads_hidden_states:
            assert self._hidden_states, "target steps are timed first"
            rows = torch.zeros(num_rows, dtype=torch.int64, device=self.runner.device)
            hidden = self.speculator.drafting.drafter.to_read(side_by_side(self._hidden_states, rows))
        self._forward(num_rows, hidden)

    def _forward(self, num_rows: int, hidden: torch.Tensor | None) -> torch.Tensor:
        graph = self.speculator.graph_for(num_rows)
        self.speculator.input_buffers.input_ids[:num_rows] = self._tokens(num_rows)
        to_logits, _ = self.speculator.forward_rows(num_rows, hidden, None, None, graph)
        return to_logits
