"""What a step costs: measured, smoothed, stored, looked up. Knows no model runner."""

from vllm_smart.profiling.corrected_cost import CorrectedCost, Correction
from vllm_smart.profiling.cost_table import NO_CONTEXT, Context, CostSamples, CostTable, StepCost
from vllm_smart.profiling.folder_store import FolderStore, TableStore
from vllm_smart.profiling.key import COST_VERSION, TableKey
from vllm_smart.profiling.live_cost import CostLearner, StepShape
from vllm_smart.profiling.measure import (
    Progress,
    Timings,
    guess,
    measure,
    run_all,
    time_steps,
    token_counts,
)
from vllm_smart.profiling.model_content import content_name
from vllm_smart.profiling.plain_time import plain_ms_of
from vllm_smart.profiling.ray_store import RayStore
from vllm_smart.profiling.shared_tables import SharedTables
from vllm_smart.profiling.step_clock import StepClock, StepTime
from vllm_smart.profiling.store import default_folder, from_text, load, load_key, load_like, to_text

__all__ = [
    "COST_VERSION",
    "NO_CONTEXT",
    "Context",
    "CorrectedCost",
    "Correction",
    "CostLearner",
    "CostSamples",
    "CostTable",
    "FolderStore",
    "Progress",
    "RayStore",
    "SharedTables",
    "StepClock",
    "StepCost",
    "StepShape",
    "StepTime",
    "TableKey",
    "TableStore",
    "Timings",
    "content_name",
    "default_folder",
    "from_text",
    "guess",
    "load",
    "load_key",
    "load_like",
    "measure",
    "plain_ms_of",
    "run_all",
    "time_steps",
    "to_text",
    "token_counts",
]
