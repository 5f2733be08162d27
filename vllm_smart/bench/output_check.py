"""Whether every arm's greedy text is plain decoding's, and how close the calls were where not."""

from collections.abc import Iterator

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.document import Bullets, Heading, Paragraph, Part, Table
from vllm_smart.bench.records import Difference, Results

# Log-probabilities closer than this may swap when sums are rounded in another order.
NEAR_TIE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
_MOST_LISTED = 60


def is_near_tie(difference: Difference, dtype: str) -> bool:
    """Whether rounding explains the other token."""
    return difference.gap is not None and abs(difference.gap) <= NEAR_TIE[dtype]


def wrong_outputs(results: Results) -> list[str]:
    """Sentences about greedy text that rounding does not explain."""
    dtype = results.suite.engine.dtype
    return [
        f"{_place(difference)}: another token than plain decoding, gap {_gap(difference)}."
        for difference in results.differences
        if not is_near_tie(difference, dtype)
    ]


def output_check(comparison: Comparison, results: Results) -> Iterator[Part]:
    """Differences by arm, and each of them."""
    suite = results.suite
    yield Heading("Output against plain decoding", 3)
    workload = next(w for w in suite.workloads if w.label == comparison.workload)
    if workload.temperature > 0:
        yield Paragraph("Not compared: temperature > 0.")
        return
    found = comparison.differences
    if results.missing and not found:
        yield Paragraph("Not compared: the run was stopped before.")
        return
    if not found:
        yield Paragraph("Every token of every arm is equal.")
        return
    bound = NEAR_TIE[suite.engine.dtype]
    wrong = [d for d in found if not is_near_tie(d, suite.engine.dtype)]
    if wrong:
        yield Paragraph(f"FAILED: {len(wrong)} request(s) differ by more than rounding explains.")
    yield Paragraph(
        "After the first other token a text is another one. A near-tie: the target's "
        f"log-probabilities of the two tokens are within {bound:g} ({suite.engine.dtype})."
    )
    rows = [
        [arm, str(sum(d.arm == arm for d in found)), str(comparison.num_requests(arm))]
        for arm in comparison.labels
        if any(d.arm == arm for d in found)
    ]
    yield Table(["arm", "requests that differ", "of"], rows)
    yield Bullets([f"{_place(d)}: gap {_gap(d)}" for d in found[:_MOST_LISTED]])
    if len(found) > _MOST_LISTED:
        yield Paragraph(f"And {len(found) - _MOST_LISTED} more; see `differences` in results.json.")


def _place(d: Difference) -> str:
    return (
        f"{d.drafter} {d.workload} batch {d.batch_size} round {d.repeat} {d.arm}, "
        f"request {d.request}, token {d.index}"
    )


def _gap(d: Difference) -> str:
    return "unknown, the token is unlikely" if d.gap is None else f"{d.gap:.2e}"
