"""Hands the scheduler each request's own number of draft nodes."""

from collections.abc import Callable

import numpy as np
import torch
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.utils import DraftTokensHandler

from vllm_smart.arrays import HostCopy
from vllm_smart.tree import TreeTokens

NO_TOKEN = -1  # fills a request's unused columns of the draft tokens


class TreeDraftTokensHandler(DraftTokensHandler):
    """Where vLLM's handler promises the scheduler the largest tree for every request."""

    _copy: HostCopy | None = None  # of the latest step's tokens; None where nobody asks for them

    def __init__(
        self,
        device: torch.device,
        is_ahead: bool,
        parents_of: Callable[[np.ndarray], dict[int, list[int]]],
    ) -> None:
        """Args:
        device: of the draft tokens.
        is_ahead: whether steps are scheduled without them, but for what grammars ask.
        parents_of: `TreeRuntime.parents_of`.
        """
        super().__init__(device)
        self._is_ahead, self._parents_of = is_ahead, parents_of
        self._parents: dict[int, list[int]] = {}  # of the latest step

    def set_draft_tokens(self, input_batch: InputBatch, draft_tokens: torch.Tensor) -> None:
        """`draft_tokens`: [num_reqs, num_speculative_tokens] int64, NO_TOKEN beyond each tree."""
        self.req_ids = input_batch.req_ids
        self.num_draft_tokens = draft_tokens.shape[1]
        is_asked = not self._is_ahead or input_batch.has_structured_output_reqs
        self._copy = HostCopy(draft_tokens) if is_asked else None
        has_grammars = input_batch.has_structured_output_reqs
        self._parents = self._parents_of(input_batch.idx_mapping_np) if has_grammars else {}

    def get_draft_tokens(self) -> DraftTokenIds | None:
        if self._copy is None:
            return None
        (drafts,) = self._copy.wait()
        if not np.count_nonzero(drafts[:, :1] != NO_TOKEN):
            # A scheduler that waits has taken what there was; one that runs ahead has left room.
            none = DraftTokenIds(self.req_ids, [[] for _ in self.req_ids])
            return none if self._is_ahead else None
        counts = (drafts != NO_TOKEN).sum(axis=1).tolist()
        tokens = [row[:count] for row, count in zip(drafts.tolist(), counts, strict=True)]
        for req, parents in self._parents.items():
            tokens[req] = TreeTokens(tokens[req], parents[: counts[req]])
        return DraftTokenIds(self.req_ids, tokens)
