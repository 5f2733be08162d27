"""What a worker counts of its steps, in one array that another process may read (`reports.shared`).

Counting costs a few additions per step.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import numpy as np

from vllm_smart.overlap.drafts import Miss
from vllm_smart.profiling import Correction
from vllm_smart.reports.families import (
    BATCH,
    ERROR_EDGES,
    FAMILIES,
    MAX_DEPTH,
    MISS,
    NODE_EDGES,
    NUM_VALUES,
    REASON,
    SOURCE,
    batch_place,
)
from vllm_smart.scheduler import Explanation, Rest
from vllm_smart.tree import TreeBatch

_NUM_SOURCES = len(SOURCE.values)
_REASON_PLACE = {Rest(value): place for place, value in enumerate(REASON.values)}
_MISS_PLACE = {Miss(value): place for place, value in enumerate(MISS.values)}


def views(values: np.ndarray) -> dict[str, np.ndarray]:
    """Each family's part of `values` [NUM_VALUES], in its shape."""
    found, start = {}, 0
    for family in FAMILIES:
        found[family.name] = values[start : start + family.size].reshape(family.shape)
        start += family.size
    return found


class StepStats:
    """Counts into `values` [NUM_VALUES] float64."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._of = views(values)
        # Numbers one by one, which is cheaper than by arrays.
        self._numbers: dict[str, Any] = {name: view.reshape(-1).data for name, view in self._of.items()}

    @classmethod
    def of_process(cls) -> "StepStats":
        """Counters that no other process reads."""
        return cls(np.zeros(NUM_VALUES))

    def reset(self) -> None:
        """Count from 0 again."""
        self._values[:] = 0

    def counters(self) -> dict[str, Any]:
        """Everything counted so far.

        Returns:
            Counters by name, added up over their labels; `NAME_by_LABEL` by value of a label; of
            histograms the counts by bucket, likewise added up.
        """
        found: dict[str, Any] = {}
        for family in FAMILIES:
            view = self._of[family.name]
            if family.kind == "histogram":
                found[family.name] = view[..., 0, :].reshape(-1, view.shape[-1]).sum(axis=0).tolist()
            elif family.kind == "counter":
                found[family.name] = float(view.sum())
                for axis, label in enumerate(family.labels):
                    others = tuple(other for other in range(view.ndim) if other != axis)
                    by_value = dict(zip(label.values, view.sum(axis=others).tolist(), strict=True))
                    found[f"{family.name}_by_{label.name}"] = by_value
        return found

    def _add(self, place: int = 0, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._numbers[name][place] += amount

    def _observe(self, name: str, edges: tuple[float, ...], value: float, place: int = 0) -> None:
        bucket = 2 * (len(edges) + 1) * place + bisect_left(edges, value)
        numbers = self._numbers[name]
        numbers[len(edges) + 1 + bucket] += value  # before its count; see the reader
        numbers[bucket] += 1

    def record_walk(self, trees: TreeBatch, is_draft: np.ndarray, path: np.ndarray) -> None:
        """A step's trees were verified.

        Args:
            trees: as they were verified.
            is_draft: [num_reqs, max_nodes] bool, which of their entries are drafts, the root included.
            path: [num_reqs, longest] columns of accepted nodes, the root first; -1 beyond.
        """
        drafts = is_draft.copy()
        drafts[:, 0] = False
        taken, place = np.nonzero(path > 0)
        nodes = np.nonzero(drafts)
        accepted = taken, path[taken, place]
        self._add(trees=int(np.count_nonzero(trees.num_nodes > 1)))
        self._add_nodes("draft_nodes", trees, nodes)
        self._add_nodes("expected_nodes", trees, nodes, trees.path_prob[nodes])
        self._add_nodes("accepted_nodes", trees, accepted)

    def _add_nodes(
        self,
        name: str,
        trees: TreeBatch,
        nodes: tuple[np.ndarray, ...],
        weights: np.ndarray | None = None,
    ) -> None:
        """Count `nodes` (request, column) by depth and source."""
        depth = np.clip(trees.depth[nodes], 1, MAX_DEPTH) - 1
        at = depth * _NUM_SOURCES + trees.source[nodes].clip(max=_NUM_SOURCES - 1)
        counts = np.bincount(at, weights, MAX_DEPTH * _NUM_SOURCES)
        self._of[name] += counts.reshape(MAX_DEPTH, _NUM_SOURCES)

    def record_verdicts(self, num_nodes: int, num_forbidden: int) -> None:
        """What grammars say of draft nodes that are verified."""
        self._add(0, grammar_nodes=num_nodes - num_forbidden)
        self._add(1, grammar_nodes=num_forbidden)

    def record_unmasked(self, has_failed: bool) -> None:
        """A tree grows as if its request had no grammar: it is not compiled yet, or of no use."""
        self._add(int(has_failed), trees_without_grammar=1)

    def record_lookup(self, seconds: float) -> None:
        """What n-grams have taken in a step."""
        self._add(ngram_seconds=seconds)

    def record_lookups(self, num_hits: int, misses: Iterable[Miss]) -> None:
        """Candidates that were looked up in another process's trees."""
        self._add(overlap_hits=num_hits)
        for miss in misses:
            self._add(_MISS_PLACE[miss], overlap_misses=1)

    def record_foreseen(self, chance: float, is_hit: bool) -> None:
        """Of one look-up: how likely a hit was, and whether it was one."""
        self._add(overlap_judged_lookups=1, overlap_foreseen_hits=chance, overlap_judged_hits=is_hit)

    def record_overlap(
        self, num_levels: int, num_nodes: int, busy_s: float, wait_s: float, num_restarts: int
    ) -> None:
        """What that process has run since it was asked last, and how long a step has waited for it."""
        self._add(overlap_levels=num_levels, overlap_nodes=num_nodes, overlap_busy_seconds=busy_s)
        self._add(overlap_wait_seconds=wait_s, overlap_restarts=num_restarts)

    def record_rest(self, num_requests: int, reason: Rest) -> None:
        """Nothing was drafted in a step, after which `num_requests` go on."""
        self._add(batch_place(num_requests), steps=1, step_requests=num_requests)
        self._add(_REASON_PLACE[reason], steps_without_drafting=1)
        self._add(steps_without_speculation=1)
        self._observe("step_draft_nodes", NODE_EDGES, 0)

    def record_trees(
        self,
        trees: TreeBatch,
        num_read: int,
        num_levels: int,
        used_levels: int,
        num_requests: int,
    ) -> None:
        """A step's drafting: the trees chosen, the rows read for them, the levels drafted.

        Args:
            num_levels: of the drafter; 0 where it has not run.
            used_levels: of which nodes were chosen.
            num_requests: that go on.
        """
        num_chosen, has_drafts = int((trees.num_nodes - 1).sum()), trees.num_nodes > 1
        deepest = trees.depth.max(axis=1, where=trees.is_node(), initial=0)
        self._add(
            batch_place(num_requests),
            steps=1,
            step_requests=num_requests,
            draft_levels=num_levels,
            chosen_nodes=num_chosen,
            chosen_trees=int(np.count_nonzero(has_drafts)),
            chosen_tree_levels=int(deepest.sum(where=has_drafts)),
        )
        self._add(
            rows_read=num_read,
            steps_without_speculation=num_chosen == 0,
            unused_draft_levels=num_levels - used_levels,
        )
        self._observe("step_draft_nodes", NODE_EDGES, num_chosen)

    def record_rest_of_drafter(self, reason: Rest) -> None:
        """The drafter did not run in a step whose trees were found without it."""
        self._add(_REASON_PLACE[reason], steps_without_drafting=1)

    def record_time(self, num_requests: int, step_s: float, plain_s: float) -> None:
        """How long a step of `num_requests` took, and what plain decoding would have taken."""
        self._add(batch_place(num_requests), step_seconds=step_s, plain_seconds=plain_s)

    def record_prediction(self, predicted_s: float, measured_s: float) -> None:
        """How the prediction of a step's time came out."""
        self._add(predicted_step_seconds=predicted_s, measured_step_seconds=measured_s)
        error = predicted_s / measured_s - 1.0
        self._observe("step_time_error_ratio", ERROR_EDGES, abs(error), place=int(error < 0))

    def record_compilation(self) -> None:
        """Something was compiled while serving."""
        self._add(jit_compilations=1)

    def show_gate(self, runs: bool, gain: float) -> None:
        """Whether drafting pays at present, and what it is expected to gain, relative."""
        self._numbers["drafter_runs"][0] = runs
        self._numbers["drafting_gain_ratio"][0] = gain

    def show_correction(self, correction: Correction) -> None:
        """What live step times say about the cost table."""
        by = correction
        verify = float(np.mean(by.verify)) if by.verify else 1.0
        self._of["cost_correction_ratio"][:] = verify, by.draft, by.context
        milliseconds = [by.step_ms, by.request_ms, by.drafting_ms, by.drafting_request_ms]
        milliseconds += [by.branching_ms, by.branching_request_ms]
        self._of["cost_correction_seconds"][:] = np.array(milliseconds) / 1e3

    def show_table(self, expected: Iterable[Explanation]) -> None:
        """What the cost table gives a middling drafter, by batch size."""
        for row in expected:
            at = batch_place(row.batch_size)
            if row.batch_size <= 2 ** (len(BATCH.values) - 2):  # larger ones are named by the smallest
                self._of["table_nodes"][at] = row.num_draft_tokens
                self._of["table_speedup_ratio"][at] = row.speedup
