"""Where the target's attention finds a step's trees: buffers that never move, for graphs to read."""

import numpy as np
import torch

from vllm_smart.adapter.arrays import copy_to
from vllm_smart.adapter.step_plan import TreeRows

_WORDS_PER_MASK_WORD = 2  # of the kernel's 32 bits, in the host's 64


class TreeBuffers:
    """Tail lengths and masks of one step, which all layers of the target share.

    Attributes:
        tail_lens: [max_num_reqs] int32, 0 for requests whose rows are causal.
        ancestor_mask: [max_rows, words] int32, bit j % 32 of word j // 32 for tree slot j.
    """

    def __init__(self, max_num_reqs: int, max_rows: int, max_nodes: int, device: torch.device) -> None:
        """Allocate: all requests are causal.

        Args:
            max_num_reqs: most requests of a step.
            max_rows: most rows of requests with trees.
            max_nodes: of the largest tree, root included.
            device: of the target.
        """
        words = _WORDS_PER_MASK_WORD * -(-max_nodes // 64)
        self.max_nodes = max_nodes
        self.tail_lens = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)
        self.ancestor_mask = torch.zeros(max_rows, words, dtype=torch.int32, device=device)

    def clear(self) -> None:
        """All requests are causal; masks are not read."""
        self.tail_lens.zero_()

    def fill(self, rows: TreeRows) -> None:
        """The step's trees are those of `rows`, its leading requests; the others are causal."""
        tail_lens = np.zeros(len(self.tail_lens), np.int32)
        tail_lens[: len(rows.tail_lens)] = rows.tail_lens
        copy_to(self.tail_lens, tail_lens)
        masks = rows.ancestor_mask.view(np.int32)
        # Words beyond are of slots that no tree of the step has.
        copy_to(self.ancestor_mask[: len(masks), : masks.shape[1]], masks)
