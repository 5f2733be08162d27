"""Asynchronous scheduling: what the scheduler could not know, put right in the worker.

vLLM schedules a step while the one before still runs: with room for the largest tree of each request,
and as if all of its last one had been accepted.

Where trees are chosen on the device (`with_room`), the step is queued without knowing more: how many
draft nodes it verifies is told from the steps before, whose they are is decided on the device
(`cuda.allocation`). The host waits for the last step's outcome behind this step's forward, and all that
follows knows exactly what was run (`StepPlan.complete`).

Where the host chooses (`exact`), the worker waits first and makes of the schedule what the scheduler
would have made had it waited, too. Such a step begins late by the time it takes to queue it, but not by
what the engine does between two steps.

While nobody drafts there is nothing to wait for.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

from vllm_smart.step import StepResult
from vllm_smart.tree import TreeBatch


class Progress:
    """How far each request is and what was drafted for it, by request-state slot."""

    def __init__(self, max_num_reqs: int) -> None:
        """Args:
        max_num_reqs: number of slots.
        """
        self._end = np.zeros(max_num_reqs, np.int64)  # position after the last one that stands
        self._num_drafts = np.zeros(max_num_reqs, np.int64)  # nodes that wait for verification
        self._has_tree = np.zeros(max_num_reqs, bool)  # whether there are any; known before how many
        self._chosen_each: float | None = None  # of a request, in the latest step that is known

    def add_request(self, slot: int, data: NewRequestData) -> None:
        """A request was given `slot`."""
        self._end[slot], self._num_drafts[slot] = data.num_computed_tokens, 0
        self._has_tree[slot] = False

    def drafts(self, slots: np.ndarray, drafting: np.ndarray) -> None:
        """A step is drafting; what becomes of it is not known yet.

        Args:
            slots: [num_reqs] of its batch.
            drafting: [num_drafting] those of them that grow trees.
        """
        self._has_tree[slots] = False
        self._has_tree[drafting] = True

    def ends(self, slots: np.ndarray) -> np.ndarray:
        """[num_reqs] positions after the last ones that stand, of requests in `slots`."""
        return self._end[slots]

    def num_drafts(self, room: list[int]) -> int:
        """Draft nodes that the next step should verify, of requests that have trees.

        As many as were chosen for each of them last; before that is known, all that there is room for.
        """
        if self._chosen_each is None:
            return sum(room)
        return min(round(self._chosen_each * len(room)), sum(room))

    def stepped(self, result: StepResult, drafting: np.ndarray, trees: TreeBatch | None) -> None:
        """A step has ended.

        Args:
            result: what it has brought.
            drafting: [num_drafting] batch indices of the requests that `trees` were grown for.
            trees: theirs; None if nobody drafted.
        """
        self._end[result.slots] = result.end
        self._num_drafts[result.slots] = 0
        if trees is not None:
            self._num_drafts[result.slots[drafting]] = trees.num_nodes - 1
            chosen = trees.num_nodes[result.emits[drafting]] - 1
            self._chosen_each = float(chosen.mean()) if len(chosen) else self._chosen_each

    def with_room(self, schedule: SchedulerOutput, slot_of: Mapping[str, int]) -> SchedulerOutput:
        """`schedule` with room for drafts where there are trees, if any of them is to be verified.

        Args:
            slot_of: slots of the requests that have run before, by id.
        """
        new = {data.req_id for data in schedule.scheduled_new_reqs}
        rooms = {
            request: room
            for request, room in schedule.scheduled_spec_decode_tokens.items()
            if request not in new and self._has_tree[slot_of[request]]
        }
        if not self.num_drafts([len(room) for room in rooms.values()]):
            rooms = {}
        return _with_drafts(schedule, rooms)

    def exact(self, schedule: SchedulerOutput, slot_of: Mapping[str, int]) -> SchedulerOutput:
        """`schedule` as it would be, had the scheduler seen what the last step has brought.

        Args:
            slot_of: slots of the requests that have run before, by id.
        """
        new = {data.req_id for data in schedule.scheduled_new_reqs}
        drafts = {
            request: room[: self._num_drafts[slot_of[request]]]
            for request, room in schedule.scheduled_spec_decode_tokens.items()
            if request not in new
        }
        drafts = {request: nodes for request, nodes in drafts.items() if nodes}
        running = schedule.scheduled_cached_reqs
        ends = self._end[[slot_of[request] for request in running.req_ids]].tolist()
        return replace(
            _with_drafts(schedule, drafts),
            scheduled_cached_reqs=replace(running, num_computed_tokens=ends),
        )


def _with_drafts(schedule: SchedulerOutput, drafts: dict[str, list[int]]) -> SchedulerOutput:
    """`schedule` with no more drafts than these, each a first part of what has room in it."""
    num_tokens = dict(schedule.num_scheduled_tokens)
    for request, room in schedule.scheduled_spec_decode_tokens.items():
        num_tokens[request] -= len(room) - len(drafts.get(request, ()))
    return replace(
        schedule,
        num_scheduled_tokens=num_tokens,
        total_num_scheduled_tokens=sum(num_tokens.values()),
        scheduled_spec_decode_tokens=drafts,
    )
