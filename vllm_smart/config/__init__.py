"""Settings, from a YAML file or an inline mapping. Knows nothing of vLLM."""

from vllm_smart.config.examples import example_names, example_summary, example_text
from vllm_smart.config.load import load_config
from vllm_smart.config.settings import (
    MAX_CHILDREN,
    MAX_NODE_BUDGET,
    AcceptanceConfig,
    ChainPolicyConfig,
    CostTableConfig,
    DrafterConfig,
    FirstDropPolicyConfig,
    FixedTreePolicyConfig,
    GrowthLimits,
    NgramConfig,
    OffPolicyConfig,
    PaperPolicyConfig,
    PolicyConfig,
    SmartConfig,
    SmartPolicyConfig,
    SssdPolicyConfig,
    TpotObjective,
    TreeConfig,
)

__all__ = [
    "MAX_CHILDREN",
    "MAX_NODE_BUDGET",
    "AcceptanceConfig",
    "ChainPolicyConfig",
    "CostTableConfig",
    "DrafterConfig",
    "FirstDropPolicyConfig",
    "FixedTreePolicyConfig",
    "GrowthLimits",
    "NgramConfig",
    "OffPolicyConfig",
    "PaperPolicyConfig",
    "PolicyConfig",
    "SmartConfig",
    "SmartPolicyConfig",
    "SssdPolicyConfig",
    "TpotObjective",
    "TreeConfig",
    "example_names",
    "example_summary",
    "example_text",
    "load_config",
]
