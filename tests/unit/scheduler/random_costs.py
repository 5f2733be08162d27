"""Random but plausible step costs: rising, with stairs."""

import numpy as np

from vllm_smart.profiling import CostSamples, CostTable


def table(
    verify: dict[int, float],
    draft: dict[int, float] | None = None,
) -> CostTable:
    """A table through the given points."""
    return CostTable(
        CostSamples(
            verify=tuple(verify.items()),
            draft=tuple((draft or {}).items()),
        )
    )


def staircase(seed: int, largest: int = 200) -> CostTable:
    """An intercept, a slope, and a few jumps at random sizes."""
    rng = np.random.default_rng(seed)
    ms = rng.uniform(1, 20) + rng.uniform(0, 0.3) * np.arange(largest)
    for edge in rng.integers(1, largest, rng.integers(0, 5)):
        ms[edge:] += rng.exponential(5)
    draft_ms = rng.uniform(0.1, 2)
    return table(
        dict(enumerate(ms.tolist(), start=1)),
        {1: draft_ms, largest: draft_ms * 2},
    )
