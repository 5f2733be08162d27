import pytest

from vllm_smart.config import SmartConfig, load_config
from vllm_smart.errors import ConfigError


def config(node_budget: int | None = None, **policy: object) -> SmartConfig:
    return load_config(
        {
            "drafter": {"method": "eagle", "model": "any"},
            "tree": {"node_budget": node_budget},
            "policy": policy or {"name": "smart"},
        }
    )


@pytest.mark.parametrize(
    ("in_yaml", "on_command_line", "expected"),
    [(None, 32, 32), (20, 32, 20), (20, None, 20), (32, 32, 32)],
)
def test_the_smaller_of_yaml_and_command_line_counts(in_yaml, on_command_line, expected):
    resolved = config(in_yaml).resolve_node_budget(on_command_line)
    assert resolved.tree.node_budget == resolved.growth.node_budget == expected


def test_the_settings_themselves_are_left_as_they_were():
    unresolved = config()
    unresolved.resolve_node_budget(32)
    assert unresolved.tree.node_budget is None


@pytest.mark.parametrize(
    ("in_yaml", "on_command_line", "policy", "message"),
    [
        (None, None, {}, "pass num_speculative_tokens .* or set tree.node_budget"),
        (33, 32, {}, "tree.node_budget=33 exceeds num_speculative_tokens=32 .* Raise"),
        (None, 0, {}, "num_speculative_tokens=0: must be from 1 to 1024"),
        (None, 1025, {}, "num_speculative_tokens=1025: must be from 1 to 1024"),
        (None, 32, {"name": "fixed_tree"}, "policy.num_nodes=60 exceeds tree.node_budget=32"),
        (8, 32, {"name": "chain", "num_tokens": 9}, "policy.num_tokens=9 exceeds tree.node_budget=8"),
    ],
)
def test_contradictions_are_named_with_the_way_out(in_yaml, on_command_line, policy, message):
    with pytest.raises(ConfigError, match=message):
        config(in_yaml, **policy).resolve_node_budget(on_command_line)


def test_limits_are_unknown_before_the_budget_is_resolved():
    with pytest.raises(ConfigError, match="resolve_node_budget"):
        config().growth  # noqa: B018


@pytest.mark.parametrize(
    ("budget", "num_heads", "expected"), [(16, 1, 16), (16, 3, 15), (15, 3, 15), (2, 3, 2)]
)
def test_several_heads_take_multiples_of_their_number(budget, num_heads, expected):
    assert config(budget).for_heads(num_heads).growth.node_budget == expected


def test_a_chain_that_is_longer_than_such_a_multiple_is_refused():
    settings = config(16, name="chain", num_tokens=16)
    with pytest.raises(ConfigError, match=r"num_tokens=16 exceeds tree\.node_budget=15"):
        settings.for_heads(3)
