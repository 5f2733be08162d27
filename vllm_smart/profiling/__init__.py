"""What a step costs: measured, smoothed, stored, looked up. Knows no model runner."""

from vllm_smart.profiling.corrected_cost import CorrectedCost, Correction
from vllm_smart.profiling.cost_table import NO_CONTEXT, Context, CostSamples, CostTable, StepCost
from vllm_smart.profiling.key import TableKey
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
    "Progress",
    "StepClock",
    "StepCost",
    "StepShape",
    "StepTime",
    "TableKey",
    "Timings",
    "default_folder",
    "find",
    "guess",
    "load",
    "load_key",
    "measure",
    "plain_ms_of",
    "run_all",
    "save",
    "table_path",
    "time_steps",
    "token_counts",
]
