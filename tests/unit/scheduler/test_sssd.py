import numpy as np
import pytest

from tests.unit.proposer.random_pools import LIMITS, random_candidates
from tests.unit.scheduler.random_costs import staircase, table
from vllm_smart.config import GrowthLimits, SmartConfig
from vllm_smart.scheduler import StepLoad, make_policy, needs_costs
from vllm_smart.scheduler.sssd import SssdPolicy, free_tokens

WIDE = GrowthLimits(node_budget=64, depth=6, width=8, children=5)


@pytest.mark.parametrize(
    ("device_tokens", "num_requests", "nodes"),
    [
        (384, 1, 31),  # the cap of one request
        (1000, 1, 31),
        (16, 1, 15),
        (15, 1, 15),  # no device is said to do less than 16
        (31, 1, 15),
        (384, 2, 31),
        (384, 3, 19),  # 64 / 3 = 21, rounded down to 20
        (384, 4, 23),  # 96 / 4
        (384, 5, 15),  # 96 / 5 = 19
        (384, 16, 23),  # 384 / 16
        (384, 64, 5),
        (256, 64, 3),
        (48, 32, 0),
        (384, 512, 0),
    ],
)
def test_the_device_is_shared_equally_up_to_the_published_caps(device_tokens, num_requests, nodes):
    assert SssdPolicy(WIDE, staircase(0), device_tokens).num_nodes(num_requests) == nodes


@pytest.mark.parametrize("num_requests", [1, 4, 9])
def test_every_request_gets_as_many_of_its_best_as_it_has(num_requests):
    policy = SssdPolicy(LIMITS, staircase(0), 64)
    pool = random_candidates(3)
    allocation = policy.choose(pool, StepLoad(num_requests), 0.0)
    most = min(policy.num_nodes(num_requests), LIMITS.node_budget)
    wanted = np.minimum((pool.path_prob[:, 1:] > 0).sum(axis=1), most)
    assert allocation.num_draft_nodes.tolist() == wanted.tolist()


def test_free_tokens_are_read_off_step_times():
    # 10 ms until the arithmetic of 100 tokens takes as long, 0.1 ms each.
    costs = table({1: 10.0, 100: 10.0, 200: 20.0, 600: 60.0}, {1: 1.0})
    assert free_tokens(costs) == pytest.approx(100.0, rel=0.02)
    assert SssdPolicy(WIDE, costs, None).device_tokens == 96


def config(**settings: object) -> SmartConfig:
    drafter = {"method": "eagle", "model": "any"}
    policy = {"name": "sssd", **settings}
    return SmartConfig.model_validate({"drafter": drafter, "policy": policy}).resolve_node_budget(64)


def test_settings_reach_the_policy():
    assert config().growth == GrowthLimits(64, depth=6, width=8, children=5)
    assert needs_costs(config())
    assert isinstance(make_policy(config(), staircase(0)), SssdPolicy)
    policy = make_policy(config(device_tokens=200), staircase(0))
    assert isinstance(policy, SssdPolicy)
    assert policy.device_tokens == 192


def test_no_level_is_drafted_where_the_batch_leaves_nothing():
    frontiers = []
    random_candidates(5, after_level=lambda *level: frontiers.append(level))
    pool, frontier = frontiers[0]
    policy = SssdPolicy(LIMITS, staircase(0), 48)
    answers = [policy.level(pool, frontier, None, StepLoad(num), 0.0)[0].all() for num in (4, 32)]
    assert answers == [True, False]
