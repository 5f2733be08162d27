"""What a step leaves for later happens once, and in order."""

import pytest

from vllm_smart.adapter.late_step import LateStep

pytestmark = pytest.mark.vllm


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def step(events) -> LateStep:
    late = LateStep()
    late.put(lambda: events.append("arrives"), lambda: events.append("teaches"))
    return late


def test_a_step_arrives_before_it_teaches(step, events):
    step.teach()
    assert events == ["arrives", "teaches"]
    assert step.has_taught


def test_each_part_happens_once(step, events):
    step.arrive()
    step.arrive()
    assert events == ["arrives"]
    assert not step.has_taught
    step.teach()
    step.teach()
    assert events == ["arrives", "teaches"]


def test_no_step_is_forgotten(step):
    step.arrive()
    with pytest.raises(AssertionError):
        step.put(lambda: None, lambda: None)
