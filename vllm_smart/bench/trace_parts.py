"""What a traced run of our policy and its cost table show: acceptance, calibration, costs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vllm_smart.bench.document import Heading, Image, Paragraph, Part, Table
from vllm_smart.profiling import load, load_key
from vllm_smart.profiling.plot import plot_costs
from vllm_smart.scheduler import explain
from vllm_smart.trace import Trace, calibration, plot_calibration, read_trace
from vllm_smart.trace.verdicts import ACCEPTED, UNKNOWN, continuations, verdicts

_MAX_RANKS = 4
_FEWEST = 20  # candidates of which a share means something


def acceptance_by_depth_and_rank(trace: Trace) -> dict[tuple[int, int], tuple[int, int]]:
    """(accepted, judged) candidates by (depth, rank), of those whose parent was accepted."""
    counts: dict[tuple[int, int], tuple[int, int]] = {}
    for step, followed in zip(trace.steps, continuations(trace.steps), strict=True):
        for drafted in step.decision.requests:
            if drafted.request not in followed:
                continue
            verdict = verdicts(drafted, followed[drafted.request])
            above = np.where(drafted.parent >= 0, verdict[np.maximum(drafted.parent, 0)], UNKNOWN)
            judged = (above == ACCEPTED) & (verdict != UNKNOWN) & (drafted.draft_prob > 0)
            for node in np.flatnonzero(judged):
                key = (int(drafted.depth[node]), int(drafted.rank[node]))
                accepted, total = counts.get(key, (0, 0))
                counts[key] = (accepted + int(verdict[node] == ACCEPTED), total + 1)
    return counts


def trace_parts(path: Path, out: Path, drafter: str) -> Iterator[Part]:
    """Parts about the trace at `path`; pictures are written into `out`."""
    trace = read_trace(path)
    yield Heading("Acceptance by depth and rank", 3)
    yield Paragraph(
        "From a traced run of its own. Share of candidates that the target accepts where it has "
        "accepted their parent, verified or not; rank 0 is the drafter's first choice. In brackets: "
        "candidates."
    )
    counts = acceptance_by_depth_and_rank(trace)
    depths = sorted({depth for depth, _ in counts})
    rows = [
        [f"depth {depth}", *(_share(counts.get((depth, rank))) for rank in range(_MAX_RANKS))]
        for depth in depths
    ]
    yield Table(["", *(f"rank {rank}" for rank in range(_MAX_RANKS))], rows)
    if not counts:
        yield Paragraph("The trace has no candidate whose verdict is known.")
        return
    found = calibration(trace)
    picture = out / f"calibration-{drafter}.png"
    plot_calibration(found, picture)
    yield Heading("Calibration", 3)
    yield Paragraph(
        f"Expected calibration error of {found.before.count.sum()} path probabilities: "
        f"{found.before.expected_error:.4f} as drafted, {found.after.expected_error:.4f} calibrated."
    )
    yield Image(picture, f"Reliability of path probabilities, {drafter}")


def cost_parts(table: Path, out: Path, drafter: str, max_batch_size: int) -> Iterator[Part]:
    """The cost table that our engine measured at its start, and the budgets that follow from it."""
    costs, picture = load(table), out / f"costs-{drafter}.png"
    plot_costs(costs, load_key(table), list(explain(costs, max_batch_size=max_batch_size)), picture)
    yield Heading("Measured costs and chosen budgets", 3)
    yield Image(picture, f"Cost table and what the rule makes of it, {drafter}")


def cost_table_of(folder: Path, drafter: str) -> Path | None:
    """The latest table in `folder` that was measured with the method `drafter`; None if absent."""
    tables = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in tables if load_key(path).drafter.startswith(f"{drafter}:")), None)


def _share(count: tuple[int, int] | None) -> str:
    if count is None or count[1] < _FEWEST:
        return "-"
    return f"{count[0] / count[1]:.2f} ({count[1]})"
