"""What a walk teaches."""

from types import SimpleNamespace

import numpy as np
import pytest

from vllm_smart.kernels.evidence import GRAMMAR, MODEL
from vllm_smart.reports.outcomes import learn_from_walk
from vllm_smart.reports.stats import StepStats
from vllm_smart.tree import TreeBatch


@pytest.mark.parametrize("forced", [False, True])
def test_what_a_grammar_forces_teaches_nothing_and_what_comes_after_it_does(forced):
    """A chain of three, of which the second is forced."""
    source = np.array([[-1, MODEL, GRAMMAR if forced else MODEL, MODEL]], np.int32)
    line = np.arange(4, dtype=np.int32)[None]
    prob = np.array([[1.0, 0.5, 0.5, 0.25]], np.float32)
    share = np.array([[1.0, 0.5, 1.0, 0.5]], np.float32)
    trees = TreeBatch(
        token=10 + line.astype(np.int64),
        parent=line - 1,
        depth=line,
        rank=0 * line,
        path_prob=prob,
        draft_prob=share,
        source=source,
        num_nodes=np.array([4], np.int32),
    )
    plan = SimpleNamespace(
        path=np.array([[0, 1, 2, -1]]),
        trees=trees,
        is_node=trees.is_node(),
        input_batch=SimpleNamespace(idx_mapping_np=np.zeros(1, np.int64)),
    )
    learnt: list = []
    controller = SimpleNamespace(
        acceptance=SimpleNamespace(observe=lambda *labels: learnt.append(labels))
    )
    stats = StepStats.of_process()
    learn_from_walk(plan, controller, stats)
    ((_, depth, _, _, accepted, _),) = learnt
    assert depth.tolist() == ([1, 3] if forced else [1, 2, 3])
    assert accepted.tolist() == ([True, False] if forced else [True, True, False])
    assert stats.counters()["accepted_nodes"] == 2
