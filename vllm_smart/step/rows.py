"""Which rows of a step are trees' rows, and what each of them sees."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TreeRows:
    """Query rows of the first requests of a batch, each seeing its context and its ancestors.

    A request's keys are `seq_lens` tokens, of which the last `tail_lens` are tree slots; all
    rows see the tokens before them. Row i sees tree slot j iff bit j of its mask is set.
    """

    query_start_loc: np.ndarray  # [num_tree_reqs + 1] int32
    seq_lens: np.ndarray  # [num_tree_reqs] int32
    tail_lens: np.ndarray  # [num_tree_reqs] int32
    ancestor_mask: np.ndarray  # [num_tree_rows, words] uint64

    @property
    def max_query_len(self) -> int:
        """Rows of the request that has most."""
        return int(np.diff(self.query_start_loc).max())


@dataclass(frozen=True)
class TreeSizes:
    """How much of a batch has drafts: its first requests and rows."""

    num_reqs: int
    num_rows: int
    max_query_len: int  # rows of the request that has most
    max_seq_len: int  # no sequence of theirs is longer
