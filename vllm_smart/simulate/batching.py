"""Which requests a step computes, and how many tokens of each: vLLM's rules of continuous batching.

Source: vLLM 0.32, `v1/core/sched/scheduler.py`: running requests come first, in the order of their
admission; prompts are cut where the step's tokens end; the latest request is preempted where KV blocks
run out, and computes everything again; nobody is admitted in a step that has preempted, nor before all
of its known tokens fit. Left out: priorities, prefix caches, encoders and KV connectors.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.errors import ConfigError

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EngineLimits:
    """As `vllm serve` is told."""

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    block_size: int = 16
    num_kv_blocks: int | None = None  # None: as many as can be needed

    @property
    def num_blocks(self) -> int:
        """KV blocks there are."""
        if self.num_kv_blocks is not None:
            return self.num_kv_blocks
        return self.max_num_seqs * -(-self.max_model_len // self.block_size)


class Batching:
    """Requests of one engine, by slots, and what is scheduled of them.

    Attributes:
        computed, known: [max_num_seqs] tokens that are computed, and that there are, by slot.
        prefill: [max_num_seqs] tokens that there were at admission: the prompt, and of a request that
            was preempted all that it had emitted.
        drafts: [max_num_seqs] draft nodes that wait for verification.
        requests: [max_num_seqs] numbers of the requests.
        waiting: numbers of those without a slot, and the tokens that each has.
        num_preemptions: so far.
    """

    def __init__(self, limits: EngineLimits, lookahead: int) -> None:
        """Args:
        limits: of the engine.
        lookahead: KV slots that are kept for drafts beyond the tokens scheduled.
        """
        size = limits.max_num_seqs
        self._limits, self._lookahead = limits, lookahead
        self.computed, self.known = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.prefill = np.zeros(size, np.int64)
        self.drafts, self.requests = np.zeros(size, np.int64), np.full(size, -1, np.int64)
        self._blocks = np.zeros(size, np.int64)
        self._free_blocks = limits.num_blocks
        self._free_slots = list(range(size))[::-1]
        self._running: list[int] = []  # slots, the first admitted first
        self.waiting: deque[tuple[int, int]] = deque()
        self.num_preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not self.waiting

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody has."""
        return self._free_blocks

    def add(self, request: int, num_tokens: int, most_tokens: int) -> None:
        """A request has arrived.

        Args:
            num_tokens: of its prompt.
            most_tokens: that it may come to.

        Raises:
            ConfigError: it could never be served.
        """
        if most_tokens > self._limits.max_model_len:
            raise ConfigError(
                f"request {request} comes to {most_tokens} tokens, --max-model-len is "
                f"{self._limits.max_model_len}. Raise it, or send shorter requests."
            )
        if (needed := self._num_blocks(most_tokens + self._lookahead)) > self._limits.num_blocks:
            raise ConfigError(
                f"request {request} needs {needed} KV blocks, --kv-blocks is "
                f"{self._limits.num_blocks}. Raise it, or send shorter requests."
            )
        self.waiting.append((request, num_tokens))

    def schedule(self) -> tuple[_Ints, _Ints, list[int]]:
        """The next step.

        Returns:
            Slots of its requests and tokens of each, [num_reqs]; drafts trimmed to what is scheduled.
            And the slots that were admitted now.
        """
        slots, tokens, has_preempted = self._schedule_running()
        admitted: list[int] = []
        budget = self._limits.max_num_batched_tokens - int(tokens.sum())
        counts = tokens.tolist()
        while not has_preempted and self.waiting and budget > 0 and self._free_slots:
            request, known = self.waiting[0]
            count = min(known, budget)
            needed = self._num_blocks(min(count + self._lookahead, self._limits.max_model_len))
            if max(needed, self._num_blocks(known)) > self._free_blocks:
                break
            self.waiting.popleft()
            slot = self._free_slots.pop()
            self.requests[slot] = request
            self.known[slot] = self.prefill[slot] = known
            self.computed[slot] = self.drafts[slot] = 0
            self._blocks[slot], self._free_blocks = needed, self._free_blocks - needed
            self._running.append(slot)
            admitted.append(slot)
            counts.append(count)
            budget -= count
        if admitted:
            return np.concatenate((slots, np.array(admitted))), np.array(counts), admitted
        return slots, tokens, admitted

    def _schedule_running(self) -> tuple[_Ints, _Ints, bool]:
        slots = np.array(self._running, np.int64)
        left = self.known[slots] - self.computed[slots]
        tokens = left + self.drafts[slots]
        total = np.cumsum(tokens)
        budget = self._limits.max_num_batched_tokens
        if len(total) and total[-1] > budget:
            tokens = np.minimum(tokens, np.maximum(budget - (total - tokens), 0))
            self.drafts[slots] = np.clip(tokens - left, 0, self.drafts[slots])
        has_preempted = False
        while True:
            end = self.computed[slots] + tokens + self._lookahead
            ends = np.minimum(end, self._limits.max_model_len)
            blocks = np.where(tokens > 0, -(-ends // self._limits.block_size), 0)
            more = np.maximum(blocks - self._blocks[slots], 0)
            needed = int(more.sum())
            if needed <= self._free_blocks:
                break
            self._preempt(int(slots[-1]))
            has_preempted, slots, tokens = True, slots[:-1], tokens[:-1]
        self._blocks[slots] += more
        self._free_blocks -= needed
        is_scheduled = tokens > 0
        return slots[is_scheduled], tokens[is_scheduled], has_preempted

    def _preempt(self, slot: int) -> None:
        self.waiting.appendleft((int(self.requests[slot]), int(self.known[slot])))
        self.num_preemptions += 1
        self.end(slot)

    def end(self, slot: int) -> None:
        """The request in a slot has ended."""
        self._running.remove(slot)
        self._free_slots.append(slot)
        self._free_blocks += int(self._blocks[slot])
        self._blocks[slot] = 0
        self.requests[slot] = -1

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._limits.block_size)
