"""What a server would do under a load: continuous batching with our own decisions, by simulation.

Decisions are the product's (`scheduler`, `proposer`). Simulated are time, by a cost table, and what a
drafter says. Knows no vLLM.
"""

from vllm_smart.simulate.batching import EngineLimits
from vllm_smart.simulate.drafter import Expansions
from vllm_smart.simulate.replica import Machine
from vllm_smart.simulate.runs import PLAIN, Load, Point, Setup, simulate
from vllm_smart.simulate.workload import Workload, arriving, read_workload

__all__ = [
    "PLAIN",
    "EngineLimits",
    "Expansions",
    "Load",
    "Machine",
    "Point",
    "Setup",
    "Workload",
    "arriving",
    "read_workload",
    "simulate",
]
