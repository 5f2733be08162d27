"""vLLM's sampler, without the work that greedy batches do not need.

On a small model, torch's calls on arrays of a few numbers are the greater part of sampling. What is
sampled is the same; `tests/adapter/cpu/test_sampler.py` compares.
"""

import functools
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

_NUM_NATIVE_PROCESSORS = 3  # logit bias, penalties, bad words


class CPUSampler(Sampler):
    """Greedy batches skip noise; state of requests is copied when there is a new one."""

    @classmethod
    def in_place_of(cls, sampler: Sampler) -> Sampler:
        """`sampler` with our shortcuts; itself if it is of a kind that may know more than them."""
        if type(sampler) is not Sampler:
            return sampler
        ours = cls.__new__(cls)
        vars(ours).update(vars(sampler))
        num_slots = len(ours.needs_logits_processing)
        # By request-state slot: whether the likeliest token is the sample, and nothing else is asked
        # for. Lists, because numpy's calls cost more than the few flags of a batch.
        ours._is_greedy = [False] * num_slots
        ours._is_bare = [False] * num_slots
        ours._reports_more = ours.compute_nans or ours.return_sampling_mask
        ours._reports_more |= ours.trace_replay_state is not None
        # Custom processors are promised a call at every step.
        ours._always_writes = len(ours.logits_processors) > _NUM_NATIVE_PROCESSORS
        ours._has_new = True
        return ours

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        super().add_request(req_idx, sampling_params)
        is_greedy = sampling_params.temperature == 0.0 and not self.needs_logits_processing[req_idx]
        self._is_greedy[req_idx] = is_greedy
        self._is_bare[req_idx] = (
            is_greedy
            and not self._reports_more
            and sampling_params.logprobs is None
            and not sampling_params.logprob_token_ids
        )
        self._has_new = True

    def apply_staged_writes(self) -> None:
        if self._has_new or self._always_writes:
            super().apply_staged_writes()
            self._has_new = False

    def get_logprobs_dims(
        self, idx_mapping_np: np.ndarray, include_token_ids: bool = True
    ) -> tuple[int, int] | None:
        if all(map(self._is_bare.__getitem__, idx_mapping_np.tolist())):
            return None
        return super().get_logprobs_dims(idx_mapping_np, include_token_ids)

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        slots = input_batch.idx_mapping_np.tolist()
        if input_batch.has_prefill or not all(map(self._is_bare.__getitem__, slots)):
            return super().__call__(logits, input_batch)
        num_sampled, num_rejected = _ones_and_zeros(len(slots))
        return SamplerOutput(
            sampled_token_ids=_likeliest(logits),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def sample(
        self,
        logits: torch.Tensor,
        expanded_idx_mapping: torch.Tensor,
        idx_mapping: torch.Tensor,
        idx_mapping_np: np.ndarray,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if all(map(self._is_greedy.__getitem__, idx_mapping_np.tolist())):
            return _likeliest(logits).view(-1), logits
        return super().sample(
            logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, *args, **kwargs
        )


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """[num_rows, 1] int64, the first of the largest logits [num_rows, vocab_size] of each row.

    numpy's argmax is vectorised; torch's is not, and takes ten times as long.
    """
    return torch.from_numpy(logits.float().numpy().argmax(axis=1, keepdims=True))


@functools.cache
def _ones_and_zeros(num_reqs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[num_reqs] int32 each: what every request samples and rejects where none has drafts."""
    return torch.ones(num_reqs, dtype=torch.int32), torch.zeros(num_reqs, dtype=torch.int32)
