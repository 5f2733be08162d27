import numpy as np
import pytest

from tests.unit.proposer.random_pools import random_candidates
from tests.unit.scheduler.random_costs import staircase
from vllm_smart.config import SmartConfig
from vllm_smart.errors import CostTableError
from vllm_smart.proposer import Frontier
from vllm_smart.scheduler import StepLoad, make_policy, needs_costs
from vllm_smart.scheduler.budget import FirstDrop
from vllm_smart.scheduler.fixed import FixedPolicy
from vllm_smart.scheduler.marginal import EqualSharePolicy, MarginalPolicy
from vllm_smart.scheduler.paper import PaperPolicy
from vllm_smart.scheduler.sssd import SssdPolicy


def config(name: str, **settings: object) -> SmartConfig:
    drafter = {"method": "eagle", "model": "any"}
    policy = {"name": name, **settings}
    return SmartConfig.model_validate({"drafter": drafter, "policy": policy}).resolve_node_budget(64)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("smart", MarginalPolicy),
        ("paper", PaperPolicy),
        ("sssd", SssdPolicy),
        ("first_drop", MarginalPolicy),
    ],
)
def test_policies_that_weigh_costs_need_a_table(name, kind):
    assert needs_costs(config(name))
    assert type(make_policy(config(name), staircase(0))) is kind
    with pytest.raises(CostTableError, match=f"policy.name='{name}' decides by measured costs"):
        make_policy(config(name), None)


@pytest.mark.parametrize("name", ["fixed_tree", "chain", "off"])
def test_fixed_policies_need_no_table(name):
    assert not needs_costs(config(name))
    assert type(make_policy(config(name), None)) is FixedPolicy


def test_settings_reach_the_policy():
    smart = make_policy(config("smart", min_gain=0.25), staircase(0))
    first_drop = make_policy(config("first_drop"), staircase(0))
    paper = make_policy(config("paper", alpha=0.5, device_budget=100), staircase(0))
    assert isinstance(smart, MarginalPolicy)
    assert isinstance(first_drop, MarginalPolicy)
    assert isinstance(paper, PaperPolicy)
    assert smart.min_gain == 0.25
    assert isinstance(first_drop.rule, FirstDrop)
    equal = make_policy(config("smart", share="equal", depth_rule=False), staircase(0))
    assert isinstance(equal, EqualSharePolicy)
    assert equal.drafts_all_levels
    assert (paper.alpha, paper.device_budget) == (0.5, 100)


@pytest.mark.parametrize("name", ["smart", "paper", "sssd", "first_drop", "fixed_tree", "chain"])
def test_every_policy_allocates_trees_that_are_valid(name):
    policy = make_policy(config(name), staircase(3))
    pool = random_candidates(3, limits=policy.limits)
    allocation = policy.choose(pool, StepLoad(4), 1.0)
    trees = pool.select(allocation.num_draft_nodes)
    trees.validate()
    assert allocation.num_draft_nodes.sum() == allocation.choice.num_nodes
    assert (trees.num_nodes - 1).tolist() == allocation.num_draft_nodes.tolist()
    expected_tokens = 4 + trees.path_prob[:, 1:].sum()
    assert allocation.choice.expected_tokens == pytest.approx(expected_tokens, rel=1e-5)


def test_a_fixed_tree_takes_all_candidates_up_to_its_budget():
    policy = make_policy(config("fixed_tree", num_nodes=7, depth=4, width=3, children=3), None)
    pool = random_candidates(2, limits=policy.limits)
    wanted = np.minimum((pool.path_prob[:, 1:] > 0).sum(axis=1), 7)
    assert policy.choose(pool, StepLoad(4), 0.0).num_draft_nodes.tolist() == wanted.tolist()


def test_a_fixed_tree_drafts_every_level_and_predicts_no_times():
    policy = make_policy(config("fixed_tree"), None)
    seen = []
    pool = random_candidates(2, limits=policy.limits, after_level=lambda *level: seen.append(level))
    expanded, level_ms = policy.level(*seen[0], np.ones((5, 10), np.float32), StepLoad(4), 0.0)
    assert expanded.all()
    assert (len(expanded), level_ms) == (len(seen[0][1].req), 0.0)
    choice = policy.choose(pool, StepLoad(4), 0.0).choice
    assert (choice.predicted_ms, choice.rate) == (0.0, 0.0)


def test_off_never_drafts():
    policy = make_policy(config("off"), None)
    pool = random_candidates(2, limits=config("chain").growth)
    assert policy.choose(pool, StepLoad(4), 0.0).num_draft_nodes.tolist() == [0, 0, 0, 0]
    roots = Frontier.of_roots(np.arange(4), 4)
    expanded, _ = policy.level(pool, roots, np.ones((5, 1), np.float32), StepLoad(4), 0.0)
    assert not expanded.any()
