"""A schedule made ahead becomes what the scheduler would have made, had it waited."""

import pickle
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

from vllm_smart.adapter.async_schedule import WAITING, exact, with_room, without_padding
from vllm_smart.adapter.tree_scheduler import TreeScheduler
from vllm_smart.scheduler import Queue
from vllm_smart.step import StepResult
from vllm_smart.step.progress import Progress

pytestmark = pytest.mark.vllm
SLOTS = {"a": 3, "b": 0, "c": 1}


def schedule(room: int, running: list[str], new: list[str] = ()) -> SchedulerOutput:
    """A step with room for `room` drafts of each request, made as if all drafts were accepted."""
    made = SchedulerOutput.make_empty()
    made.scheduled_new_reqs = [SimpleNamespace(req_id=name) for name in new]
    made.scheduled_cached_reqs = CachedRequestData(
        req_ids=running,
        resumed_req_ids=set(),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[None] * len(running),
        num_computed_tokens=[99] * len(running),
        num_output_tokens=[0] * len(running),
    )
    made.num_scheduled_tokens = dict.fromkeys((*running, *new), 1 + room)
    made.total_num_scheduled_tokens = sum(made.num_scheduled_tokens.values())
    made.scheduled_spec_decode_tokens = {name: [-1] * room for name in (*running, *new)}
    return made


def progress(num_nodes: list[int]) -> Progress:
    """a, b and c stand at 10, 20 and 30; `num_nodes` of a and c, roots included, are to be verified."""
    known = Progress(4)
    for slot in SLOTS.values():
        known.add_request(slot, num_computed=5)
    result = StepResult(
        slots=np.array([3, 0, 1]),
        start=np.array([9, 19, 29]),
        end=np.array([10, 20, 30]),
        emits=np.ones(3, bool),
    )
    known.stepped(result, np.array([0, 2]), SimpleNamespace(num_nodes=np.array(num_nodes, np.int32)))
    return known


def test_a_request_that_joins_has_no_drafts_whatever_vllm_pads_it_with():
    made = schedule(8, ["a", "b"], new=["c"])
    step = without_padding(made)
    assert step.num_scheduled_tokens == {"a": 9, "b": 9, "c": 1}
    assert step.total_num_scheduled_tokens == 19
    assert step.scheduled_spec_decode_tokens.keys() == {"a", "b"}
    alone = schedule(8, ["a", "b"])
    assert without_padding(alone) is alone


def test_each_request_gets_its_own_tree_and_place():
    made = schedule(8, ["a", "b", "c"])
    step = exact(progress([4, 1]), made, SLOTS)
    assert step.num_scheduled_tokens == {"a": 4, "b": 1, "c": 1}
    assert step.total_num_scheduled_tokens == 6
    assert step.scheduled_spec_decode_tokens == {"a": [-1] * 3}
    assert step.scheduled_cached_reqs.num_computed_tokens == [10, 20, 30]
    # The scheduler goes on reckoning with what it has made.
    assert made.num_scheduled_tokens == {"a": 9, "b": 9, "c": 9}
    assert made.scheduled_cached_reqs.num_computed_tokens == [99] * 3


def test_a_tree_larger_than_its_room_loses_its_tail():
    step = exact(progress([9, 3]), schedule(4, ["a", "c"]), SLOTS)
    assert step.num_scheduled_tokens == {"a": 5, "c": 3}


def test_a_request_that_has_not_run_has_no_drafts():
    known = progress([4, 4])
    step = exact(known, schedule(8, ["c"], new=["a", "d"]), {"a": 3, "c": 1})
    assert step.num_scheduled_tokens == {"a": 1, "c": 4, "d": 1}
    known.add_request(1, num_computed=7)
    step = exact(known, schedule(8, ["c"]), SLOTS)
    assert step.num_scheduled_tokens == {"c": 1}
    assert step.scheduled_cached_reqs.num_computed_tokens == [7]


def test_a_step_without_drafts_leaves_none():
    known = progress([4, 4])
    result = StepResult(np.array([1]), np.array([30]), np.array([31]), np.ones(1, bool))
    known.stepped(result, np.zeros(0, np.int64), None)
    step = exact(known, schedule(8, ["a", "c"]), SLOTS)
    assert step.num_scheduled_tokens == {"a": 4, "c": 1}


class TestWhereTheDeviceChooses:
    """Room for drafts, of which the host knows only that there are some."""

    def test_room_is_left_to_those_that_draft(self):
        known = progress([4, 1])
        known.drafts(np.array([3, 0, 1]), np.array([3, 1]))
        made = schedule(8, ["a", "b", "c"])
        ahead = with_room(known, made, SLOTS)
        assert ahead.num_scheduled_tokens == {"a": 9, "b": 1, "c": 9}
        assert ahead.total_num_scheduled_tokens == 19
        assert ahead.scheduled_spec_decode_tokens == {"a": [-1] * 8, "c": [-1] * 8}
        # Positions are bounds: the device knows better.
        assert ahead.scheduled_cached_reqs.num_computed_tokens == [99] * 3
        assert made.num_scheduled_tokens == {"a": 9, "b": 9, "c": 9}

    def test_as_many_drafts_as_were_chosen_last(self):
        known = progress([4, 2])  # two of each, on average
        assert known.num_drafts([8, 8, 8]) == 6
        assert known.num_drafts([1, 2]) == 3  # no more than there is room for
        assert Progress(4).num_drafts([8, 8]) == 16  # nothing is known yet

    def test_where_nothing_was_worth_verifying_nothing_is(self):
        known = progress([1, 1])
        known.drafts(np.array([3, 0, 1]), np.array([3, 1]))
        ahead = with_room(known, schedule(8, ["a", "b", "c"]), SLOTS)
        assert ahead.num_scheduled_tokens == {"a": 1, "b": 1, "c": 1}
        assert not ahead.scheduled_spec_decode_tokens

    def test_newcomers_have_none(self):
        known = progress([4, 4])
        known.drafts(np.array([3, 0, 1]), np.array([3, 0, 1]))
        known.add_request(0, num_computed=0)
        ahead = with_room(known, schedule(8, ["a", "b", "c"], new=["d"]), SLOTS)
        assert ahead.num_scheduled_tokens == {"a": 9, "b": 1, "c": 9, "d": 1}


@pytest.mark.parametrize(
    ("num_requests", "room"), [(1, 32), (8, 32), (32, 31), (64, 15), (512, 1), (1024, 0)]
)
def test_drafts_leave_half_of_a_step_to_prompts(num_requests, room):
    scheduler = SimpleNamespace(max_num_scheduled_tokens=2048, num_spec_tokens=32)
    scheduler.max_num_running_reqs, scheduler.get_request_counts = 1024, lambda: (num_requests, 3)
    made = SchedulerOutput.make_empty()
    made.num_scheduled_tokens = dict.fromkeys(map(str, range(num_requests)), 33)
    with mock.patch.object(AsyncScheduler, "_update_after_schedule") as stock:
        # `super()` wants one of its own.
        whole = object.__new__(TreeScheduler)
        whole.__dict__.update(vars(scheduler))
        whole._update_after_schedule(made)
    stock.assert_called_once_with(made)
    assert made.num_spec_tokens_to_schedule == room
    # It says who waits, to workers in other processes, too.
    told = getattr(pickle.loads(pickle.dumps(made)), WAITING)
    assert Queue(*told) == Queue(num_left=3, num_seats=1024 - num_requests)
