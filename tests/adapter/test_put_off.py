"""Drafts are made once a step's tokens are on their way, and never twice."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.vllm
TREES = torch.tensor([1]), torch.tensor([[7, 8, -1]])


class Runtime:
    """As much of a `TreeRuntime` as says when to draft."""

    def __init__(self, tells_scheduler: bool = True) -> None:
        self.tells_scheduler = tells_scheduler
        self.waiting = None

    def put_off(self, drafting):
        self.waiting = drafting

    def take_put_off(self):
        waiting, self.waiting = self.waiting, None
        return waiting


def proposed(runtime, grown=TREES, no_token=-1):
    """What a step's `propose` has filled in, and how often trees were grown."""
    from vllm_smart.adapter.drafter.host_drafting import HostDrafting

    calls = []
    drafting = HostDrafting(runtime, None, None, None)
    drafting._grow = lambda *args: calls.append(args) or grown
    drafts = torch.full((2, 4), no_token)
    batch = SimpleNamespace(idx_mapping=torch.tensor([5, 3]))
    outcome = SimpleNamespace(plan=SimpleNamespace(input_batch=batch))
    drafting.propose(outcome, [], torch.zeros(8), None, drafts)
    return drafts, calls


def worker(runtime):
    """A worker whose step has run; what its runner knows of drafts."""
    from vllm_smart.adapter.worker import TreeWorker

    made = object.__new__(TreeWorker)
    told = []
    made.model_runner = SimpleNamespace(
        speculator=SimpleNamespace(runtime=runtime),
        req_states=SimpleNamespace(draft_tokens=torch.zeros(8, 4, dtype=torch.int64)),
        draft_tokens_handler=SimpleNamespace(
            set_draft_tokens=lambda batch, drafts: told.append(drafts.tolist())
        ),
        take_draft_token_ids=lambda: list(told),
    )
    return made


def test_a_step_drafts_when_the_scheduler_asks_for_drafts():
    runtime = Runtime()
    drafts, calls = proposed(runtime)
    assert (drafts == -1).all()
    assert not calls
    asked = worker(runtime)
    assert asked.take_draft_token_ids() == [[[-1] * 4, [7, 8, -1, -1]]]
    assert asked.model_runner.req_states.draft_tokens[3].tolist() == [7, 8, -1, -1]
    assert len(calls) == 1
    asked.take_draft_token_ids()
    assert len(calls) == 1


def test_where_nothing_is_grown_nothing_is_written():
    runtime = Runtime()
    proposed(runtime, grown=None)
    asked = worker(runtime)
    assert asked.take_draft_token_ids() == []
    assert not asked.model_runner.req_states.draft_tokens.any()


def test_a_scheduler_that_never_asks_makes_no_step_skip_its_drafting():
    runtime = Runtime()
    _, calls = proposed(runtime)
    worker(runtime)._draft()  # as the next step does
    assert len(calls) == 1
    assert runtime.waiting is None


def test_where_nobody_waits_for_drafts_they_are_made_at_once():
    drafts, calls = proposed(Runtime(tells_scheduler=False), no_token=0)
    assert len(calls) == 1
    assert drafts.tolist() == [[0] * 4, [7, 8, 0, 0]]
