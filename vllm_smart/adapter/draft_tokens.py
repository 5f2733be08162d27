"""Hands the scheduler each request's own number of draft nodes."""

import numpy as np
import torch
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.utils import DraftTokensHandler

from vllm_smart.arrays import HostCopy

NO_TOKEN = -1  # fills a request's unused columns of the draft tokens


class TreeDraftTokensHandler(DraftTokensHandler):
    """Where vLLM's handler promises the scheduler the largest tree for every request."""

    _copy: HostCopy | None = None  # of the latest step's tokens; None where nobody asks for them

    def __init__(self, device: torch.device, is_ahead: bool) -> None:
        """Args:
        device: of the draft tokens.
        is_ahead: whether steps are scheduled without them, but for what grammars ask.
        """
        super().__init__(device)
        self._is_ahead = is_ahead

    def set_draft_tokens(self, input_batch: InputBatch, draft_tokens: torch.Tensor) -> None:
        """`draft_tokens`: [num_reqs, num_speculative_tokens] int64, NO_TOKEN beyond each tree."""
        self.req_ids = input_batch.req_ids
        self.num_draft_tokens = draft_tokens.shape[1]
        is_asked = not self._is_ahead or input_batch.has_structured_output_reqs
        self._copy = HostCopy(draft_tokens) if is_asked else None

    def get_draft_tokens(self) -> DraftTokenIds | None:
        if self._copy is None:
            return None
        (drafts,) = self._copy.wait()
        if not np.count_nonzero(drafts[:, :1] != NO_TOKEN):
            return DraftTokenIds(self.req_ids, [[] for _ in self.req_ids])
        counts = (drafts != NO_TOKEN).sum(axis=1).tolist()
        tokens = drafts.tolist()
        return DraftTokenIds(self.req_ids, [row[:n] for row, n in zip(tokens, counts, strict=True)])
