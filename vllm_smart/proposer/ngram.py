"""N-grams: what came after the latest tokens where they stood before, as trees of candidates.

Knows texts and tokens; neither probabilities of acceptance nor what a node costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.ngram.cpu.chains import MIN_HEADS, empty_rows, find_in_chains, index_tokens
from vllm_smart.kernels.ngram.cpu.trees import build_trees
from vllm_smart.proposer.lazy_rows import LazyRows

_Ints = npt.NDArray[np.integer[Any]]

OWN, SHARED, DATASTORE = 1, 2, 4  # bits of `Continuations.stores`
_MOST_OWN = 64
_HEADS_GIVEN_BACK = 1 << 14  # memory of texts so long is worth a call to the system


@dataclass(frozen=True)
class NgramLimits:
    """What is looked for, and how far its trees grow."""

    max_nodes: int = 32  # most of a tree, root excluded
    max_match: int = 32  # tokens up to which matches are measured
    min_match: int = 1  # shorter matches do not count
    max_depth: int = 16  # most levels below the root


@dataclass(frozen=True)
class Contexts:
    """Whose continuations are asked for: the tokens of requests that are known."""

    slots: npt.NDArray[np.int64]  # [n] rows of `history`
    history: npt.NDArray[np.int32]  # [num_slots, max_model_len]
    end: npt.NDArray[np.int64]  # [n] known tokens of each
    tenant: npt.NDArray[np.int64]  # [n] whose finished responses each may see, -1 = nobody's

    @classmethod
    def of(
        cls, slots: _Ints, history: npt.NDArray[np.int32], end: _Ints, tenant: _Ints | None = None
    ) -> "Contexts":
        """From arrays of any integers; `history` is int32 and C-contiguous, for it is never copied."""
        assert history.dtype == np.int32
        assert history.flags.c_contiguous
        tenant = np.full(len(slots), -1) if tenant is None else tenant
        return cls(
            np.ascontiguousarray(slots, np.int64),
            history,
            np.ascontiguousarray(end, np.int64),
            np.ascontiguousarray(tenant, np.int64),
        )


@dataclass(frozen=True)
class Continuations:
    """Trees by request, without roots; parents come before their children.

    Unused columns have token and parent -1, else 0.
    """

    token: npt.NDArray[np.int64]  # [n, max_nodes]
    parent: npt.NDArray[np.int32]  # [n, max_nodes] columns, -1 = the root
    depth: npt.NDArray[np.int32]  # [n, max_nodes] 1 below the root
    rank: npt.NDArray[np.int32]  # [n, max_nodes] among siblings, the heaviest first
    match_len: npt.NDArray[np.int32]  # [n, max_nodes] tokens before it that agree, its path included
    count: npt.NDArray[np.int32]  # [n, max_nodes] occurrences
    stores: npt.NDArray[np.int32]  # [n, max_nodes] bits of the stores that have it
    share: npt.NDArray[np.float32]  # [n, max_nodes] in (0, 1], of the weight after its parent
    num: npt.NDArray[np.int32]  # [n] columns in use


# match, store, num_ahead, ahead, num: see `kernels.ngram`.
Occurrences = tuple[_Ints, _Ints, _Ints, _Ints, _Ints]


class NgramStore(Protocol):
    """Has texts in which contexts may occur."""

    most_found: int
    """Occurrences of a request that it adds at most."""

    def find(self, contexts: Contexts, limits: NgramLimits, found: Occurrences) -> None:
        """Add the occurrences of `contexts` to `found`."""


class NgramIndex:
    """Index of the known tokens of requests, by slot.

    The tokens themselves are others' and passed at each call. Memory is taken as texts grow, up to 26
    bytes a token, and that of long texts is given back when they go.

    Attributes:
        num_indexed: [num_slots] tokens of each slot that are indexed.
        barriers: tokens that are neither matched nor proposed, such as placeholders of images.
            Negative tokens never are.
    """

    most_found = _MOST_OWN

    def __init__(self, num_slots: int, max_len: int, barriers: Sequence[int] = ()) -> None:
        """Args:
        num_slots: rows of the histories.
        max_len: most tokens of a request.
        barriers: see above.
        """
        self.barriers = np.array(barriers, np.int64)
        self._most_heads = max(MIN_HEADS, 1 << (max_len - 1).bit_length())
        self._max_len = max_len
        self._rows = LazyRows(num_slots, self._most_heads * 7 // 4 + 3 * max_len)
        self._links = self._rows.array
        self._num_heads = np.full(num_slots, MIN_HEADS, np.int64)
        self.num_indexed = np.zeros(num_slots, np.int64)
        self._no_owner = np.zeros(0, np.int64)

    def reset(self, slots: _Ints) -> None:
        """Forget what is indexed of [n] slots: other requests have them now."""
        rows = np.ascontiguousarray(slots, np.int64)
        for row in rows[self._num_heads[rows] >= _HEADS_GIVEN_BACK]:
            self._rows.give_back(int(row))
        empty_rows(self._links, self.num_indexed, self._num_heads, self._most_heads, rows)

    @property
    def num_bytes(self) -> int:
        """Memory taken for what is indexed now."""
        return int(28 * self._num_heads.sum() // 4 + 12 * self.num_indexed.sum())

    def extend(self, slots: _Ints, history: npt.NDArray[np.int32], end: _Ints) -> None:
        """Index the tokens that are new.

        Args:
            slots: [n] distinct.
            history: [num_slots, max_model_len] int32, C-contiguous. Only settled tokens belong before
                `end`: what is indexed once is not looked at again.
            end: [n] known tokens of each slot.

        Raises:
            ValueError: fewer tokens than are indexed, so the slot was not reset; or more than max_len.
        """
        contexts = Contexts.of(slots, history, end)
        index_tokens(
            self._links,
            self.num_indexed,
            self._num_heads,
            self._most_heads,
            self._max_len,
            -1,
            history,
            self._no_owner,
            contexts.slots,
            contexts.end,
            self.barriers,
        )

    def find(self, contexts: Contexts, limits: NgramLimits, found: Occurrences) -> None:
        """Add where the last tokens of requests stand earlier in their own texts."""
        find_in_chains(
            self._links,
            self.num_indexed,
            self._num_heads,
            self._most_heads,
            self._max_len,
            -1,
            contexts.history,
            self._no_owner,
            contexts.slots,
            contexts.end,
            contexts.tenant,
            contexts.history,
            contexts.slots,
            contexts.end,
            limits.max_match,
            limits.min_match,
            self.most_found,
            OWN,
            self.barriers,
            found,
        )

    def continuations(
        self,
        slots: _Ints,
        history: npt.NDArray[np.int32],
        end: _Ints,
        limits: NgramLimits,
    ) -> Continuations:
        """What may come next by the requests' own texts alone; arguments as for `extend`."""
        return continuations([self], Contexts.of(slots, history, end), limits, self.barriers)


def occurrences(stores: Sequence[NgramStore], contexts: Contexts, limits: NgramLimits) -> Occurrences:
    """What all stores find, in their order; arguments as for `continuations`."""
    num_requests = len(contexts.slots)
    shape = (num_requests, sum(store.most_found for store in stores))
    match, store_bit, num_ahead = np.empty((3, *shape), np.int32)
    ahead, num = np.empty((*shape, limits.max_depth), np.int32), np.zeros(num_requests, np.int32)
    found: Occurrences = (match, store_bit, num_ahead, ahead, num)
    for store in stores:
        store.find(contexts, limits, found)
    return found


def continuations(
    stores: Sequence[NgramStore],
    contexts: Contexts,
    limits: NgramLimits,
    barriers: npt.NDArray[np.int64],
) -> Continuations:
    """One tree for each request, of the occurrences in all stores.

    Args:
        stores: asked in this order, which breaks ties.
        contexts: of the requests.
        limits: of the trees.
        barriers: tokens that are not proposed, nor what follows them.
    """
    num_requests = len(contexts.slots)
    found = occurrences(stores, contexts, limits)
    shape = (num_requests, limits.max_nodes)
    token, share = np.empty(shape, np.int64), np.empty(shape, np.float32)
    parent, depth, rank, match_len, count, store_bits = np.empty((6, *shape), np.int32)
    num = np.empty(num_requests, np.int32)
    columns = (token, parent, depth, rank, match_len, count, store_bits, share)
    build_trees(found, barriers, columns, num)
    return Continuations(*columns, num)
