import pytest

from tests.unit.trace.hand_made import decision, drafted, outcome, trace, verified
from vllm_smart.trace.verdicts import ACCEPTED, REJECTED, UNKNOWN, continuations, verdicts


@pytest.mark.parametrize(
    ("continuation", "expected"),
    [
        ((), [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]),
        ((99,), [REJECTED, REJECTED, REJECTED, REJECTED]),
        ((20,), [REJECTED, ACCEPTED, REJECTED, REJECTED]),
        ((10,), [ACCEPTED, REJECTED, UNKNOWN, UNKNOWN]),
        ((10, 40), [ACCEPTED, REJECTED, REJECTED, ACCEPTED]),
        ((10, 99), [ACCEPTED, REJECTED, REJECTED, REJECTED]),
    ],
)
def test_candidates_are_accepted_if_their_path_spells_what_followed(continuation, expected):
    assert verdicts(drafted(), continuation).tolist() == [ACCEPTED, *expected]


def test_continuations_run_on_through_the_steps_that_follow():
    steps = trace(
        decision(0, drafted("a"), drafted("b")),
        outcome(0, verified("a", (1,), (1,), 5), verified("b", (), (), 6)),
        decision(1, drafted("a")),
        outcome(1, verified("a", (), (), 7)),
        decision(2, drafted("a")),
    ).steps
    # No deeper than the pools, unless one step emitted more.
    assert continuations(steps) == [{"a": (10, 5), "b": (6,)}, {"a": (7,)}, {}]
    later = trace(*(record for step in steps[1:] for record in (step.decision, step.outcome) if record))
    assert continuations(later.steps) == [{"a": (7,)}, {}]
