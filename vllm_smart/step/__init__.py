"""One target step as trees: its plan, what it verifies, what it has brought, and the trees in between.

Needs torch and arrays, no object of vLLM's: of its batch only what `StepBatch` names.
"""

from vllm_smart.step.batch import StepBatch
from vllm_smart.step.plan import StepPlan
from vllm_smart.step.result import StepResult
from vllm_smart.step.rows import TreeRows, TreeSizes
from vllm_smart.step.tree_store import TreeStore
from vllm_smart.step.walk import Walk

__all__ = ["StepBatch", "StepPlan", "StepResult", "TreeRows", "TreeSizes", "TreeStore", "Walk"]
