"""Hands the scheduler each request's own number of draft nodes."""

import numpy as np
import torch
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.utils import DraftTokensHandler

from vllm_smart.adapter.arrays import HostCopy

NO_TOKEN = -1  # fills a request's unused columns of the draft tokens


class TreeDraftTokensHandler(DraftTokensHandler):
    """Where vLLM's handler promises the scheduler the largest tree for every request."""

    _copy: HostCopy | None = None  # of the latest step's tokens

    def set_draft_tokens(self, input_batch: InputBatch, draft_tokens: torch.Tensor) -> None:
        """`draft_tokens`: [num_reqs, num_speculative_tokens] int64, NO_TOKEN beyond each tree."""
        self.req_ids = input_batch.req_ids
        self.num_draft_tokens = draft_tokens.shape[1]
        self._copy = HostCopy(draft_tokens)

    def get_draft_tokens(self) -> DraftTokenIds | None:
        if self._copy is None:
            return None
        (drafts,) = self._copy.wait()
        if not np.count_nonzero(drafts[:, :1] != NO_TOKEN):
            return DraftTokenIds(self.req_ids, [[] for _ in self.req_ids])
        counts = (drafts != NO_TOKEN).sum(axis=1).tolist()
        tokens = drafts.tolist()
        return DraftTokenIds(self.req_ids, [row[:n] for row, n in zip(tokens, counts, strict=True)])
