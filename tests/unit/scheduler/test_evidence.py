"""The regression over what speaks for a candidate, and its labels."""

import numpy as np
import pytest

from vllm_smart.kernels.evidence import FEATURES, GRAMMAR, NGRAM, Evidence
from vllm_smart.kernels.evidence.cpu import NUM_FEATURES, judged_children
from vllm_smart.scheduler import EvidenceModel

TRUTH = np.zeros(len(FEATURES))
TRUTH[:8] = -2.0, 2.5, 0.8, -1.0, 0.5, 0.9, 0.3, 0.4


def seen(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of random candidates, and whether the text went on with each by `TRUTH`."""
    x = np.zeros((num, len(FEATURES)))
    x[:, 0] = 1.0
    x[:, 1] = rng.random(num) < 0.7
    x[:, 2] = x[:, 1] * rng.normal(-1, 2, num)
    x[:, 3] = x[:, 1] * (rng.random(num) < 0.6)
    x[:, 4] = rng.random(num) < 0.5
    x[:, 5], x[:, 6] = x[:, 4] * rng.uniform(0.7, 3, num), x[:, 4] * rng.normal(0, 2, num)
    x[:, 7] = x[:, 4] * rng.uniform(0, 2, num)
    x[:, 8] = x[:, 1] * x[:, 4]
    return x, rng.random(num) < 1 / (1 + np.exp(-(x @ TRUTH)))


def error(model: EvidenceModel) -> float:
    x, _ = seen(np.random.default_rng(99), 4000)
    return float(np.abs(model.predict(x) - 1 / (1 + np.exp(-(x @ TRUTH)))).mean())


def test_it_learns_what_speaks_for_a_candidate():
    rng, model = np.random.default_rng(0), EvidenceModel(window=4000)
    before = error(model)
    for _ in range(300):
        model.observe(*seen(rng, 20))
    assert error(model) < 0.02 < before


def test_it_forgets_what_was_true_before():
    rng, model = np.random.default_rng(0), EvidenceModel(window=1000)
    for _ in range(200):
        x, is_next = seen(rng, 20)
        model.observe(x, ~is_next)
    wrong = error(model)
    for _ in range(400):
        model.observe(*seen(rng, 20))
    assert error(model) < 0.1 * wrong


def test_its_features_are_those_that_the_kernel_writes():
    assert len(FEATURES) == NUM_FEATURES == len(EvidenceModel(100).weights)


def test_its_state_goes_on():
    rng, model, other = np.random.default_rng(0), EvidenceModel(1000), EvidenceModel(1000)
    for _ in range(50):
        model.observe(*seen(rng, 20))
    other.relearn(model.learnt())
    x, is_next = seen(rng, 50)
    assert (model.predict(x) == other.predict(x)).all()
    model.observe(x, is_next)
    other.observe(x, is_next)
    assert (model.weights == other.weights).all()


def judged(
    text: list[int], is_expanded: bool = False, forced: tuple[int, ...] = ()
) -> list[tuple[float, bool]]:
    """(share of logit as it was set, label) of each child that is judged.

    The tree: 5 (below it 7 and 8) and 6 (below it 9).
    """
    token = np.array([[-1, 5, 6, 7, 8, 9]])
    parent = np.array([[-1, 0, 0, 1, 1, 2]], np.int32)
    depth = np.array([[0, 1, 1, 2, 2, 2]], np.int32)
    evidence = Evidence.none(1, 6)
    evidence.match_len[0, 1:] = evidence.count[0, 1:] = 1
    evidence.share[0, 1:] = 0.1 * np.arange(1, 6)
    if is_expanded:  # the drafter has named 6, too, and that alone
        evidence.is_expanded[0, 0] = True
        evidence.model_prob[0, 2], evidence.match_len[0, 2] = 0.5, 0
    source = np.full((1, 6), NGRAM, np.int32)
    source[0, list(forced)] = GRAMMAR
    words = np.array([text + [0] * (4 - len(text))])
    x, is_next = judged_children(
        token,
        parent,
        depth,
        source,
        evidence.columns,
        np.array([6]),
        words,
        np.array([len(text)]),
        np.array([False]),
    )
    shares = 1 / (1 + np.exp(-x[:, FEATURES.index("ngram: logit of share")]))
    return [
        (pytest.approx(share, abs=1e-5), bool(label))
        for share, label in zip(shares, is_next, strict=True)
    ]


def test_all_children_of_nodes_that_the_text_passes_are_labels_verified_or_not():
    assert judged([5, 8, 4]) == [(0.1, True), (0.2, False), (0.3, False), (0.4, True)]
    assert judged([6, 9]) == [(0.1, False), (0.2, True), (0.5, True)]


def test_nothing_is_said_below_a_node_that_the_text_leaves():
    assert judged([4, 7]) == [(0.1, False), (0.2, False)]
    assert judged([]) == []


def test_where_a_drafter_was_asked_ngrams_are_judged_as_if_it_had_not_been_too():
    """5 is an n-gram, 6 the drafter's: both together, and then 5 alone."""
    judgements = judged([5], is_expanded=True)
    assert [label for _, label in judgements] == [True, False, True]
    assert judgements[2][0] == judgements[0][0]


def test_what_a_grammar_forces_is_no_label_and_what_comes_after_it_is():
    """Here 9, after 6."""
    assert judged([6, 9], forced=(5,)) == [(0.1, False), (0.2, True)]
    assert judged([5, 7], forced=(3, 4))[:2] == [(0.1, True), (0.2, False)]


def test_what_each_source_says_counts_apart_where_both_have_named_a_candidate():
    """5 is an n-gram, 6 the drafter's, 7 both's."""
    evidence = Evidence.none(1, 4)
    evidence.is_expanded[0, 0] = True
    evidence.model_prob[0, 2:], evidence.model_rank[0, 3] = (0.2, 0.6), 1
    evidence.match_len[0, [1, 3]], evidence.share[0, [1, 3]] = (2, 5), (0.3, 0.7)
    evidence.count[0, [1, 3]] = 1
    rows = np.array([[-1, 5, 6, 7]]), np.array([[-1, 0, 0, 0]], np.int32)
    depth, source = np.array([[0, 1, 1, 1]], np.int32), np.array([[-1, 1, 0, 2]], np.int32)
    one = np.ones(1, np.int64)
    x, _ = judged_children(
        *rows, depth, source, evidence.columns, 4 * one, np.array([[7, 0]]), one, one > 1
    )
    for name in ("model: logit", "ngram: log length", "ngram: logit of share"):
        alone, of_both = x[:3, FEATURES.index(name)], x[:3, FEATURES.index(f"both, {name}")]
        assert of_both.tolist() == [0.0, 0.0, alone[2]]
        assert alone[2] != 0.0
