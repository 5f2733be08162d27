"""What the marginal rule would pick, and why, for people: `vllm-smart explain`, the line at start."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vllm_smart.config import GrowthLimits
from vllm_smart.profiling import StepCost, token_counts
from vllm_smart.scheduler.budget import Choice, StepLoad, best_prefix

# A middling drafter: how often its candidates of rank 0, 1, ... are accepted.
TYPICAL_ACCEPTANCE = (0.7, 0.12, 0.05, 0.03, 0.02, 0.01)
TYPICAL_LIMITS = GrowthLimits(node_budget=32, depth=6, width=8, children=4)


@dataclass(frozen=True)
class Explanation:
    """The decision for one batch size, were all candidates typical."""

    batch_size: int
    depth: int  # levels drafted
    num_draft_tokens: float  # per request
    acceptance_length: float  # expected, bonus included
    predicted_ms: float
    plain_ms: float
    speedup: float  # expected, over plain decoding

    def __str__(self) -> str:
        return (
            f"batch {self.batch_size:4d}: {self.num_draft_tokens:5.1f} nodes each, depth {self.depth}, "
            f"{self.acceptance_length:.2f} tokens in {self.predicted_ms:.2f} ms "
            f"(plain: 1 in {self.plain_ms:.2f} ms), speedup {self.speedup:.2f}"
        )


def explain(
    cost: StepCost,
    limits: GrowthLimits = TYPICAL_LIMITS,
    max_batch_size: int = 64,
    acceptance: tuple[float, ...] = TYPICAL_ACCEPTANCE,
) -> Iterator[Explanation]:
    """Decisions for batch sizes 1, 2, 4, ... up to `max_batch_size`.

    Args:
        cost: measured costs.
        limits: how far trees may grow.
        max_batch_size: largest batch shown.
        acceptance: of children by rank, at any depth; missing ranks count as never accepted.
    """
    batch_size = 1
    while batch_size <= max_batch_size:
        yield _explain_one(
            cost, limits, batch_size, np.array(acceptance[: limits.children], np.float32)
        )
        batch_size *= 2


def knee(cost: StepCost, gain: float, max_batch_size: int) -> int:
    """The largest batch at which a middling drafter still decodes `gain` times as fast; 0 = none.

    Args:
        cost: measured costs.
        gain: over plain decoding, e.g. 1.1.
        max_batch_size: largest batch looked at.
    """
    acceptance = np.array(TYPICAL_ACCEPTANCE[: TYPICAL_LIMITS.children], np.float32)
    for batch_size in range(max_batch_size, 0, -1):
        if _explain_one(cost, TYPICAL_LIMITS, batch_size, acceptance).speedup >= gain:
            return batch_size
    return 0


def _explain_one(
    cost: StepCost, limits: GrowthLimits, batch_size: int, acceptance: np.ndarray
) -> Explanation:
    load = StepLoad(num_requests=batch_size)

    def best(prob: np.ndarray, spent_ms: float) -> Choice:
        each = np.sort(prob)[::-1][: limits.node_budget]
        return best_prefix(np.repeat(each, batch_size), load, cost, spent_ms)

    plain_ms = cost.verify_ms(batch_size)
    # A request has as many unread tokens as it emitted, typically two or three.
    level, pool, depth = acceptance, acceptance, 1
    spent_ms = cost.read_ms(2 * batch_size, batch_size)
    choice = best(pool, spent_ms)
    while depth < limits.depth:
        frontier = np.sort(level)[::-1][: limits.width]
        widths = {}
        for width in token_counts(len(frontier)):
            children = np.outer(frontier[:width], acceptance).reshape(-1)
            level_ms = cost.draft_ms(width * batch_size)
            widths[width] = best(np.concatenate((pool, children)), spent_ms + level_ms)
        width = max(widths, key=lambda width: widths[width].rate)
        if widths[width].rate <= choice.rate:
            break
        level, choice = np.outer(frontier[:width], acceptance).reshape(-1), widths[width]
        pool = np.concatenate((pool, level))
        spent_ms += cost.draft_ms(width * batch_size)
        depth += 1
    if choice.rate * plain_ms <= batch_size:  # then nothing is drafted at all
        choice = Choice(0, batch_size, plain_ms, batch_size / plain_ms)
    return Explanation(
        batch_size=batch_size,
        depth=depth if choice.num_nodes else 0,
        num_draft_tokens=choice.num_nodes / batch_size,
        acceptance_length=choice.expected_tokens / batch_size,
        predicted_ms=choice.predicted_ms,
        plain_ms=plain_ms,
        speedup=choice.rate * plain_ms / batch_size,
    )


def explain_table(cost: StepCost, max_batch_size: int) -> Iterator[str]:
    """One line per batch size."""
    yield from map(str, explain(cost, max_batch_size=max_batch_size))


def explain_line(rows: Iterable[Explanation], has_drafter: bool = True) -> str:
    """One line for the log at start: typical tree sizes and speedups by batch size."""
    parts = [f"{row.batch_size}: {row.num_draft_tokens:.0f} nodes ({row.speedup:.2f}x)" for row in rows]
    typical = "a middling drafter"
    if not has_drafter:
        typical = f"n-grams that are right {TYPICAL_ACCEPTANCE[0]:.0%} of the time"
    return f"expected by batch size, for {typical}: " + ", ".join(parts)
