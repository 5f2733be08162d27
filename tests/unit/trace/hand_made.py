"""Small traces, written down."""

from pathlib import Path

import numpy as np

from vllm_smart.config import SmartConfig
from vllm_smart.kernels.grow import NUM_CONFIDENCES
from vllm_smart.profiling import Correction, CostSamples, CostTable
from vllm_smart.scheduler import Choice, StepLoad
from vllm_smart.trace import Decision, Drafted, Header, Outcome, Trace, TraceWriter, Verified
from vllm_smart.trace.reader import Step

# Verification: 10 ms and 1 ms per row. A draft level: 2 ms. Reading is a draft level, too.
COSTS = CostTable(CostSamples(verify=((0, 10.0), (100, 110.0)), draft=((1, 2.0), (100, 2.0))))

ACCEPTANCE = (np.tile(np.array([0.5, 0.25], np.float32), NUM_CONFIDENCES),)


def config(policy: str = "smart", **settings: int) -> SmartConfig:
    content = {
        "drafter": {"method": "eagle", "model": "any"},
        "tree": {"depth": 3, "width": 2, "children": 2},
        "policy": {"name": policy, **settings},
    }
    return SmartConfig.model_validate(content).resolve_node_budget(8)


def header(costs: CostTable | None = COSTS) -> Header:
    return Header(
        created="2026-01-01T00:00:00+00:00",
        config=config(),
        costs=costs.samples if costs is not None else None,
    )


def drafted(request: str = "a", max_depth: int = 9, max_rows: int = 9, num_nodes: int = 4) -> Drafted:
    """A pool of two levels of which the better child of the root was expanded.

    0 ── 1 (token 10, 0.5) ── 3 (token 30, 0.4)
     │                     └─ 4 (token 40, 0.05)
     └── 2 (token 20, 0.25)
    """
    return Drafted(
        request=request,
        token=np.array([-1, 10, 20, 30, 40]),
        parent=np.array([-1, 0, 0, 1, 1]),
        depth=np.array([0, 1, 1, 2, 2]),
        rank=np.array([0, 0, 1, 0, 1]),
        source=np.array([-1, 0, 0, 0, 0]),
        draft_prob=np.array([1, 0.5, 0.5, 0.5, 0.25], np.float32),
        path_prob=np.array([1, 0.5, 0.25, 0.4, 0.05], np.float32),
        max_depth=max_depth,
        max_rows=max_rows,
        num_draft_nodes=num_nodes,
    )


def decision(step: int, *requests: Drafted, drafting: str = "all", **others: object) -> Decision:
    fields = {
        "load": StepLoad(len(requests)),
        "read_rows": 2,
        "candidate_rows": len(requests),
        "level_rows": (len(requests),),
        "child_acceptance": ACCEPTANCE,
        "max_width": 100,
        "correction": Correction(step_ms=1.0, drafting_ms=2.0),
        "spent_ms": 7.0,
        "choice": Choice(1, 1.5, 20.0, 0.075),
    }
    return Decision(step=step, requests=requests, drafting=drafting, **{**fields, **others})


def outcome(step: int, *requests: Verified, measured_ms: float | None = 21.0) -> Outcome:
    return Outcome(step=step, requests=requests, measured_ms=measured_ms)


def verified(request: str, nodes: tuple[int, ...], path: tuple[int, ...], bonus: int) -> Verified:
    return Verified(request=request, verified=nodes, accepted=path, bonus_token=bonus)


def trace(*records: Decision | Outcome) -> Trace:
    steps: dict[int, Step] = {}
    for record in records:
        if isinstance(record, Decision):
            steps[record.step] = Step(record, None)
        else:
            steps[record.step] = Step(steps[record.step].decision, record)
    return Trace(header(), tuple(steps.values()), header().costs)


def written(path: Path, *records: Header | Decision | Outcome) -> list[bytes]:
    """Write `records` and return the file's lines."""
    writer = TraceWriter(path)
    for record in records:
        writer.write(record)
    writer.close()
    return path.read_bytes().splitlines(keepends=True)
