"""A small simulated server."""

import numpy as np

from vllm_smart.config import SmartConfig
from vllm_smart.profiling import CostSamples, CostTable
from vllm_smart.simulate import EngineLimits, Expansions, Machine, Setup, Workload
from vllm_smart.simulate.known_pairs import of_number

POLICIES = ["plain", "chain:2", "smart"]
# A step: 10 ms and 0.5 ms per row; a level of the drafter 1 ms.
TABLE = CostTable(CostSamples(verify=((1, 10.5), (1001, 510.5)), draft=((1, 1.0), (1000, 1.0))))
CONFIG = SmartConfig.model_validate({"tree": {"depth": 3, "width": 2, "children": 2}})
CONFIG = CONFIG.resolve_node_budget(8).resolve_shape(None)


def setup(
    limits: EngineLimits = EngineLimits(8, 64, 256, 16),  # noqa: B008
    table: CostTable = TABLE,
    expansions: Expansions | None = None,
    **others: object,
) -> Setup:
    return Setup(CONFIG, Machine(table), expansions or of_number(0.7, 0), limits, **others)


def requests(arrival_ms: list[float], prompt: int, output: int) -> Workload:
    size = len(arrival_ms)
    return Workload(np.array(arrival_ms, float), np.full(size, prompt), np.full(size, output))
