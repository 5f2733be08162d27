"""Full CUDA graphs of the target: for trees of any shapes, and for plain decoding.

Two kinds, as attention differs. Where requests have drafts, all rows run through our kernel, which
reads from buffers what each row sees: one graph per captured number of rows takes any mix of 1 to
`decode_query_len` rows per request, as vLLM's adaptive verification captures them. Where none has, the
step is captured with vLLM's own kernel: speculation that is off should cost what plain decoding costs.
"""

from dataclasses import replace
from itertools import product
from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager


class TreeGraphManager(ModelCudaGraphManager):
    """vLLM's manager of the target's graphs, with both kinds of decoding steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "varlen_decode": True})

    def _init_candidates(self) -> None:
        super()._init_candidates()
        with_drafts = self._capture_descs.get(CUDAGraphMode.FULL, [])
        if not with_drafts or not self.cudagraph_mode.separate_routine():
            return
        plain = [
            replace(desc, num_reqs=desc.num_tokens, uniform_token_count=1, max_query_len=None)
            for desc in with_drafts
            if desc.num_tokens <= self.max_num_reqs
        ]
        # The largest first, whose outputs' buffers the others share.
        self._capture_descs[CUDAGraphMode.FULL] = sorted(
            with_drafts + plain, key=lambda desc: desc.num_tokens, reverse=True
        )
        for num_reqs, loras in product(range(1, self.max_num_reqs + 1), self.lora_capture_cases):
            fitting = [
                desc for desc in plain if desc.num_tokens >= num_reqs and desc.num_active_loras == loras
            ]
            if fitting:
                smallest = min(fitting, key=lambda desc: desc.num_tokens)
                self._candidates.setdefault((num_reqs, loras), []).insert(0, smallest)
