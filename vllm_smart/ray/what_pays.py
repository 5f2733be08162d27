"""What speculation was worth between two looks at an engine's counters."""

from collections.abc import Mapping
from typing import Any

Counters = Mapping[str, Any]


def what_pays(before: Counters, now: Counters) -> dict[str, float]:
    """Numbers to scale by.

    Args:
        before, now: as `StepStats.counters` returns them; nothing means that nothing was counted.

    Returns:
        smart_batch: requests of a step, on average; 0 where there were none.
        smart_rest_share: of steps in which no drafter ran.
        smart_speedup: over plain decoding, an estimate; 1 where nothing was timed.
    """
    steps, requests, rests, plain_s, taken_s = (
        float(now.get(name, 0.0)) - float(before.get(name, 0.0))
        for name in (
            *("steps", "step_requests", "steps_without_drafting"),
            *("plain_seconds", "step_seconds"),
        )
    )
    return {
        "smart_batch": requests / steps if steps else 0.0,
        "smart_rest_share": min(1.0, rests / steps) if steps else 0.0,
        "smart_speedup": plain_s / taken_s if taken_s else 1.0,
    }
