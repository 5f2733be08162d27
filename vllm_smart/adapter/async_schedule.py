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

from vllm.v1.core.sched.output import SchedulerOutput

from vllm_smart.step.progress import Progress

WAITING = "_vllm_smart_waiting"  # of a schedule: the `Queue` behind it, as a tuple


def with_room(
    progress: Progress, schedule: SchedulerOutput, slot_of: Mapping[str, int]
) -> SchedulerOutput:
    """`schedule` with room for drafts where there are trees, if any of them is to be verified.

    Args:
        progress: of all requests, as far as it is known.
        slot_of: slots of the requests that have run before, by id.
    """
    new = {data.req_id for data in schedule.scheduled_new_reqs}
    rooms = {
        request: room
        for request, room in schedule.scheduled_spec_decode_tokens.items()
        if request not in new and progress.has_tree(slot_of[request])
    }
    if not progress.num_drafts([len(room) for room in rooms.values()]):
        rooms = {}
    return _with_drafts(schedule, rooms)


def exact(progress: Progress, schedule: SchedulerOutput, slot_of: Mapping[str, int]) -> SchedulerOutput:
    """`schedule` as it would be, had the scheduler seen what the last step has brought.

    Args:
        progress: of all requests, as far as it is known.
        slot_of: slots of the requests that have run before, by id.
    """
    new = {data.req_id for data in schedule.scheduled_new_reqs}
    drafts = {
        request: room[: progress.num_drafts_of(slot_of[request])]
        for request, room in schedule.scheduled_spec_decode_tokens.items()
        if request not in new
    }
    drafts = {request: nodes for request, nodes in drafts.items() if nodes}
    running = schedule.scheduled_cached_reqs
    ends = progress.ends([slot_of[request] for request in running.req_ids]).tolist()
    return replace(
        _with_drafts(schedule, drafts),
        scheduled_cached_reqs=replace(running, num_computed_tokens=ends),
    )


def without_padding(schedule: SchedulerOutput) -> SchedulerOutput:
    """`schedule` without the drafts of requests that join, which have none: itself if there are none.

    vLLM pads a request of which one token is left to compute, so that its graphs fit the step. Those
    rows would be taken for the tree that the slot's last request has left.
    """
    new = {data.req_id for data in schedule.scheduled_new_reqs}
    drafts = schedule.scheduled_spec_decode_tokens
    if new.isdisjoint(drafts):
        return schedule
    return _with_drafts(schedule, {name: nodes for name, nodes in drafts.items() if name not in new})


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
