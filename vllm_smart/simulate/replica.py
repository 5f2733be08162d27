"""One simulated engine: steps of continuous batching, one after the other."""

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vllm_smart.config import SmartConfig
from vllm_smart.profiling import Context, CorrectedCost, Correction, CostTable, StepShape
from vllm_smart.scheduler import Queue, StepLoad
from vllm_smart.simulate.batching import Batching, EngineLimits
from vllm_smart.simulate.drafter import Expansions
from vllm_smart.simulate.drafting import Drafted, Emitting, Speculation
from vllm_smart.simulate.workload import Workload

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Machine:
    """What steps take, and when their tokens are seen."""

    table: CostTable
    overheads: Correction = field(default_factory=Correction)  # what steps take beyond the table
    # Whether a step's tokens are seen before its drafts are there. With us they are; where vLLM drafts
    # by itself on CPUs, they are not.
    tokens_first: bool = True
    # Whether it is known, when a step drafts, who has arrived while it ran. Not where steps are
    # scheduled ahead, as on GPUs.
    sees_arrivals: bool = True


@dataclass(frozen=True)
class Served:
    """What came of the requests of an engine."""

    first_ms: _Floats  # [num_requests] when the first token was seen
    last_ms: _Floats  # [num_requests] the last
    gaps_ms: _Floats  # [num_gaps] between what a request was sent and what it was sent before
    num_tokens: int  # emitted
    num_steps: int
    num_draft_nodes: int  # verified
    num_verified_trees: int  # that had draft nodes
    num_accepted: int
    num_drafting_steps: int
    num_preemptions: int
    computed_tokens: int  # rows of all steps


class Replica:
    """An engine that serves one workload."""

    def __init__(
        self,
        config: SmartConfig,
        machine: Machine,
        expansions: Expansions,
        limits: EngineLimits,
        seed: int,
    ) -> None:
        """Args:
        config: names the policy; its node budget resolved.
        machine: what steps take in truth; the controller starts from its table, without the overheads.
        expansions: of the drafter.
        limits: of the engine.
        seed: of the text.
        """
        self._cost = CorrectedCost(machine.table, machine.overheads)
        self._tokens_first, self._sees_arrivals = machine.tokens_first, machine.sees_arrivals
        self._speculation = Speculation(
            config,
            machine.table,
            expansions,
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.block_size,
            machine.sees_arrivals,
            seed,
        )
        self._batching = Batching(limits, lookahead=config.growth.node_budget)
        self._most_tokens, self._most_requests = limits.max_num_batched_tokens, limits.max_num_seqs
        self._may_draft = config.growth.node_budget > 0

    def serve(self, workload: Workload, numbers: _Ints) -> Served:
        """Serve all requests.

        Args:
            workload: in the order of arrival.
            numbers: [num_requests] by which the text of each is known.

        Raises:
            ConfigError: a request could never be served.
        """
        run = _Run(workload, numbers)
        batching, now = self._batching, 0.0
        while run.num_left:
            is_after_pause = batching.is_idle
            if is_after_pause:
                now = max(now, run.next_arrival_ms)
            for request in run.arrived(now):
                prompt, output = int(workload.prompt_tokens[request]), run.output_tokens[request]
                batching.add(request, prompt, prompt + int(output))
            now = self._step(run, now, is_after_pause)
        return run.served(batching.num_preemptions)

    def _step(self, run: "_Run", now: float, is_after_pause: bool) -> float:
        """One step that begins at `now`; returns when it has ended."""
        batching, speculation = self._batching, self._speculation
        slots, tokens, admitted = batching.schedule()
        assert len(slots), "a step computes something"
        for slot in admitted:
            speculation.add_request(slot)
        start, drafts = batching.computed[slots], batching.drafts[slots]
        requests = batching.requests[slots]
        prefill = batching.prefill[slots]
        is_prompt = start < prefill
        num_rows = int(tokens.sum())
        emits = start + tokens - drafts == batching.known[slots]
        num_accepted, branches = speculation.verify(slots, drafts)
        context = Context(float(start.sum()), float(start @ tokens) / num_rows)
        shape = StepShape(num_rows, context, len(slots), branches)
        has_prefill = bool(is_prompt.any())
        speculation.begins(now, shape, has_prefill, is_after_pause)
        emitted = np.minimum(emits * (num_accepted + 1), run.tokens_left(requests))
        end = start + tokens - drafts + num_accepted
        batching.computed[slots] = end
        batching.known[slots] += emitted
        run.tokens_emitted[requests] += emitted
        tokens_left = run.tokens_left(requests)
        drafted, batching.drafts[slots] = Drafted(), 0
        target_ms, is_last = self._target_ms(shape), emits & (tokens_left == 0)
        if self._may_draft:
            unfilled, num_left = np.maximum(prefill - end, 0), len(batching.waiting)
            seats = self._most_requests - batching.num_running + int(np.count_nonzero(is_last))
            num_arrived = run.num_arrived_by(now + target_ms) if self._sees_arrivals else 0
            queue = Queue(num_left, num_arrived, seats)
            load = StepLoad(
                int(np.count_nonzero(emits)),
                min(int(unfilled.sum()), self._most_tokens),
                int(end.sum()),
                speculation.controller.num_waiting(queue, int(np.count_nonzero(unfilled))),
            )
            root = end - num_accepted - 1
            of = Emitting(slots, run.numbers[requests], start, root, end, emits, tokens_left)
            drafted, batching.drafts[slots] = speculation.propose(of, load, tokens * is_prompt)
        drafting_ms = self._drafting_ms(len(slots), drafted)
        seen = now + target_ms + (0.0 if self._tokens_first else drafting_ms)
        run.emitted(requests[emits], seen)
        run.count(num_rows, drafts, num_accepted, drafted)
        for slot in slots[is_last].tolist():
            batching.end(slot)
            run.num_left -= 1
        return now + target_ms + drafting_ms

    def _target_ms(self, shape: StepShape) -> float:
        cost, num_requests = self._cost, shape.num_requests
        target_ms = cost.verify_ms(shape.num_tokens, shape.context)
        target_ms += cost.overhead_ms(num_requests, drafts=False)
        return target_ms + (cost.branching_ms(num_requests) if shape.branches else 0.0)

    def _drafting_ms(self, num_requests: int, drafted: Drafted) -> float:
        if not drafted.num_read:
            return 0.0
        cost = self._cost
        ms = cost.overhead_ms(num_requests, drafts=True) - cost.overhead_ms(num_requests, drafts=False)
        ms += cost.read_ms(drafted.num_read, drafted.num_growing)
        return ms + sum(map(cost.draft_ms, drafted.level_rows))


class _Run:
    """What has come of a workload so far."""

    def __init__(self, workload: Workload, numbers: _Ints) -> None:
        self._arrival_ms = workload.arrival_ms.tolist()
        self._num_arrived = 0
        size = self.num_left = workload.num_requests
        self.output_tokens, self.numbers = workload.output_tokens, numbers
        self.tokens_emitted = np.zeros(size, np.int64)
        self._first_ms, self._last_ms = np.full(size, np.nan), np.full(size, np.nan)
        self._gaps: list[_Floats] = []
        self._counts = np.zeros(6, np.int64)

    @property
    def next_arrival_ms(self) -> float:
        return float(self._arrival_ms[self._num_arrived])

    def num_arrived_by(self, now: float) -> int:
        """Requests that have arrived since the last call of `arrived`."""
        return bisect_right(self._arrival_ms, now) - self._num_arrived

    def arrived(self, now: float) -> range:
        """Requests that have arrived since the last call."""
        first = self._num_arrived
        while self._num_arrived < len(self._arrival_ms) and self.next_arrival_ms <= now:
            self._num_arrived += 1
        return range(first, self._num_arrived)

    def tokens_left(self, requests: _Ints) -> _Ints:
        left: _Ints = self.output_tokens[requests] - self.tokens_emitted[requests]
        return left

    def emitted(self, requests: _Ints, seen_ms: float) -> None:
        before = self._last_ms[requests]
        is_first = np.isnan(before)
        self._first_ms[requests[is_first]] = seen_ms
        self._gaps.append(seen_ms - before[~is_first])
        self._last_ms[requests] = seen_ms

    def count(self, num_rows: int, drafts: _Ints, num_accepted: _Ints, drafted: Drafted) -> None:
        ran, trees = int(drafted.num_read > 0), int(np.count_nonzero(drafts))
        self._counts += (1, int(drafts.sum()), trees, int(num_accepted.sum()), ran, num_rows)

    def served(self, num_preemptions: int) -> Served:
        steps, nodes, trees, accepted, drafting, rows = self._counts.tolist()
        return Served(
            self._first_ms,
            self._last_ms,
            np.concatenate(self._gaps),
            int(self.tokens_emitted.sum()),
            steps,
            nodes,
            trees,
            accepted,
            drafting,
            num_preemptions,
            rows,
        )
