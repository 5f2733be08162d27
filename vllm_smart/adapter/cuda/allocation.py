"""Rows of drafts in steps that are scheduled ahead: the host says how many, the device whose.

The seam is vLLM's own: this stands where the manager of its adaptive verification would, which trims
chains that the host has not seen either.
"""

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_smart.arrays import HostCopy, to_device
from vllm_smart.kernels.share_rows.gpu import row_starts, share_out
from vllm_smart.seams.versions import reallocated
from vllm_smart.step.device_tree_store import DeviceTreeStore
from vllm_smart.step.progress import Progress


class DraftAllocation:
    """Asked by the runner in the order of the methods, once per step that has drafts."""

    counts: HostCopy | None = None  # [num_reqs] draft nodes of the latest step that had some

    def __init__(self, runner: GPUModelRunner, trees: DeviceTreeStore, progress: Progress) -> None:
        """Args:
        runner: whose batches are arranged.
        trees: among whose nodes is chosen.
        progress: which knows how many they should be.
        """
        self._runner, self._trees, self._progress = runner, trees, progress
        self._total = 0
        self._room = self._fixed = np.zeros(0, np.int32)

    def add_request(self, req_index: int) -> None:
        """It has no tree yet."""

    def get_num_tokens(
        self, num_tokens_per_req: dict[str, int], draft_tokens: dict[str, list[int]]
    ) -> int:
        """Rows of the step, of which the scheduler has left room for `draft_tokens`."""
        room = [len(each) for each in draft_tokens.values()]
        self._total = self._progress.num_drafts(room)
        return sum(num_tokens_per_req.values()) - sum(room) + self._total

    def compact_batch(
        self, room: np.ndarray, num_tokens: np.ndarray, cu_num_logits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """[num_reqs] rows of each request, as far as the host can tell; the sum is right.

        Args:
            room: [num_reqs] for draft nodes; requests that have some lead the batch.
            num_tokens: [num_reqs] rows, room included.
            cu_num_logits: [num_reqs + 1], handed back: a bound from above.
        """
        self._room, self._fixed = room, num_tokens - room
        num_drafting = int(np.count_nonzero(room))
        assert room[:num_drafting].all(), "requests with drafts must lead the batch"
        rows = self._fixed.copy()
        each, more = divmod(self._total, num_drafting)
        rows[:num_drafting] += each
        rows[:more] += 1
        return rows, cu_num_logits

    def reallocate_drafts(self, req_ids: list[str], idx_mapping: torch.Tensor) -> tuple[Any, ...]:
        """Each request's first logits row and first query row on the device, and all draft nodes.

        As a tuple of as many as this version of vLLM takes.
        """
        numbers = np.stack((self._room, self._fixed)).astype(np.int32)
        room, fixed = to_device(numbers, idx_mapping.device)
        counts = room
        if self._total < self._room.sum():
            counts = share_out(self._trees.kept.value, idx_mapping, room, self._total)
        self.counts = HostCopy(counts)
        query_start: torch.Tensor = self._runner.input_buffers.query_start_loc
        return reallocated(row_starts(counts, fixed, query_start), query_start, self._total)

    def record_confidences(self, *args: object) -> None:
        """Growth has kept what it knows already."""
