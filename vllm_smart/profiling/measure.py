"""Timing a real engine's steps: which sizes, how often, and what to make of the timings."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median

from vllm_smart.profiling.cost_table import CostSamples, CostTable

# run(kind, tokens) -> milliseconds of one step of that kind and size, waiting for its end.
RunFn = Callable[[str, int], float]

_KINDS = ("verify", "draft", "read", "context")
_JUMP = 1.15  # neighbours whose times differ by more are looked at more closely
_MAX_ROUNDS = 8
_ENOUGH_MS = 1000.0  # timed so long, a size is known well enough whatever `repeats` says


def token_counts(largest: int) -> list[int]:
    """Sizes worth timing first: 1, 2, 3, 4, 6, 8, 12, 16, ... up to `largest`, which is included."""
    sizes = {1, largest}
    power = 2
    while power <= largest:
        sizes.update(size for size in (power, power * 3 // 2) if size <= largest)
        power *= 2
    return sorted(sizes)


def measure(run: RunFn, max_verify_tokens: int, max_draft_rows: int, repeats: int) -> CostTable:
    """The cost table of an engine that `run` steps, up to the given sizes.

    Args:
        run: runs one "verify", "draft" or "read" step and returns its milliseconds. What is run next
            depends on them: with several ranks, `run` must return the same number on each.
        max_verify_tokens: most tokens of one target step.
        max_draft_rows: most rows of one draft level.
        repeats: timings per size, at least 1; the median counts.
    """
    sizes = {
        "verify": token_counts(max_verify_tokens),
        "draft": token_counts(max_draft_rows),
        "read": token_counts(max_verify_tokens),
    }
    return CostTable(time_steps(run, sizes, repeats))


def time_steps(
    run: RunFn, sizes: Mapping[str, Sequence[int]], repeats: int, refine: int = 24
) -> CostSamples:
    """Time an engine's steps.

    All sizes are run once unmeasured, then `repeats` times in turn (slow ones less often), so that
    a slow moment hits every size alike; the median counts. Then jumps of the verify times are
    narrowed by bisection.

    Args:
        run: as for `measure`, for all kinds.
        sizes: sizes to time by kind; "verify" is needed.
        repeats: timings per size, at least 1.
        refine: most further sizes spent on jumps.
    """
    points = [(kind, size) for kind in _KINDS for size in sizes.get(kind, ())]
    medians = _medians(run, points, repeats)
    for _ in range(_MAX_ROUNDS):
        found = _between_jumps({size: ms for (kind, size), ms in medians.items() if kind == "verify"})
        found = found[:refine]
        if not found:
            break
        refine -= len(found)
        medians |= _medians(run, [("verify", size) for size in found], repeats)

    def curve(kind: str) -> tuple[tuple[int, float], ...]:
        return tuple(sorted((size, ms) for (k, size), ms in medians.items() if k == kind))

    return CostSamples(
        verify=curve("verify"),
        draft=curve("draft"),
        read=curve("read"),
        context=curve("context"),
    )


def _medians(
    run: RunFn, points: Sequence[tuple[str, int]], repeats: int
) -> dict[tuple[str, int], float]:
    for kind, size in points:
        run(kind, size)
    times: dict[tuple[str, int], list[float]] = {point: [] for point in points}
    for repeat in range(repeats):
        # Back and forth: no size always follows the same other one.
        for kind, size in points if repeat % 2 == 0 else reversed(points):
            if sum(times[kind, size]) < _ENOUGH_MS:
                times[kind, size].append(run(kind, size))
    return {point: median(values) for point, values in times.items()}


def _between_jumps(ms: Mapping[int, float]) -> list[int]:
    """The middles of neighbouring sizes with a jump between them, largest jump first."""
    sizes = sorted(ms)
    jumps = [
        (ms[high] / ms[low], (low + high) // 2)
        for low, high in pairwise(sizes)
        if high - low > 1 and ms[high] > ms[low] * _JUMP
    ]
    return [size for _, size in sorted(jumps, reverse=True)]
