"""What a step leaves for later happens once, and in order."""

from types import SimpleNamespace

import pytest

from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.step.states import ArrivedStep, QueuedStep

pytestmark = pytest.mark.vllm


class Remainder:
    def __init__(self) -> None:
        self.events: list[str] = []

    def keep(self) -> None:
        self.events.append("keep")

    def learn(self) -> None:
        self.events.append("learn")


@pytest.fixture
def runtime() -> TreeRuntime:
    """As much of one as steps concern."""
    runtime = TreeRuntime.__new__(TreeRuntime)
    runtime._latest, runtime._newcomers = None, []
    runtime.progress = SimpleNamespace()
    return runtime


def test_only_a_step_that_has_arrived_can_be_learnt_from():
    queued = QueuedStep(Remainder())
    assert not hasattr(queued, "learn")
    arrived = queued.arrive()
    assert isinstance(arrived, ArrivedStep)
    assert not hasattr(arrived, "arrive")


def test_settling_lets_a_step_arrive_first_and_each_part_happens_once(runtime):
    step = Remainder()
    runtime.queue(step)
    runtime.arrive()
    runtime.arrive()
    assert step.events == ["keep"]
    runtime.settle()
    runtime.settle()
    assert step.events == ["keep", "learn"]


def test_no_step_is_forgotten(runtime):
    runtime.queue(Remainder())
    runtime.arrive()
    with pytest.raises(AssertionError, match="not been learnt"):
        runtime.queue(Remainder())
