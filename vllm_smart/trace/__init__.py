"""What was decided in each step and what came of it, on disk; and other policies on the same steps.

Writing is for the engine (`StepRecorder`), reading and replaying for people. Knows no vLLM.
"""

from vllm_smart.trace.against import Compared, compare, comparison
from vllm_smart.trace.calibration import Calibration, calibration, calibration_report, plot_calibration
from vllm_smart.trace.reader import Step, Trace, read_steps_after, read_trace
from vllm_smart.trace.recorder import Growth, StepRecorder
from vllm_smart.trace.records import Decision, Drafted, Header, Outcome, Said, Verified
from vllm_smart.trace.replay import Replayed, recorded_costs, replay, report, summary
from vllm_smart.trace.writer import TraceWriter

__all__ = [
    "Calibration",
    "Compared",
    "Decision",
    "Drafted",
    "Growth",
    "Header",
    "Outcome",
    "Replayed",
    "Said",
    "Step",
    "StepRecorder",
    "Trace",
    "TraceWriter",
    "Verified",
    "calibration",
    "calibration_report",
    "compare",
    "comparison",
    "plot_calibration",
    "read_steps_after",
    "read_trace",
    "recorded_costs",
    "replay",
    "report",
    "summary",
]
