"""Full CUDA graphs of growing trees: reading is queued as usual, the rest is a few replays."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager

from vllm_smart.growth.sizes import GrowthSizes


class GrowthPart(Enum):
    """What a graph holds."""

    ROOTS = "roots"  # the candidates after the roots
    LEVEL = "level"  # one further level, whichever
    CHOOSE_BEST = "choose_best"  # for policies that weigh costs
    CHOOSE_ALL = "choose_all"


@dataclass(frozen=True)
class GrowthGraph(BatchExecutionDescriptor):
    """One graph; `num_tokens` are the rows of a level, or the requests."""

    part: GrowthPart = GrowthPart.LEVEL

    @classmethod
    def of(cls, part: GrowthPart, num_reqs: int, num_rows: int) -> "GrowthGraph":
        """That of `part` for so many requests and rows, padding included."""
        return cls(CUDAGraphMode.FULL, num_tokens=num_rows, num_reqs=num_reqs, part=part)


class GrowthGraphManager(CudaGraphManager):
    """Captures as vLLM does; which graphs there are is ours."""

    def __init__(
        self, vllm_config: VllmConfig, device: Any, mode: CUDAGraphMode, sizes: GrowthSizes
    ) -> None:
        self._sizes = sizes
        is_full = mode.decode_mode() == CUDAGraphMode.FULL
        mode = CUDAGraphMode.FULL_DECODE_ONLY if is_full else CUDAGraphMode.NONE
        super().__init__(vllm_config, device, mode, decode_query_len=1)

    def _init_candidates(self) -> None:
        if not self.cudagraph_mode:
            return
        descs = [GrowthGraph.of(GrowthPart.LEVEL, *sizes) for sizes in self._sizes.captured_levels()]
        for num_reqs in self._sizes.captured_reqs():
            descs += [
                GrowthGraph.of(part, num_reqs, num_reqs)
                for part in GrowthPart
                if part is not GrowthPart.LEVEL
            ]
        self._capture_descs[CUDAGraphMode.FULL] = descs

    def run(self, graph: GrowthGraph, queue: Callable[[], None]) -> None:
        """Replay `graph`, or `queue` what it would hold where it was not captured."""
        if graph in self.graphs:
            self.run_fullgraph(graph)
        else:
            queue()
