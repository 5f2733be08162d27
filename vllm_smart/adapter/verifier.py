"""Samples the target's token at every node and walks each tree with them."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch, get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import get_max_chunk_logits

from vllm_smart.arrays import to_device
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepPlan
from vllm_smart.step.histories import linear_histories

if runs_on_triton():
    from vllm_smart.step.device_walk import walk_plan
else:
    from vllm_smart.step.host_walk import walk_plan

NUM_NATIVE_PROCESSORS = 3  # logit bias, penalties, bad words


class TreeVerifier:
    """Stands in for vLLM's rejection sampler; exact for every sampling parameter it serves.

    The target samples at each node with the request's own sampler state, keyed by the node's
    position, and the walk follows the children that carry those samples. So a request gets the
    very tokens that plain decoding would draw: no acceptance test, nothing to correct.
    """

    # vLLM's warm-up looks at it.
    enable_adaptive_verification = False

    def __init__(self, sampler: Sampler, plan_of: Callable[[InputBatch], StepPlan | None]) -> None:
        """Take vLLM's sampler, and where the plan of a batch is to be had."""
        self.sampler = sampler
        self.plan_of = plan_of

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
        invalid_drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """Verify the trees of one step.

        Args:
            logits: [num_logits, vocab_size], one row per node, requests in batch order.
            input_batch: the batch that the current plan was made for.
            draft_logits: always None; draft candidates are deterministic.
            invalid_drafts: [num_logits] bool, drafts that a grammar forbids.

        Raises:
            RuntimeError: the batch is not the planned one; a walk over the wrong trees would
                return wrong text.
        """
        plan = self.plan_of(input_batch)
        if plan is None:
            raise RuntimeError("the batch to verify is not the one whose trees were planned")
        num_nans = get_num_nans(logits) if self.sampler.compute_nans else None
        logprobs_dims = self.sampler.get_logprobs_dims(input_batch.idx_mapping_np)
        scores_processed = self.sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
        sampled, processed = self._sample(
            logits,
            input_batch,
            plan,
            return_logprobs=logprobs_dims is not None,
            keeps_processed=logprobs_dims is not None and scores_processed,
        )

        plan.walk = walk_plan(plan, sampled, input_batch.cu_num_logits, invalid_drafts)
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            plan.walk.num_accepted + 1,
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self.sampler.req_states.prefill_len.gpu,
        )
        logprobs = None
        if logprobs_dims is not None:
            scored = logits if processed is None else processed
            logprobs = self._logprobs(scored, sampled, input_batch, plan, logprobs_dims)
        return SamplerOutput(
            sampled_token_ids=plan.walk.emitted,
            logprobs_tensors=logprobs,
            num_nans=num_nans,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def _sample(
        self,
        logits: torch.Tensor,
        batch: InputBatch,
        plan: StepPlan,
        return_logprobs: bool,
        keeps_processed: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The target's token at every row [num_logits], and the logits it was drawn from.

        A part of the requests at a time: sampling takes memory several times that of its logits, and
        vLLM leaves little beside the KV cache.

        Args:
            keeps_processed: whether those logits are wanted; None otherwise.
        """
        device, cu_num_logits = logits.device, batch.cu_num_logits_np
        node_pos, depth = plan.node_places(device)
        row_start, histories = cu_num_logits, None
        if plan.branching and self._needs_history(batch.idx_mapping_np):
            histories = linear_histories(plan)
            row_start, depth = histories.row_start, to_device(histories.depth, device)
        input_ids = batch.input_ids[batch.logits_indices]
        seq_lens = batch.seq_lens_cpu_upper_bound.numpy()
        sampled, processed = [], []
        for first, last in _parts(row_start, get_max_chunk_logits(logits.shape[1])):
            begin, end = row_start[first], row_start[last]
            rows: slice | torch.Tensor = slice(begin, end)
            if histories is not None:
                rows = to_device(histories.rows[begin:end], device)
            tokens, drawn_from = self.sampler.sample(
                logits[rows],
                batch.expanded_idx_mapping[rows],
                batch.idx_mapping[first:last],
                batch.idx_mapping_np[first:last],
                node_pos[rows],
                input_ids[rows],
                depth[begin:end],
                seq_lens[first:last],
                return_logprobs=return_logprobs,
            )
            pick: slice | torch.Tensor = slice(None)
            if histories is not None:
                of_part = histories.pick[cu_num_logits[first] : cu_num_logits[last]]
                pick = to_device(of_part - begin, device)
            sampled.append(tokens[pick])
            if keeps_processed:
                processed.append(drawn_from[pick])
        return _joined(sampled), _joined(processed) if keeps_processed else None

    def _needs_history(self, idx_mapping_np: np.ndarray) -> bool:
        """Whether a processor reads a row's history from the rows before it, as a chain's."""
        sampler = self.sampler
        bad_words = sampler.logits_processors[2]
        return (
            bool(sampler.penalties_state.use_penalty[idx_mapping_np].any())
            or bool(bad_words.num_bad_words.np[idx_mapping_np].any())
            or len(sampler.logits_processors) > NUM_NATIVE_PROCESSORS
        )

    def _logprobs(
        self,
        logits: torch.Tensor,
        sampled: torch.Tensor,
        batch: InputBatch,
        plan: StepPlan,
        dims: tuple[int, int],
    ) -> LogprobsTensors:
        """Scores of all rows, each request's accepted path first, as the output expects them."""
        assert plan.walk is not None
        device, max_nodes = logits.device, plan.is_node.shape[1]
        req, index = (to_device(rows, device) for rows in np.nonzero(plan.is_node))
        path = torch.nn.functional.pad(
            plan.walk.path, (0, max_nodes - plan.walk.path.shape[1]), value=-1
        )
        node = path[req, index]
        row = torch.arange(len(req), device=device)
        by_path = torch.where(node >= 0, row - index + node, row)
        num_logprobs, max_token_ids = dims
        cu_num_logits = batch.cu_num_logits_np
        parts = []
        for first, last in _parts(cu_num_logits, get_max_chunk_logits(logits.shape[1])):
            rows = slice(cu_num_logits[first], cu_num_logits[last])
            scores = compute_topk_scores(
                logits[by_path[rows]],
                num_logprobs,
                sampled[by_path[rows]],
                logprob_token_ids_state=self.sampler.logprob_token_ids_state,
                expanded_idx_mapping=batch.expanded_idx_mapping[rows],
                max_per_req_token_ids=max_token_ids,
                logits_mode=self.sampler.logprobs_mode in ("raw_logits", "processed_logits"),
            )
            parts.append(scores)
        return LogprobsTensors.cat(parts, cu_num_logits.tolist())


def _parts(row_start: np.ndarray, most_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of requests with at most `most_rows` rows together, or of one request.

    Args:
        row_start: [num_reqs + 1] first row of each request, then the number of rows.
    """
    first, num_reqs = 0, len(row_start) - 1
    while first < num_reqs:
        last = int(np.searchsorted(row_start, row_start[first] + most_rows, side="right")) - 1
        last = min(max(last, first + 1), num_reqs)
        yield first, last
        first = last


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
