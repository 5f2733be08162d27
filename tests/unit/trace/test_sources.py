"""Replays of traces with n-grams: with all candidates, or those of one source."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trace.fake_engine import FakeEngine
from tests.unit.trace.fake_engine import settings as engine_settings
from tests.unit.trace.hand_made import COSTS, config, decision, drafted, outcome, trace, verified
from tests.unit.trace.mixed import mixed
from vllm_smart.errors import TraceError
from vllm_smart.proposer import BOTH, MODEL, NGRAM
from vllm_smart.trace import Trace, read_trace, replay
from vllm_smart.trace.regrow import regrow
from vllm_smart.trace.relearnt import Relearnt
from vllm_smart.trace.verdicts import emitted

MIXED = trace(decision(0, mixed()), outcome(0, verified("a", (2, 4), (2, 4), 70)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from(["smart", "first_drop", "sssd", "fixed_tree", "chain"]),
)
def test_before_anything_is_learnt_both_sources_make_the_recorded_trees(tmp_path_factory, seed, policy):
    config_ = engine_settings(policy, ngrams=True)
    engine = FakeEngine(seed, config_)
    path = tmp_path_factory.mktemp("trace") / "steps.jsonl"
    engine.record(path, config_, num_steps=1)
    (step,), (chosen,) = read_trace(path).steps, engine.choices
    again = regrow(step.decision, engine.policy, engine.cost, Relearnt(config_, "both"))
    assert again.allocation.num_draft_nodes.tolist() == chosen.num_draft_nodes.tolist()
    assert again.allocation.choice == chosen.choice
    assert again.level_rows == step.decision.level_rows
    assert step.outcome is not None
    for row, nodes in enumerate(again.nodes):
        recorded = step.decision.requests[row]
        wanted = recorded.token[list(step.outcome.requests[row].verified)].tolist()
        assert again.paths[row].token[nodes].tolist() == wanted


@pytest.mark.parametrize(
    ("sources", "tokens", "named_by"),
    [
        ("model", {10, 20, 50}, {MODEL}),
        ("ngram", {10, 20, 30, 40, 60, 70}, {NGRAM}),
        ("both", {10, 20, 30, 40, 50, 60, 70}, {MODEL, NGRAM, BOTH}),
    ],
)
def test_only_candidates_of_the_sources_are_there(sources, tokens, named_by):
    config_ = config("fixed_tree", num_nodes=8, depth=3, width=2, children=2)
    engine = FakeEngine(0, config_)
    memory = Relearnt(config_, sources)
    drafts = sources != "ngram"
    again = regrow(MIXED.steps[0].decision, engine.policy, COSTS, memory, lambda candidates: drafts)
    assert set(again.paths[0].token[again.nodes[0]].tolist()) == tokens
    assert set(again.candidates.source[0, again.nodes[0]].tolist()) == named_by


def test_n_grams_alone_cost_no_drafting_and_are_replayed_where_the_drafter_rested():
    steps = trace(
        decision(0, mixed(), drafting="none", read_rows=0, level_rows=()),
        outcome(0, verified("a", (2,), (2,), 40)),
    )
    row = replay(steps, "fixed_tree:2", COSTS, "ngram")
    # A row of the token known and two of n-grams, and 1 ms of overhead.
    assert (row.num_rests, row.num_draft_nodes) == (1, 2)
    assert row.predicted_ms == pytest.approx(10 + 3 + 1)
    with pytest.raises(TraceError, match="nothing to replay"):
        replay(steps, "fixed_tree:2", COSTS, "both")


def test_a_step_is_judged_before_it_is_learnt_from():
    config_ = config("smart")
    memory, policy = Relearnt(config_, "ngram"), FakeEngine(0, config_).policy
    (step,) = MIXED.steps
    probs = []
    for _ in range(40):
        again = regrow(step.decision, policy, COSTS, memory, lambda candidates: False)
        of, num_nodes = again.candidates, again.allocation.num_draft_nodes
        probs.append(float(of.path_prob[0][of.token[0] == 70][0]))
        memory.learn(step.decision, of, num_nodes, emitted(step.decision, step.outcome))
    fresh = regrow(
        step.decision, policy, COSTS, Relearnt(config_, "ngram"), lambda candidates: False
    ).candidates
    assert probs[0] == fresh.path_prob[0][fresh.token[0] == 70][0]
    assert probs[0] < probs[5] < probs[-1]


def test_what_comes_after_the_text_is_not_learnt_as_rejected():
    config_ = config("fixed_tree", num_nodes=8, depth=3, width=2, children=2)
    step = trace(decision(0, mixed()), outcome(0, verified("a", (), (), 20))).steps[0]
    asked = []
    memory = Relearnt(config_, "both")
    memory._acceptance.observe = lambda *labels: asked.append(labels)
    again = regrow(step.decision, FakeEngine(0, config_).policy, COSTS, memory)
    num_nodes = again.allocation.num_draft_nodes
    memory.learn(step.decision, again.candidates, num_nodes, emitted(step.decision, step.outcome))
    ((_, depth, _, _, taken, _),) = asked
    assert depth.tolist() == [1] * len(depth)
    assert np.count_nonzero(taken) == 1


def test_requests_that_are_coupled_are_learnt_of_apart():
    config_ = config("smart")
    steps = trace(
        decision(0, mixed().model_copy(update={"is_coupled": True})),
        outcome(0, verified("a", (2,), (2,), 40)),
    ).steps
    memory = Relearnt(config_, "both")
    before = memory._acceptance.sibling_scores(np.array([0, 1]))
    for _ in range(12):
        again = regrow(steps[0].decision, FakeEngine(0, config_).policy, COSTS, memory)
        num_nodes = again.allocation.num_draft_nodes
        memory.learn(
            steps[0].decision, again.candidates, num_nodes, emitted(steps[0].decision, steps[0].outcome)
        )
    after = memory._acceptance.sibling_scores(np.array([0, 1]))
    changed = np.flatnonzero(after.intercept != before.intercept)
    assert len(changed)
    assert changed.min() >= after.first[1] > after.first[0] == 0


def test_sources_that_the_trace_does_not_have_are_refused():
    plain = trace(decision(0, drafted()), outcome(0, verified("a", (1,), (1,), 7)))
    assert replay(plain, "chain:1", COSTS, "model") == replay(plain, "chain:1", COSTS)
    for sources in ("ngram", "both"):
        with pytest.raises(TraceError, match=f"--sources {sources}: the trace has no n-grams. Record"):
            replay(plain, "off", COSTS, sources)
    with pytest.raises(TraceError, match=r"--sources 'all' is no source\. Allowed: model, ngram, both"):
        replay(MIXED, "off", COSTS, "all")
    settings_ = MIXED.header.config.model_copy(
        update={"drafter": MIXED.header.config.drafter.model_copy(update={"method": "ngram"})}
    )
    alone = Trace(MIXED.header.model_copy(update={"config": settings_}), MIXED.steps, MIXED.costs)
    with pytest.raises(TraceError, match="--sources model: the trace was recorded without a drafter"):
        replay(alone, "off", COSTS, "model")
    assert replay(alone, "off", COSTS).num_steps == 1


def test_the_papers_rule_is_replayed_with_the_drafters_candidates_alone():
    with pytest.raises(TraceError, match=r"--policy paper: its rule .* Replay it with --sources model"):
        replay(MIXED, "paper", COSTS)
    assert replay(MIXED, "paper", COSTS, "model").num_steps == 1
