"""Timing a real engine's steps: which sizes, how often, and what to make of the timings."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median

from vllm_smart.profiling.cost_table import CostSamples, CostTable

# run(kind, *size) -> milliseconds of one step of that kind and size, waiting for its end. The size
# is a number of tokens; of kind "context": requests, rows of each, and tokens before them.
RunFn = Callable[..., float]
_Point = tuple[str, tuple[int, ...]]

# progress(done, total) after each timing; totals grow while jumps are found.
Progress = Callable[[int, int], None]

_KINDS = ("verify", "draft", "read")
_RISE = 1.15  # neighbours whose times differ by more are looked at more closely
_BEND = 1.05  # a middle that is off the line between them by more has a jump on one side
_MAX_REFINED = 24  # further sizes
_REPEATS_SHARE = 0.6  # of the time budget, shared equally by all sizes; the rest is for jumps
_SLOW_SHARE = 0.02  # sizes beyond one that takes so much of the budget are extrapolated
_NEAR = 9  # timings, the one in question among them, that tell how fast the machine was just then


def token_counts(largest: int) -> list[int]:
    """Sizes worth timing first: 1, 2, 3, 4, 6, 8, 12, 16, ... up to `largest`, which is included."""
    sizes = {1, largest}
    power = 2
    while power <= largest:
        # Hardly less than the largest tells hardly more.
        sizes.update(size for size in (power, power * 3 // 2) if size * 1.1 < largest)
        power *= 2
    return sorted(sizes)


def measure(
    run: RunFn,
    max_verify_tokens: int,
    max_draft_rows: int,
    repeats: int,
    budget_s: float = 20.0,
    progress: Progress = lambda done, total: None,
    context_shapes: Sequence[tuple[int, int, int]] = (),
) -> CostTable:
    """The cost table of an engine that `run` steps, up to the given sizes.

    Args:
        run: runs one "verify", "draft" or "read" step and returns its milliseconds. What is run next
            depends on them: with several ranks, `run` must return the same number on each.
        max_verify_tokens: most tokens of one target step.
        max_draft_rows: most rows of one draft level.
        repeats: timings per size, at least 1; the lower quartile counts.
        budget_s: seconds of steps to spend, about. Large sizes that would take too long are left
            to extrapolation.
        progress: told how far it is.
        context_shapes: (requests, rows of each, tokens before them) of further target steps, each
            once without tokens before them.
    """
    sizes = {
        "verify": token_counts(max_verify_tokens),
        "draft": token_counts(max_draft_rows),
        "read": token_counts(max_verify_tokens),
    }
    return CostTable(time_steps(run, sizes, repeats, budget_s, progress, context_shapes))


def time_steps(
    run: RunFn,
    sizes: Mapping[str, Sequence[int]],
    repeats: int,
    budget_s: float = 20.0,
    progress: Progress = lambda done, total: None,
    context_shapes: Sequence[tuple[int, int, int]] = (),
) -> CostSamples:
    """Time an engine's steps.

    All sizes are run once unmeasured, then up to `repeats` times in turn, slow ones less often. A
    machine's speed drifts meanwhile: every timing is taken relative to those right before and after
    it, and then the lower quartile counts. Then steep stretches of the verify times are halved, until
    each is a line or a jump between neighbouring sizes.

    Args:
        run, repeats, budget_s, progress, context_shapes: as for `measure`.
        sizes: sizes to time by kind; "verify" is needed.
    """
    timing = _Timing(run, repeats, budget_s * 1e3, progress)
    points: list[_Point] = [(kind, (size,)) for kind in _KINDS for size in sizes.get(kind, ())]
    timing.add([*points, *(("context", shape) for shape in context_shapes)])
    straight: set[tuple[int, int]] = set()  # stretches whose middle lies on the line
    num_refined = 0
    while timing.spent_ms < timing.budget_ms:
        known = dict(timing.curve("verify"))
        found = _steepest(known, straight)
        if found is None or num_refined == _MAX_REFINED:
            break
        num_refined += 1
        low, middle, high = found
        timing.add([("verify", (middle,))], anchors=[("verify", (low,)), ("verify", (high,))])
        share = (middle - low) / (high - low)
        line = known[low] + share * (known[high] - known[low])
        ms = dict(timing.curve("verify"))[middle]
        if max(ms / line, line / ms) < _BEND:
            straight |= {(low, middle), (middle, high)}
    return CostSamples(
        verify=timing.curve("verify"),
        draft=timing.curve("draft"),
        read=timing.curve("read"),
        noise=timing.noise,
        context=tuple((*shape, timing.typical_ms("context", *shape)) for shape in context_shapes),
    )


def is_slow(ms: float, budget_ms: float) -> bool:
    """Whether a step takes so long that larger ones are not timed."""
    return ms > budget_ms * _SLOW_SHARE


class _Timing:
    """Lower quartiles of repeated timings, within a budget of milliseconds spent in steps.

    Other work on the machine only ever adds time.

    The budget counts what `run` returns, not a clock of its own: all ranks stop alike.
    """

    def __init__(self, run: RunFn, repeats: int, budget_ms: float, progress: Progress) -> None:
        self.budget_ms = budget_ms
        self.spent_ms = 0.0
        self._run = run
        self._repeats = repeats
        self._progress = progress
        self._done = self._total = 0
        self._typical: dict[_Point, float] = {}
        self._spreads: list[float] = []

    def curve(self, kind: str) -> tuple[tuple[int, float], ...]:
        """(size, milliseconds) of `kind`, by size."""
        return tuple(sorted((size[0], ms) for (k, size), ms in self._typical.items() if k == kind))

    def typical_ms(self, kind: str, *size: int) -> float:
        """Milliseconds of a point that was added."""
        return self._typical[kind, size]

    @property
    def noise(self) -> float:
        """By how much the upper quartile of a point's timings exceeds the lower: the median."""
        return median(self._spreads)

    def add(self, points: Sequence[_Point], anchors: Sequence[_Point] = ()) -> None:
        """Time `points`, ascending within a kind, up to the first slow size of each.

        Args:
            points: new ones.
            anchors: known ones, which tell how fast the machine is now; without any, the points
                tell it of each other.
        """
        self._total += (len(points) + len(anchors)) * self._repeats + len(points)
        warm: list[_Point] = []
        too_slow: set[str] = set()
        for kind, size in points:
            if kind not in too_slow:
                warm.append((kind, size))
                if is_slow(self._time((kind, size)), self.budget_ms) and kind in _KINDS:
                    too_slow.add(kind)
        enough_ms = self.budget_ms * _REPEATS_SHARE / len(self._typical.keys() | set(warm))
        timings = self._repeated([*anchors[:1], *warm, *anchors[1:]], enough_ms)
        usual = {point: self._typical[point] for point in anchors} or _medians(timings)
        steady = _at_one_speed(timings, usual)
        for point in warm:
            values = sorted(ms for timed, ms in steady if timed == point)
            self._typical[point] = values[len(values) // 4]
            self._spreads.append(values[-1 - len(values) // 4] / self._typical[point] - 1.0)
        self._done = self._total

    def _repeated(self, points: Sequence[_Point], enough_ms: float) -> list[tuple[_Point, float]]:
        """Timings in the order in which they were made: of each point until it has had enough."""
        timings: list[tuple[_Point, float]] = []
        spent_ms = dict.fromkeys(points, 0.0)
        for repeat in range(self._repeats):
            # Back and forth: no size always follows the same other one.
            for point in points if repeat % 2 == 0 else reversed(points):
                if spent_ms[point] < enough_ms:
                    timings.append((point, self._time(point)))
                    spent_ms[point] += timings[-1][1]
        return timings

    def _time(self, point: _Point) -> float:
        kind, size = point
        ms = self._run(kind, *size)
        self.spent_ms += ms
        self._done += 1
        self._progress(self._done, self._total)
        return ms


def _medians(timings: Sequence[tuple[_Point, float]]) -> dict[_Point, float]:
    by_point: dict[_Point, list[float]] = {}
    for point, ms in timings:
        by_point.setdefault(point, []).append(ms)
    return {point: median(values) for point, values in by_point.items()}


def _at_one_speed(
    timings: Sequence[tuple[_Point, float]], usual: Mapping[_Point, float]
) -> list[tuple[_Point, float]]:
    """What `timings`, in the order of their making, would have been on a machine of steady speed.

    Args:
        timings: points and milliseconds.
        usual: milliseconds of some of these points; how their timings differ tells the speed.
    """
    slowness = [
        (place, ms / usual[point]) for place, (point, ms) in enumerate(timings) if point in usual
    ]
    steady = []
    for place, (point, ms) in enumerate(timings):
        near = sorted(slowness, key=lambda other: abs(other[0] - place))[:_NEAR]
        steady.append((point, ms / median(ratio for _, ratio in near)))
    return steady


def _steepest(ms: Mapping[int, float], straight: set[tuple[int, int]]) -> tuple[int, int, int] | None:
    """(low, middle, high): the stretch with the largest relative rise that may hide a jump."""
    sizes = sorted(ms)
    rises = [
        (ms[high] / ms[low], low, (low + high) // 2, high)
        for low, high in pairwise(sizes)
        if high - low > 1 and ms[high] > ms[low] * _RISE and (low, high) not in straight
    ]
    return max(rises)[1:] if rises else None
