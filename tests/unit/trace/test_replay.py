import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trace.fake_engine import FakeEngine
from tests.unit.trace.fake_engine import settings as engine_settings
from tests.unit.trace.hand_made import COSTS, config, decision, drafted, outcome, trace, verified
from vllm_smart.config import GrowthLimits
from vllm_smart.errors import TraceError
from vllm_smart.profiling import CostSamples, CostTable
from vllm_smart.scheduler import make_policy, needs_costs
from vllm_smart.trace import read_trace, replay, report, summary
from vllm_smart.trace.regrow import AsRecorded, regrow
from vllm_smart.trace.replay import with_policy


def test_off_costs_what_plain_decoding_costs_and_emits_a_token_each():
    steps = trace(
        decision(0, drafted("a"), drafted("b")),
        outcome(0, verified("a", (1,), (1,), 7), verified("b", (1,), (), 7)),
    )
    row = replay(steps, "off", COSTS)
    # 2 rows: 12 ms, and 1 ms of overhead.
    assert (row.num_draft_nodes, row.tokens, row.predicted_ms) == (0, 2.0, 13.0)
    assert (row.plain_tokens, row.plain_ms, row.speedup) == (2, 13.0, 1.0)


def test_a_chain_is_charged_for_its_levels_and_judged_by_what_was_accepted():
    steps = trace(
        decision(0, drafted()),
        outcome(0, verified("a", (1, 3), (1, 3), 7)),
    )
    row = replay(steps, "chain:2", COSTS)
    # Overhead 3, reading 2, one further level 2, and 3 rows verified.
    assert row.predicted_ms == pytest.approx(3 + 2 + 2 + 13)
    assert (row.num_draft_nodes, row.known_tokens, row.estimated_tokens) == (2, 3, 0.0)
    assert row.speedup == pytest.approx((3 / 20) / (1 / 12))
    assert row.steps_beyond_record == 0


def test_an_unverified_candidate_is_accepted_if_it_is_the_bonus_token():
    # Only node 1 was verified, and rejected: the target sampled token 20, which is candidate 2's.
    steps = trace(decision(0, drafted(num_nodes=1)), outcome(0, verified("a", (1,), (), 20)))
    row = replay(steps, "fixed_tree:4", COSTS)
    assert (row.num_draft_nodes, row.known_tokens, row.estimated_tokens) == (4, 2, 0.0)


def test_beyond_the_bonus_token_the_recorded_probability_stands_in():
    # Nothing was verified. The target sampled candidate 1's token; of its children nothing is known.
    steps = trace(decision(0, drafted(num_nodes=0)), outcome(0, verified("a", (), (), 10)))
    row = replay(steps, "fixed_tree:4", COSTS)
    assert row.known_tokens == 2
    assert row.estimated_tokens == pytest.approx((0.4 + 0.05) / 0.5)


def test_what_was_emitted_later_judges_candidates_that_were_never_verified():
    steps = trace(
        decision(0, drafted(num_nodes=0)),
        outcome(0, verified("a", (), (), 10)),
        decision(1, drafted(num_nodes=0), drafting="none"),
        outcome(1, verified("a", (), (), 40)),
    )
    row = replay(steps, "fixed_tree:4", COSTS)
    assert (row.num_steps, row.known_tokens, row.estimated_tokens) == (1, 3, 0.0)


def test_a_step_that_is_missing_breaks_the_continuation():
    steps = trace(
        decision(0, drafted(num_nodes=0)),
        outcome(0, verified("a", (), (), 10)),
        decision(2, drafted(num_nodes=0), drafting="none"),
        outcome(2, verified("a", (), (), 40)),
    )
    assert replay(steps, "fixed_tree:4", COSTS).estimated_tokens > 0


def test_drafts_of_a_request_that_ended_are_wasted():
    steps = trace(
        decision(0, drafted("a"), drafted("b")),
        outcome(0, verified("b", (1,), (1,), 7)),
    )
    row = replay(steps, "chain:1", COSTS)
    assert (row.num_draft_nodes, row.tokens, row.plain_tokens) == (2, 2.0, 1)


def test_levels_that_were_not_recorded_are_counted():
    steps = trace(decision(0, drafted()), outcome(0, verified("a", (1,), (1,), 7)))
    assert replay(steps, "chain:2", COSTS).steps_beyond_record == 0
    assert replay(steps, "chain:3", COSTS).steps_beyond_record == 1
    # It also expands candidate 2, whose children are unknown.
    assert replay(steps, "fixed_tree:8", COSTS).steps_beyond_record == 1
    ends = trace(decision(0, drafted(max_depth=2)), outcome(0, verified("a", (1,), (1,), 7)))
    assert replay(ends, "chain:3", COSTS).steps_beyond_record == 0
    full = trace(decision(0, drafted(max_rows=1)), outcome(0, verified("a", (1,), (1,), 7)))
    assert replay(full, "chain:3", COSTS).steps_beyond_record == 0


def test_policies_that_weigh_no_costs_order_candidates_by_what_the_draft_says():
    # By path_prob the order is 1, 3, 2, 4; by draft_prob 1, 2 (0.5 each), 3 (0.25), 4.
    free = CostTable(CostSamples(verify=((1, 1.0), (100, 1.0))))

    def nodes(policy: str) -> list[int]:
        settings = with_policy(config(), policy)
        policy_ = make_policy(settings, free)
        return (
            regrow(decision(0, drafted()), policy_, free, AsRecorded(needs_costs(settings)))
            .nodes[0]
            .tolist()
        )

    assert nodes("fixed_tree:3") == [1, 2, 3]
    assert nodes("smart") == [1, 3, 2, 4]


def test_only_steps_in_which_everybody_drafted_are_replayed():
    steps = trace(decision(0, drafted(), drafting="probe"), outcome(0, verified("a", (1,), (1,), 7)))
    with pytest.raises(TraceError, match="nothing to replay"):
        replay(steps, "off", COSTS)


def test_a_policy_that_may_rest_does_so_where_drafting_does_not_pay():
    records = []
    for step in range(200):
        records += [decision(step, drafted()), outcome(step, verified("a", (1,), (1,), 7))]
    steps = trace(*records)
    # Every row costs as much as a step: nothing pays, and drafting costs 2 ms a level.
    dear = CostTable(CostSamples(verify=((1, 10.0), (100, 1000.0)), draft=((1, 2.0), (100, 2.0))))
    row = replay(steps, "smart", dear)
    # It drafts for 64 trees to learn that, and now and then to see whether it is still so.
    assert (row.num_steps, row.num_rests) == (200, 200 - 64 - 2)
    assert row.num_draft_nodes == 0
    assert 1 > row.speedup > 0.9
    # Where drafting pays, it rests only to see what plain steps cost.
    assert replay(steps, "smart", COSTS).num_rests <= 9
    assert replay(steps, "fixed_tree:4", dear).num_rests == 0


def test_what_the_drafter_missed_while_it_rested_is_read_before_it_drafts_again():
    probed = 64  # trees known before it rests, steps of rest before a probe
    records = []
    for step in range(2 * probed):
        records += [decision(step, drafted()), outcome(step, verified("a", (1,), (1,), 7))]
    samples = CostSamples(verify=((1, 10.0), (100, 1000.0)), draft=((1, 1.0), (1000, 1000.0)))
    before = replay(trace(*records[:-2]), "smart", CostTable(samples))
    after = replay(trace(*records), "smart", CostTable(samples))
    assert (before.num_rests, after.num_rests) == (probed - 1, probed - 1)
    # Two rows of this step and of each one before. Nothing else has become cheaper by that: at 10 ms a
    # row, neither a level nor a node is.
    assert after.num_draft_nodes == before.num_draft_nodes
    assert after.predicted_ms - before.predicted_ms == pytest.approx(2 * probed + 10)


@pytest.mark.parametrize("name", ["fast", "smart:3", "chain:0", "chain:x", "fixed_tree:5000", ""])
def test_an_unknown_policy_is_refused(name):
    with pytest.raises(TraceError, match=f"--policy '{name}'"):
        with_policy(config(), name)


def test_the_recorded_policy_keeps_its_settings_and_others_have_the_trees_shape():
    recorded = config(policy="chain", num_tokens=4)
    assert with_policy(recorded, "chain") is recorded
    assert with_policy(recorded, "chain:2").growth == GrowthLimits(2, depth=2, width=1, children=1)
    assert with_policy(recorded, "fixed_tree").growth == GrowthLimits(8, depth=3, width=2, children=2)
    assert with_policy(recorded, "fixed_tree:3").growth.node_budget == 3
    assert with_policy(recorded, "smart").growth == GrowthLimits(8, depth=3, width=2, children=2)


def test_the_report_has_a_line_per_policy(tmp_path):
    steps = trace(decision(0, drafted()), outcome(0, verified("a", (1, 3), (1, 3), 7)))
    lines = list(report(replay(steps, name, COSTS) for name in ("off", "chain:2")))
    assert lines[0].split() == [
        "policy", "nodes/step", "tokens/step", "ms/step", "tokens/s", "speedup", "rested", "estimated",
        "beyond",
    ]  # fmt: skip
    assert lines[1].split() == ["off", "0.0", "1.00", "12.00", "83.3", "1.00", "100.0%", "0.0%", "0.0%"]
    assert lines[2].split() == [
        "chain:2",
        "2.0",
        "3.00",
        "20.00",
        "150.0",
        "1.80",
        "0.0%",
        "0.0%",
        "0.0%",
    ]
    assert "1 steps" in summary(steps)
    assert "3.00 tokens/step, median 21.00 ms" in summary(steps)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from(["smart", "first_drop", "paper", "sssd", "fixed_tree", "chain"]),
)
def test_replaying_the_recorded_policy_makes_the_recorded_choices(tmp_path_factory, seed, policy):
    settings = engine_settings(policy)
    engine = FakeEngine(seed, settings)
    path = tmp_path_factory.mktemp("trace") / "steps.jsonl"
    engine.record(path, settings, num_steps=6)
    recorded = read_trace(path)
    sunk_ms = 0.0  # chunks of prompts, which choices do not count
    for step, chosen in zip(recorded.steps, engine.choices, strict=True):
        engine.cost.correct(step.decision.correction)
        load = step.decision.load
        with_chunk, without = load.num_requests + load.num_prefill_tokens, load.num_requests
        sunk_ms += engine.cost.verify_ms(with_chunk, load.context)
        sunk_ms -= engine.cost.verify_ms(without, load.context)
        rows, growing = step.decision.read_rows, step.decision.candidate_rows
        sunk_ms += engine.cost.read_ms(rows, growing)
        sunk_ms -= engine.cost.read_ms(rows - step.decision.sunk_rows, growing)
        again = regrow(step.decision, engine.policy, engine.cost, AsRecorded(needs_costs(settings)))
        assert [len(nodes) for nodes in again.nodes] == [
            request.num_draft_nodes for request in step.decision.requests
        ]
        assert again.allocation.num_draft_nodes.tolist() == chosen.num_draft_nodes.tolist()
        assert again.allocation.choice == chosen.choice == step.decision.choice
        assert again.level_rows == step.decision.level_rows
        assert not again.beyond_record
        assert step.outcome is not None
        assert [tuple(nodes.tolist()) for nodes in again.nodes] == [
            request.verified for request in step.outcome.requests
        ]
    row = replay(recorded, policy, engine.table)
    emitted = sum(r.num_tokens for step in recorded.steps for r in step.outcome.requests)
    assert row.tokens == row.known_tokens == emitted
    if needs_costs(settings):
        predicted = [chosen.choice.predicted_ms for chosen in engine.choices]
        assert row.predicted_ms == pytest.approx(np.sum(predicted) + sunk_ms)
