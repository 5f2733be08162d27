"""Our ranking against the rules of rivals: tokens accepted of as many nodes.

Judged are the trees of requests of which the trace tells everything that is asked here: no candidate's
verdict is unknown. A rule says how many nodes it verifies of them and which. Of the same candidates
ours takes the likeliest ones of all trees together, as many as the rule has taken. So both verify the
same number per tree on average, and no costs have a say. How likely candidates are is learnt as
`Relearnt` does: every step is judged before it is learnt from.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.config import MAX_NODE_BUDGET, GrowthLimits, SmartConfig
from vllm_smart.errors import TraceError
from vllm_smart.profiling import CostTable
from vllm_smart.proposer import Candidates, Frontier
from vllm_smart.trace.reader import Trace
from vllm_smart.trace.records import Decision, Drafted
from vllm_smart.trace.relearnt import Relearnt, Sources
from vllm_smart.trace.replay import replayable, sources_of
from vllm_smart.trace.rivals import Rule, make_rule
from vllm_smart.trace.verdicts import ACCEPTED, UNKNOWN, emitted, verdicts


@dataclass(frozen=True)
class Compared:
    """A rule's totals over the judged trees, and ours."""

    rule: str
    sources: Sources  # of ours
    num_trees: int
    num_nodes: int  # that the rule verifies
    num_accepted: int  # of them
    ours_num_nodes: int  # as many, unless there are fewer candidates
    ours_num_accepted: int

    @property
    def ratio(self) -> float:
        """Ours over the rule's; what each tree emits besides counts for neither."""
        return self.ours_num_accepted / max(self.num_accepted, 1)


@dataclass(frozen=True)
class _Judged:
    """A tree of one request in one step."""

    drafted: Drafted
    is_accepted: npt.NDArray[np.bool_]  # [num_candidates] as recorded
    num_requests: int  # of the step
    prob: npt.NDArray[np.float32]  # [num_ours] as judged anew, best first
    is_taken: npt.NDArray[np.bool_]  # [num_ours] whether each is accepted


def compare(
    trace: Trace, names: Iterable[str], table: CostTable, sources: str | None = None
) -> list[Compared]:
    """Compare our ranking with rules.

    Args:
        trace: recorded steps, with n-grams.
        names: as for `make_rule`.
        table: costs.
        sources: whose candidates ours has; as for `sources_of`.

    Raises:
        TraceError: there is no such rule, no such source, or nothing to judge.
    """
    rules = {name: make_rule(name, table) for name in names}
    whose = sources_of(trace, sources)
    if whose is None:
        raise TraceError(
            "--against: the trace has no n-grams, among which these rules choose. Record one with an "
            "`ngram:` block in the YAML."
        )
    trees = list(_judged(trace, whose))
    if not trees:
        raise TraceError("the trace has no tree of which all verdicts are known: nothing to compare.")
    prob = np.concatenate([tree.prob for tree in trees])
    taken = np.concatenate([tree.is_taken for tree in trees])
    # Stable, and parents come before their children: what is taken of a tree is one.
    gains = np.cumsum(taken[np.argsort(-prob, kind="stable")])
    return [_compared(name, rule, trees, gains, whose) for name, rule in rules.items()]


def _compared(
    name: str, rule: Rule, trees: list[_Judged], gains: npt.NDArray[np.int64], sources: Sources
) -> Compared:
    num_nodes = num_accepted = 0
    for tree in trees:
        assert tree.drafted.said is not None
        nodes = rule(tree.drafted, tree.drafted.said, tree.num_requests)
        num_nodes += len(nodes)
        num_accepted += int(np.count_nonzero(tree.is_accepted[nodes]))
    ours = min(num_nodes, len(gains))
    ours_accepted = int(gains[ours - 1]) if ours else 0
    return Compared(name, sources, len(trees), num_nodes, num_accepted, ours, ours_accepted)


def _judged(trace: Trace, sources: Sources) -> Iterator[_Judged]:
    relearnt = Relearnt(trace.header.config, sources)
    budget = trace.header.config.growth.node_budget
    # The drafter's choices are needed by whom has them, and by a rule that falls back on them.
    needs: Sources = "ngram" if trace.header.config.drafter.method == "ngram" else "both"
    for step, followed in replayable(trace.steps, needs):
        decision = step.decision
        candidates = _all_of(relearnt, decision, trace.header.config)
        order, prob = candidates.best_first()
        paths = relearnt.paths(decision, candidates)
        for row, request in enumerate(decision.requests):
            if request.request not in followed or request.said is None:
                continue
            verdict = verdicts(request, followed[request.request])
            if (verdict == UNKNOWN).any():
                continue
            best = order[row, 1:][prob[row, 1:] > 0]
            is_accepted = verdicts(paths[row], followed[request.request]) == ACCEPTED
            yield _Judged(
                request,
                verdict == ACCEPTED,
                decision.load.num_requests,
                candidates.path_prob[row, best],
                is_accepted[best],
            )
        most = np.full(len(decision.requests), budget, np.int64)
        relearnt.learn(decision, candidates, most, emitted(decision, step.outcome))


def _all_of(relearnt: Relearnt, decision: Decision, config: SmartConfig) -> Candidates:
    """All that was recorded of a step, judged anew."""
    sizes = [len(request.token) for request in decision.requests]
    deepest = max(int(request.depth.max()) for request in decision.requests)
    children, most = max(1, config.growth.children), max(sizes)
    pool, source = relearnt.begin(decision, GrowthLimits(MAX_NODE_BUDGET, deepest + 1, most, children))
    if relearnt.sources != "ngram":
        frontier = Frontier.of_roots(np.arange(len(sizes)), len(sizes))
        while len(frontier.req) and source.expand(pool, frontier):
            frontier = pool.frontier(most)
    return pool.candidates


def comparison(rows: Iterable[Compared]) -> Iterator[str]:
    """A table for people, one line per rule."""
    rows = list(rows)
    yield (
        f"tokens accepted of as many nodes, over {rows[0].num_trees} trees; ours: {rows[0].sources}, "
        "probabilities learnt anew from the steps before"
    )
    yield f"{'rule':16} {'nodes/tree':>10} {'accepted/tree':>13} {'ours':>8} {'ratio':>7}"
    for row in rows:
        yield (
            f"{row.rule:16} {row.num_nodes / row.num_trees:10.2f} "
            f"{row.num_accepted / row.num_trees:13.3f} {row.ours_num_accepted / row.num_trees:8.3f} "
            f"{row.ratio:7.3f}"
        )
