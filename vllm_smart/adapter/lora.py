"""LoRA adapters for every row of a tree, where vLLM knows one row of logits per request."""

from typing import Any

import numpy as np
from vllm.lora.request import LoRARequest
from vllm.v1.worker.gpu.lora_utils import LoraState


class RowLoraState(LoraState):
    """Which adapter each row takes: its request's, for rows of the forward and rows of logits alike.

    Drafters take none, so their guesses are the base model's; what is accepted is the adapter's.
    """

    def __init__(self, runner: Any) -> None:
        """Stand in for `runner.lora_state`; the runner's model state knows the present batch."""
        super().__init__(runner.max_num_reqs)
        self._runner = runner

    def make_lora_inputs(
        self, req_ids: list[str], idx_mapping: np.ndarray, num_scheduled_tokens: np.ndarray
    ) -> tuple[tuple[int, ...], tuple[int, ...], set[LoRARequest]]:
        """Adapter ids by row of logits and by row of the forward, and the adapters in use."""
        _, of_tokens, active = super().make_lora_inputs(req_ids, idx_mapping, num_scheduled_tokens)
        batch = self._runner.model_state.plan.input_batch
        assert batch.idx_mapping_np is idx_mapping, "adapters are mapped after the step is planned"
        num_logits = np.diff(batch.cu_num_logits_np[: batch.num_reqs + 1])
        return tuple(self.lora_ids[idx_mapping].repeat(num_logits)), of_tokens, active
