"""Timing a real engine's steps: which sizes, how often, and what to make of the timings."""

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from vllm_smart.profiling.cost_table import CostSamples, CostTable

# run(kind, *size) -> milliseconds of one step of that kind and size, waiting for its end. The size
# is a number of tokens; of kind "context": requests, rows of each, and tokens before them.
RunFn = Callable[..., float]
Point = tuple[str, tuple[int, ...]]  # kind and size

_T = TypeVar("_T")
# Yields what to run next, is sent how long it took, and returns what comes of it all.
Timings = Generator[Point, float, _T]

# progress(done, total) after each timing; totals grow while jumps are found.
Progress = Callable[[int, int], None]

_KINDS = ("verify", "draft", "read", "slowed")
_KINK = 2.0  # errors by which a point must be off the line between its neighbours to be believed
_KINK_ROUNDS = 30
_RISE = 1.15  # neighbours whose times differ by more are looked at more closely
_BEND = 1.05  # a middle that is off the line between them by more has a jump on one side
_MAX_REFINED = 24  # further sizes
_REPEATS_SHARE = 0.6  # of the time budget, shared by all sizes; the rest is for jumps first
_SLOW_SHARE = 0.02  # sizes beyond one that takes so much of the budget are extrapolated,
_LEAST_TOKENS = 16  # but for the smallest, however slow: one size alone is no curve
_GUESS_S, _GUESS_REPEATS, _GUESS_SLOW_MS = 1.0, 2, 200.0
_NEAR = 7  # timings, the one in question among them, that tell how fast the machine was just then
_ROUNDS = 10  # of telling the machine's speed by the points' times, and these by that speed


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
    max_verify_tokens: int,
    max_draft_rows: int,
    repeats: int,
    budget_s: float = 20.0,
    progress: Progress = lambda done, total: None,
    context_shapes: Sequence[tuple[int, int, int]] = (),
    is_beside: bool = False,
) -> Timings[CostTable]:
    """The cost table of an engine, up to the given sizes.

    Args:
        max_verify_tokens: most tokens of one target step.
        max_draft_rows: most rows of one draft level; 0 without a drafter.
        repeats: timings per size, at least 1; the lower quartile counts.
        budget_s: seconds of steps to spend, about. Large sizes that would take too long are left
            to extrapolation.
        progress: told how far it is.
        context_shapes: (requests, rows of each, tokens before them) of further target steps, each
            once without tokens before them.
        is_beside: whether a drafter runs beside the target, which it may slow.

    Yields:
        Steps to run: "verify", "draft", "read", "slowed" or "context", and the size. What is asked for
        next depends on how long they took: with several ranks, each must send the same numbers.
    """
    sizes = {"verify": token_counts(max_verify_tokens)}
    if max_draft_rows:
        sizes |= {"draft": token_counts(max_draft_rows), "read": token_counts(max_verify_tokens)}
    if is_beside:
        sizes["slowed"] = [size for _, size in _fourfold({"slowed": max_verify_tokens})]
    return CostTable((yield from time_steps(sizes, repeats, budget_s, progress, context_shapes)))


def guess(max_verify_tokens: int, max_draft_rows: int) -> Timings[CostTable]:
    """A table from a few timings, within two seconds where steps are short: good enough to begin by.

    What steps pay for context is not in it.

    Args, yields: as for `measure`.
    """
    largest = {"verify": max_verify_tokens}
    if max_draft_rows:
        largest |= {"draft": max_draft_rows, "read": max_verify_tokens}
    points = [(kind, (size,)) for kind, size in _fourfold(largest)]
    timing = _Timing(_GUESS_REPEATS, _GUESS_S * 1e3, _GUESS_SLOW_MS, lambda done, total: None)
    yield from timing.add(points)
    yield from timing.repeat(timing.count_slow_first_runs(), timing.budget_ms)
    return CostTable(timing.samples(max_verify_tokens))


def run_all(timings: Timings[_T], run: RunFn) -> _T:
    """What comes of `timings` if `run` runs all that they ask for."""
    try:
        kind, size = next(timings)
        while True:
            kind, size = timings.send(run(kind, *size))
    except StopIteration as end:
        result: _T = end.value
        return result


def _fourfold(largest: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """1, 4, 16, ... and the largest, of each kind."""
    for kind, most in largest.items():
        size = 1
        while size < most:
            yield kind, size
            size *= 4
        yield kind, most


def time_steps(
    sizes: Mapping[str, Sequence[int]],
    repeats: int,
    budget_s: float = 20.0,
    progress: Progress = lambda done, total: None,
    context_shapes: Sequence[tuple[int, int, int]] = (),
) -> Timings[CostSamples]:
    """Time an engine's steps.

    All sizes are run once unmeasured, then up to `repeats` times in rounds of random order, slow ones
    less often. A machine's speed drifts meanwhile: it is told from the timings right before and after
    each, and at one speed the lower quartile counts. Steep stretches of the verify times are halved,
    until each is a line or a jump between neighbouring sizes; kinks within the error are straightened.

    Args:
        sizes: sizes to time by kind; "verify" is needed.
        repeats, budget_s, progress, context_shapes: as for `measure`.

    Yields: as `measure`.
    """
    budget_ms = budget_s * 1e3
    timing = _Timing(repeats, budget_ms, budget_ms * _SLOW_SHARE, progress)
    points: list[Point] = [(kind, (size,)) for kind in _KINDS for size in sizes.get(kind, ())]
    yield from timing.add([*points, *(("context", shape) for shape in context_shapes)])
    first = timing.points
    yield from timing.repeat(first, budget_ms * _REPEATS_SHARE)
    each_ms = budget_ms * _REPEATS_SHARE / len(first)
    straight: set[tuple[int, int]] = set()  # stretches whose middle lies on the line
    num_refined = 0
    while timing.spent_ms < budget_ms:
        known = dict(timing.curve("verify"))
        found = _steepest(known, straight)
        if found is None or num_refined == _MAX_REFINED:
            break
        num_refined += 1
        low, middle, high = found
        yield from timing.add([("verify", (middle,))])
        yield from timing.repeat([("verify", (size,)) for size in found], each_ms * 3)
        known = dict(timing.curve("verify"))
        share = (middle - low) / (high - low)
        line = known[low] + share * (known[high] - known[low])
        ms = known[middle]
        if max(ms / line, line / ms) < _BEND:
            straight |= {(low, middle), (middle, high)}
    yield from timing.repeat(timing.points, budget_ms - timing.spent_ms)
    timing.end()
    return timing.samples(max(sizes["verify"]), context_shapes)


class _Timing:
    """Timings of steps in the order of their making, within a budget of milliseconds spent in steps.

    The budget counts what is sent, not a clock of its own: all ranks stop alike.
    """

    def __init__(self, repeats: int, budget_ms: float, slow_ms: float, progress: Progress) -> None:
        self.budget_ms = budget_ms
        self.spent_ms = 0.0
        self._slow_ms = slow_ms
        self._repeats = repeats
        self._progress = progress
        self._done = self._total = 0
        self._first_ms: dict[Point, float] = {}  # of each point's unmeasured run
        self._timings: list[tuple[Point, float]] = []
        self._order = random.Random(0)  # all ranks take turns alike
        self._typical: dict[Point, float] = {}
        self.noise = 0.0

    @property
    def points(self) -> list[Point]:
        """All that were added, but for those that are too slow."""
        return list(self._first_ms)

    def curve(self, kind: str) -> tuple[tuple[int, float], ...]:
        """(size, milliseconds) of `kind`, by size."""
        return tuple(sorted((size[0], ms) for (k, size), ms in self._typical.items() if k == kind))

    def samples(
        self, most_tokens: int, context_shapes: Sequence[tuple[int, int, int]] = ()
    ) -> CostSamples:
        """All that is known; arguments as `CostSamples.most_tokens`, and what else was added."""
        return CostSamples(
            verify=self.curve("verify"),
            most_tokens=most_tokens,
            draft=self.curve("draft"),
            read=self.curve("read"),
            noise=self.noise,
            slowed=self.curve("slowed"),
            context=tuple((*shape, self._typical["context", shape]) for shape in context_shapes),
        )

    def add(self, points: Sequence[Point]) -> Timings[None]:
        """Run new points once, ascending within a kind, up to the first slow size of each."""
        self._total += len(points) * (1 + self._repeats)
        too_slow: set[str] = set()
        for point in points:
            if point[0] in too_slow:
                self._total -= 1 + self._repeats
                continue
            self._first_ms[point] = yield from self._time(point)
            if self._is_slow(point):
                too_slow.add(point[0])

    def _is_slow(self, point: Point) -> bool:
        """Whether larger ones of its kind are too slow to time."""
        kind, size = point
        return kind in _KINDS and size[0] >= _LEAST_TOKENS and self._first_ms[point] > self._slow_ms

    def count_slow_first_runs(self) -> list[Point]:
        """Take the first runs of slow points for timings: little of them is warming up.

        Returns:
            The points that are still to be timed.
        """
        slow = [point for point in self.points if self._is_slow(point)]
        self._timings += [(point, self._first_ms[point]) for point in slow]
        return [point for point in self.points if point not in slow]

    def repeat(self, points: Sequence[Point], budget_ms: float) -> Timings[None]:
        """Time points as often as is wanted, or the budget allows; those that take long less often.

        In rounds of random order: a machine that slows down for a while must not make a stair.
        """
        timed = Counter(point for point, _ in self._timings)
        wanted = {point: self._repeats - timed[point] for point in points}
        enough_ms = _equal_share([self._first_ms[p] * wanted[p] for p in points], budget_ms)
        spent_ms = dict.fromkeys(points, 0.0)
        while due := [p for p in points if wanted[p] and spent_ms[p] < enough_ms]:
            self._order.shuffle(due)
            for point in due:
                ms = yield from self._time(point)
                self._timings.append((point, ms))
                wanted[point] -= 1
                spent_ms[point] += ms
        self._settle()

    def _time(self, point: Point) -> Timings[float]:
        ms = yield point
        self.spent_ms += ms
        self._done += 1
        self._progress(self._done, self._total)
        return ms

    def end(self) -> None:
        """No more timings come."""
        self._progress(self._done, self._done)

    def _settle(self) -> None:
        """The lower quartile of each point, at one speed: other work on the machine only adds time."""
        index = {point: i for i, point in enumerate(self._first_ms)}
        logs = np.log([ms for _, ms in self._timings])
        timed = np.array([index[point] for point, _ in self._timings])
        places = [np.flatnonzero(timed == i) for i in index.values()]
        typical = np.array([np.median(logs[at]) for at in places])
        for _ in range(_ROUNDS):
            steady = logs - _running_median(logs - typical[timed])
            typical = np.array([np.quantile(steady[at], 0.25) for at in places])
        upper = np.array([np.quantile(steady[at], 0.75) for at in places])
        spread = float(np.median(upper - typical))
        self.noise = float(np.expm1(spread))
        self._typical = dict(zip(index, np.exp(typical).tolist(), strict=True))
        for kind in _KINDS:
            curve = dict(self.curve(kind))
            counts = [len(places[index[kind, (size,)]]) for size in curve]
            smooth = without_false_kinks(curve, spread / np.sqrt(counts))
            self._typical.update({(kind, (size,)): ms for size, ms in smooth.items()})


def _equal_share(wanted_ms: Sequence[float], budget_ms: float) -> float:
    """How much each may have if all get what they want up to that, and the budget is kept."""
    for num_done, ms in enumerate(sorted(wanted_ms)):
        share = budget_ms / (len(wanted_ms) - num_done)
        if ms > share:
            return share
        budget_ms -= ms
    return max(wanted_ms, default=0.0)


def _running_median(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each value and those around it."""
    if len(values) <= _NEAR:
        return np.full_like(values, np.median(values))
    padded = np.pad(values, _NEAR // 2, mode="reflect")
    medians: npt.NDArray[np.float64] = np.median(sliding_window_view(padded, _NEAR), axis=-1)
    return medians


def without_false_kinks(ms: Mapping[int, float], error: npt.NDArray[np.float64]) -> dict[int, float]:
    """The times by size, straight where timing errors alone may have bent them.

    Args:
        ms: by ascending size.
        error: [len(ms)] standard errors, relative.

    Source: Kim et al. 2009, l1 Trend Filtering; here by iteratively reweighted least squares.
    """
    sizes, measured = np.array(list(ms), np.float64), np.array(list(ms.values()))
    if len(sizes) < 3 or not error.any():
        return dict(ms)
    # Row i: by how much point i + 1 is off the line between its neighbours, relative.
    kinks = np.zeros((len(sizes) - 2, len(sizes)))
    for i in range(len(kinks)):
        share = (sizes[i + 1] - sizes[i]) / (sizes[i + 2] - sizes[i])
        kinks[i, i : i + 3] = np.array((share - 1.0, 1.0, -share)) / measured[i + 1]
    fidelity = np.diag((error * measured) ** -2.0)
    smooth = measured
    for _ in range(_KINK_ROUNDS):
        bend = np.maximum(np.abs(kinks @ smooth), 0.01 * error[1:-1])
        penalty = kinks.T @ np.diag(_KINK / error[1:-1] / bend) @ kinks
        smooth = np.linalg.solve(fidelity + penalty, fidelity @ measured)
    # On a busy machine errors are so large that the line may leave what was measured, even zero.
    smooth = smooth.clip(measured.min(), measured.max())
    return dict(zip(ms, smooth.tolist(), strict=True))


def _steepest(ms: Mapping[int, float], straight: set[tuple[int, int]]) -> tuple[int, int, int] | None:
    """(low, middle, high): the stretch with the largest relative rise that may hide a jump."""
    sizes = sorted(ms)
    rises = [
        (ms[high] / ms[low], low, (low + high) // 2, high)
        for low, high in pairwise(sizes)
        if high - low > 1 and ms[high] > ms[low] * _RISE and (low, high) not in straight
    ]
    return max(rises)[1:] if rises else None
