"""From settings to a policy."""

from vllm_smart.config import (
    FirstDropPolicyConfig,
    PaperPolicyConfig,
    SmartConfig,
    SmartPolicyConfig,
    SssdPolicyConfig,
)
from vllm_smart.errors import CostTableError
from vllm_smart.profiling import StepCost
from vllm_smart.scheduler.budget import FirstDrop, LongRun, PrefixRule
from vllm_smart.scheduler.fixed import FixedPolicy
from vllm_smart.scheduler.gate import DraftGate
from vllm_smart.scheduler.marginal import EqualSharePolicy, MarginalPolicy
from vllm_smart.scheduler.paper import PaperPolicy
from vllm_smart.scheduler.policy import BudgetPolicy
from vllm_smart.scheduler.sssd import SssdPolicy
from vllm_smart.scheduler.step_rest import StepRest

_WEIGH_COSTS = SmartPolicyConfig | PaperPolicyConfig | SssdPolicyConfig | FirstDropPolicyConfig


def needs_costs(config: SmartConfig) -> bool:
    """Whether the policy decides by measured costs."""
    return isinstance(config.policy, _WEIGH_COSTS)


def make_policy(config: SmartConfig, cost: StepCost | None) -> BudgetPolicy:
    """The policy that `config` names.

    Args:
        config: with its node budget resolved.
        cost: measured costs; None where `needs_costs` says so.

    Raises:
        CostTableError: the policy needs costs and there are none.
    """
    policy, limits = config.policy, config.growth
    if not needs_costs(config):
        return FixedPolicy(limits)
    if cost is None:
        raise CostTableError(
            f"policy.name={policy.name!r} decides by measured costs and there is no cost table. "
            "Set cost_table.measure to 'auto' or cost_table.path to a table."
        )
    if isinstance(policy, SssdPolicyConfig):
        return SssdPolicy(limits, cost, policy.device_tokens)
    if isinstance(policy, PaperPolicyConfig):
        return PaperPolicy(limits, cost, policy.alpha, policy.device_budget)
    if isinstance(policy, SmartPolicyConfig):
        rule = PrefixRule() if policy.horizon == "per_step" else LongRun()
        kind = MarginalPolicy if policy.share == "best" else EqualSharePolicy
        return kind(limits, cost, policy.min_gain, rule, drafts_all_levels=not policy.depth_rule)
    return MarginalPolicy(limits, cost, rule=FirstDrop())


def make_gate(
    config: SmartConfig, cost: StepCost | None, sees_arrivals: bool = False
) -> DraftGate | None:
    """What turns drafting off under `config`; None if nothing does.

    Args:
        cost: measured costs; None where `needs_costs` says so.
        sees_arrivals: as for `DraftGate`.
    """
    if not isinstance(config.policy, SmartPolicyConfig) or not config.policy.may_turn_off:
        return None
    assert cost is not None  # or there would be no such policy
    limits = config.growth
    sizes = limits.node_budget, limits.depth, config.policy.probe_every
    gives_way = config.policy.beside_prompts == "weigh"
    return DraftGate(cost, *sizes, config.ngrams is not None, gives_way, sees_arrivals)


def make_step_rest(config: SmartConfig, policy: BudgetPolicy) -> StepRest | None:
    """What lets single steps do without the drafter under `config`; None if nothing does.

    Args:
        policy: that `config` names.
    """
    settings = config.policy
    may = isinstance(settings, SmartPolicyConfig) and settings.may_turn_off
    if not may or config.ngrams is None:
        return None
    assert isinstance(policy, MarginalPolicy)  # of this name
    return StepRest(policy)
