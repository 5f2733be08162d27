"""From the engine's arrays to records. One per engine, fed by its steps in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt

from vllm_smart.config import SmartConfig
from vllm_smart.profiling import Correction, CostTable
from vllm_smart.proposer import Candidates
from vllm_smart.scheduler import Allocation, Choice, Drafting, StepLoad
from vllm_smart.trace.records import Costs, Decision, Drafted, Header, Outcome, Said, Verified
from vllm_smart.trace.writer import TraceWriter

_Ints = npt.NDArray[np.integer]
_Bools = npt.NDArray[np.bool_]

_ROOT = np.zeros(1, np.int64)  # the nodes of a tree that is a root alone


@dataclass(frozen=True)
class Growth:
    """How the trees of a step were grown, and within what bounds."""

    drafting: Drafting
    max_depth: _Ints  # [num_reqs] deeper nodes would be wasted
    max_rows: _Ints  # [num_reqs] most candidates that the drafter could expand
    max_width: int  # most rows per request and level that the drafter's buffers hold
    read_rows: int  # tokens that the drafter read before its first candidates
    sunk_rows: int  # of them, what no choice is charged for
    candidate_rows: int  # of them, those that got candidates
    level_rows: Sequence[int]  # rows of each further level that was run
    # Expected acceptance of undrafted levels from depth 2, as the policy was given.
    child_acceptance: Sequence[npt.NDArray[np.float32]]
    correction: Correction | None  # of the costs, by which was decided
    spent_ms: float  # what `BudgetPolicy.choose` was given
    undrafted: Sequence[str] = ()  # requests that decode in the next step but did not draft
    is_coupled: _Bools | None = None  # [num_reqs] ranked by the target's noise; None = nobody


class StepRecorder:
    """Writes what is decided in a step, and what came of it in the next.

    The order of calls in a step: `step_ended`, `verified`, then `decided` or `did_not_draft`.
    Records are not checked here but when they are read: a trace must not make a step fail.
    """

    def __init__(self, writer: TraceWriter, config: SmartConfig, costs: CostTable | None) -> None:
        """Args:
        writer: takes the records; closed by `close`.
        config: settings in effect, node budget resolved.
        costs: the table that the policy decides by, if any.
        """
        self._writer = writer
        self._step = -1
        # [num_nodes] candidates that each request's tree nodes are, by request, of the last step
        self._nodes: dict[str, npt.NDArray[np.int64]] = {}
        self._outcome: Outcome | None = None  # complete but for its time
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        writer.write(
            Header(created=now, config=config, costs=costs.samples if costs is not None else None)
        )

    @property
    def is_open(self) -> bool:
        """Whether anything is still recorded: preparing the arguments is a waste otherwise."""
        return self._writer.is_open

    def costs_changed(self, costs: CostTable) -> None:
        """Record that later decisions are made by other costs."""
        self._writer.write(Costs(costs=costs.samples))

    def decided(
        self,
        requests: Sequence[str],
        emitting: _Bools,
        candidates: Candidates,
        growth: Growth,
        load: StepLoad,
        allocation: Allocation,
    ) -> None:
        """Record a decision about the next step.

        Args:
            requests: [num_reqs] ids, rows of the candidates.
            emitting: [num_reqs] requests that decode in the next step; others are left out.
            candidates: all of them, as the policy chose from them.
            growth: how they came about.
            load: of the next step.
            allocation: what the policy chose, and how many nodes each request really gets.
        """
        order, _ = candidates.best_first()
        rows = np.flatnonzero(emitting).tolist()
        counts = [int(allocation.num_draft_nodes[row]) for row in rows]
        drafted = []
        for row, count in zip(rows, counts, strict=True):
            columns = slice(0, int(candidates.size[row]))
            drafted.append(
                Drafted.model_construct(
                    request=requests[row],
                    token=candidates.token[row, columns],
                    parent=candidates.parent[row, columns],
                    depth=candidates.depth[row, columns],
                    rank=candidates.rank[row, columns],
                    source=candidates.source[row, columns],
                    draft_prob=candidates.draft_prob[row, columns],
                    path_prob=candidates.path_prob[row, columns],
                    max_depth=int(growth.max_depth[row]),
                    max_rows=int(growth.max_rows[row]),
                    max_nodes=None if candidates.max_nodes is None else int(candidates.max_nodes[row]),
                    weight=float(candidates.weight[row]),
                    num_draft_nodes=count,
                    is_coupled=growth.is_coupled is not None and bool(growth.is_coupled[row]),
                    said=_said(candidates, row, columns),
                )
            )
        self._step += 1
        # More than the choice may be verified where steps are scheduled ahead.
        self._nodes = dict.fromkeys(growth.undrafted, _ROOT) | {
            requests[row]: order[row, : int(np.count_nonzero(candidates.path_prob[row]))]
            for row in rows
        }
        self._writer.write(
            Decision.model_construct(
                step=self._step,
                drafting=growth.drafting.value,
                requests=(*drafted, *map(_root, growth.undrafted)),
                load=load,
                read_rows=int(growth.read_rows),
                sunk_rows=int(growth.sunk_rows),
                candidate_rows=int(growth.candidate_rows),
                level_rows=tuple(map(int, growth.level_rows)),
                child_acceptance=tuple(level.reshape(-1) for level in growth.child_acceptance),
                max_width=int(growth.max_width),
                correction=growth.correction,
                spent_ms=growth.spent_ms,
                choice=allocation.choice,
            )
        )

    def did_not_draft(
        self,
        requests: Sequence[str],
        load: StepLoad,
        correction: Correction | None,
        predicted_ms: float,
    ) -> None:
        """Record that the next step verifies nothing: the drafter did not run, nor was there else any.

        Args:
            requests: ids of those that decode in the next step.
            load: of that step.
            correction: of the costs, by which was decided.
            predicted_ms: of that step; 0 = not predicted.
        """
        self._step += 1
        self._nodes = dict.fromkeys(requests, _ROOT)
        rate = load.num_requests / predicted_ms if predicted_ms else 0.0
        self._writer.write(
            Decision.model_construct(
                step=self._step,
                drafting="none",
                requests=tuple(map(_root, requests)),
                load=load,
                read_rows=0,
                candidate_rows=0,
                level_rows=(),
                child_acceptance=(),
                max_width=0,
                correction=correction,
                spent_ms=0.0,
                choice=Choice(0, load.num_requests, predicted_ms, rate),
            )
        )

    def verified(
        self,
        requests: Sequence[str],
        emitted: _Bools,
        num_nodes: _Ints,
        path: _Ints,
        bonus_token: _Ints,
    ) -> None:
        """What came of the last decision; written once the step's time is known.

        Requests that the decision was not about are left out.

        Args:
            requests: [num_reqs] ids.
            emitted: [num_reqs] whether the request emitted tokens in this step.
            num_nodes: [num_reqs] nodes verified, root included.
            path: [num_reqs, longest + 1] nodes of the walk, root first, -1 beyond.
            bonus_token: [num_reqs] the last token emitted.
        """
        self._write_outcome(None)
        outcomes = []
        for row, request in enumerate(requests):
            nodes = self._nodes.get(request)
            if nodes is None or not emitted[row]:
                continue
            outcomes.append(
                Verified.model_construct(
                    request=request,
                    verified=tuple(nodes[1 : num_nodes[row]].tolist()),
                    accepted=tuple(nodes[path[row][path[row] > 0]].tolist()),
                    bonus_token=int(bonus_token[row]),
                )
            )
        if outcomes:
            self._outcome = Outcome.model_construct(
                step=self._step, requests=tuple(outcomes), measured_ms=None
            )
        self._nodes = {}

    def step_ended(self, measured_ms: float) -> None:
        """The step of the last `verified` lasted so long."""
        self._write_outcome(measured_ms)

    def close(self) -> None:
        """Write what is left, and end the trace."""
        self._writer.close(self._outcome)
        self._outcome = None

    def _write_outcome(self, measured_ms: float | None) -> None:
        if self._outcome is not None:
            self._writer.write(self._outcome.model_copy(update={"measured_ms": measured_ms}))
            self._outcome = None


def _said(candidates: Candidates, row: int, columns: slice) -> Said | None:
    """What speaks for the candidates of one request."""
    of, is_sampled = candidates.evidence, candidates.is_sampled
    if of is None or is_sampled is None:
        return None
    return Said.model_construct(
        model_prob=of.model_prob[row, columns],
        model_rank=of.model_rank[row, columns],
        match_len=of.match_len[row, columns],
        count=of.count[row, columns],
        share=of.share[row, columns],
        is_sampled=bool(is_sampled[row]),
    )


def _root(request: str) -> Drafted:
    """The candidates of a request that did not draft."""
    none, certain = np.full(1, -1), np.ones(1, np.float32)
    return Drafted.model_construct(
        request=request,
        token=none,
        parent=none,
        depth=_ROOT,
        rank=_ROOT,
        source=none,
        draft_prob=certain,
        path_prob=certain,
        max_depth=0,
        max_rows=0,
        num_draft_nodes=0,
    )
