"""What a step costs: measured, smoothed, stored, looked up. Knows no model runner."""

from vllm_smart.profiling.corrected_cost import CorrectedCost, Correction
from vllm_smart.profiling.cost_table import NO_CONTEXT, Context, CostSamples, CostTable, StepCost
from vllm_smart.profiling.key import TableKey
from vllm_smart.profiling.live_cost import CostLearner, StepShape
from vllm_smart.profiling.measure import measure, time_steps, token_counts
from vllm_smart.profiling.plain_time import plain_ms_of
from vllm_smart.profiling.step_clock import StepClock, StepTime
from vllm_smart.profiling.store import default_folder, find, load, load_key, save, table_path

__all__ = [
    "NO_CONTEXT",
    "Context",
    "CorrectedCost",
    "Correction",
    "CostLearner",
    "CostSamples",
    "CostTable",
    "StepClock",
    "StepCost",
    "StepShape",
    "StepTime",
    "TableKey",
    "default_folder",
    "find",
    "load",
    "load_key",
    "measure",
    "plain_ms_of",
    "save",
    "table_path",
    "time_steps",
    "token_counts",
]
