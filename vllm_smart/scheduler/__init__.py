"""How many draft nodes are worth their cost: acceptance, budgets, policies.

vLLM's own scheduler decides which requests run; this package decides what they draft.
"""

from vllm_smart.scheduler.acceptance import AcceptanceModel
from vllm_smart.scheduler.budget import Choice, ChoiceSpec, StepLoad, StepPrices, best_prefix
from vllm_smart.scheduler.controller import Controller
from vllm_smart.scheduler.evidence import EvidenceModel
from vllm_smart.scheduler.explain import Explanation, explain, explain_line, explain_table, knee
from vllm_smart.scheduler.factory import make_gate, make_policy, make_step_rest, needs_costs
from vllm_smart.scheduler.gate import DraftGate, Drafting, Probes, Rest
from vllm_smart.scheduler.levels import PolicyLevels
from vllm_smart.scheduler.policy import (
    Allocation,
    BudgetPolicy,
    Candidates,
    FrontierRows,
    usable_levels,
    usable_probs,
)
from vllm_smart.scheduler.queue import NOBODY, Queue

__all__ = [
    "NOBODY",
    "AcceptanceModel",
    "Allocation",
    "BudgetPolicy",
    "Candidates",
    "Choice",
    "ChoiceSpec",
    "Controller",
    "DraftGate",
    "Drafting",
    "EvidenceModel",
    "Explanation",
    "FrontierRows",
    "PolicyLevels",
    "Probes",
    "Queue",
    "Rest",
    "StepLoad",
    "StepPrices",
    "best_prefix",
    "explain",
    "explain_line",
    "explain_table",
    "knee",
    "make_gate",
    "make_policy",
    "make_step_rest",
    "needs_costs",
    "usable_levels",
    "usable_probs",
]
