"""What growing trees needs of the drafter, wherever it is decided how they grow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from vllm_smart.adapter.block_marks import TouchedBlocks
from vllm_smart.adapter.drafting_step import DraftingStep
from vllm_smart.adapter.growth_log import GrowthLog
from vllm_smart.adapter.host import runs_on_triton
from vllm_smart.adapter.reading import DrafterReading
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepResult

if runs_on_triton():
    from vllm_smart.kernels.triton_top_tokens import top_tokens
else:
    from vllm_smart.kernels.torch_top_tokens import top_tokens_reference as top_tokens

# Rows of logits at a time: vLLM leaves little memory beside the KV cache, and vocabularies are large.
_LOGITS_ROWS = 512


class DraftRows(NamedTuple):
    """Rows of one draft level by request; their tokens and positions are in the input buffers."""

    slot_position: torch.Tensor  # [num_rows] int64, the position whose KV slot the row writes
    row_start: torch.Tensor  # [num_reqs + 1] int32; rows beyond the last are padding


class TreeGrowing(DrafterReading):
    """The part that both ways of growing share."""

    runtime: TreeRuntime
    # [max_num_reqs] of the present step, by request-state slot.
    temperature_now: torch.Tensor

    def useful_depth(self, slots: np.ndarray, num_computed: np.ndarray) -> np.ndarray:
        """[num_reqs] tokens that the next step may emit before each request ends, bonus excluded.

        Deeper nodes are wasted, and so is any draft for a request that has ended.
        """
        most = np.minimum(self.req_states.max_seq_len[slots], self.max_model_len)
        return most - (num_computed + 1) - 1

    def finish(
        self,
        step: DraftingStep,
        result: StepResult,
        log: GrowthLog | None,
        touched: tuple[TouchedBlocks, ...] | None = None,
    ) -> None:
        """Keep and learn from what a step has drafted, once its outcome is known.

        Args:
            result: what the target's part of the step has brought.
            log: of the trees grown; None where no request has drafted.
            touched: blocks of the drafter's cache; None = of the present step.
        """
        end = result.end
        if len(step.drafting):
            end = end.copy()
            end[step.drafting] = self.readable_end(result)[step.drafting]
            self.backlog.read_to[step.slots] = end[step.drafting]
        if self.marks is not None:
            self.marks.mark(result.slots, end, self.take_touched() if touched is None else touched)
        if log is None:
            self.runtime.rested(step.plan, result, step.load)
        else:
            self.runtime.drafted(step.plan, result, log)

    def take_touched(self) -> tuple[TouchedBlocks, ...]:
        """Blocks of the drafter's cache that the present step touches, for `finish`."""
        return self.marks.take() if self.marks is not None else ()

    def candidates_after(
        self, to_logits: torch.Tensor, temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `children` likeliest tokens after each row and their probabilities.

        A part of the rows at a time, so that their logits never fill the memory together.

        Args:
            to_logits: [num_rows, hidden].
            temperature: [num_rows] float32 of their requests, which shape the probabilities; those
                of greedy ones are taken at temperature 1.

        Returns:
            tokens [num_rows, children] int64 and probabilities float32, best first.
        """
        children = max(1, self.runtime.limits.children)
        parts = [
            top_tokens(self.compute_draft_logits(rows, 0), of_rows, children)
            for rows, of_rows in zip(
                to_logits.split(_LOGITS_ROWS), temperature.split(_LOGITS_ROWS), strict=True
            )
        ]
        tokens, probs = zip(*parts, strict=True)
        return (tokens[0], probs[0]) if len(parts) == 1 else (torch.cat(tokens), torch.cat(probs))

    def run_rows(
        self,
        rows: DraftRows,
        hidden: torch.Tensor | None,
        attention: Callable[[Any, torch.Tensor], Any],
        graph: BatchExecutionDescriptor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the drafter on a level; see `forward_rows` for what it returns.

        Args:
            hidden: [num_rows, hidden] what the rows' parents hand to them, for drafters that read
                hidden states; None where it is in their buffer.
            attention: makes the metadata from a builder and the block tables of its cache group.
            graph: how the forward runs.
        """
        num_rows = len(rows.slot_position)
        slot_mappings = self.block_tables.compute_slot_mappings(
            self.idx_mapping[: len(rows.row_start) - 1],
            rows.row_start,
            rows.slot_position,
            graph.num_tokens,
        )
        metadata: dict[str, Any] = {}
        for groups in self.attn_groups:
            for group in groups:
                table = self.block_tables.input_block_tables[group.kv_cache_group_id]
                tree = attention(group.get_metadata_builder(0), table)
                metadata.update(dict.fromkeys(group.layer_names, tree))
        by_layer = build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)
        return self.forward_rows(num_rows, hidden, metadata, by_layer, graph)
