"""The board of texts: what requests have said so far. The worker writes it, the drafter reads it."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.config import MAX_CHILDREN
from vllm_smart.kernels.acceptance.cpu import SMALLEST_PROB, level_acceptance
from vllm_smart.overlap.memory import SharedMemory, checksum, rounded

# Of a request-state slot. A generation is the stay of one request in it.
_SLOT = np.dtype(
    [
        ("generation", "<i8"),
        ("length", "<i8"),  # of the text; 0: there is no request
        ("text_check", "<i8"),  # of the text
        ("seed", "<i8"),
        ("temperature", "<f4"),  # 0 = greedy, or its noise is not known
        ("top_p", "<f4"),
        ("top_k", "<i4"),
        ("grows", "<i4"),  # 0: only its prompt is known, 1: trees, 2: chains alone
        ("check", "<i8"),  # of all before it
    ]
)
_CHECKED = _SLOT.itemsize - 8
READS, TREES, CHAINS = range(3)
NUM_DEPTHS = 6  # of candidates that acceptance is told apart of; deeper ones are like the last
_ACCEPTANCE = (2, 2, NUM_DEPTHS, MAX_CHILDREN)
_REHEARSES = 2


@dataclass(frozen=True)
class Terms:
    """How a request samples."""

    temperature: float = 0.0
    seed: int = 0
    top_k: int = 0
    top_p: float = 1.0
    chain_only: bool = False


class TruthBoard:
    """Texts by request-state slot. A text only grows; a request that comes back starts another one.

    Attributes:
        acceptance: [2, 2, NUM_DEPTHS, MAX_CHILDREN] float32 intercepts, then slopes, of greedy requests
            and of sampled ones, by depth from 1 and rank: how likely candidates are taken, by what the
            draft says (`kernels.acceptance`). A reader may see a part of them change: it draws up
            drafts by them, no more. At first they mean what the draft says.
    """

    def __init__(self, num_slots: int, max_len: int, fd: int | None = None) -> None:
        """Args:
        num_slots: request-state slots.
        max_len: most tokens of a text.
        fd: of a board that another process has made.
        """
        num_bytes = 64 + rounded(num_slots * _SLOT.itemsize) + rounded(num_slots * max_len * 4)
        num_bytes += rounded(4 * math.prod(_ACCEPTANCE))
        self.memory = SharedMemory(num_bytes, fd)
        self._runs = self.memory.take((1,), np.int64)
        self.slots = self.memory.take((num_slots,), _SLOT)
        self.tokens = self.memory.take((num_slots, max_len), np.int32)
        self.acceptance = self.memory.take(_ACCEPTANCE, np.float32)
        if fd is None:
            self.acceptance[1] = 1.0
        self._rows = self.slots.view(np.uint8).reshape(num_slots, _SLOT.itemsize)

    @property
    def runs(self) -> bool:
        """Whether the drafter is to run; it rests otherwise."""
        return int(self._runs[0]) == 1

    @runs.setter
    def runs(self, runs: bool) -> None:
        self._runs[0] = runs

    @property
    def rehearses(self) -> bool:
        """Whether the drafter is to run levels that mean nothing, while there are no requests."""
        return int(self._runs[0]) == _REHEARSES

    @rehearses.setter
    def rehearses(self, rehearses: bool) -> None:
        self._runs[0] = _REHEARSES if rehearses else 0

    def start(self, slot: int, prompt: npt.NDArray[np.int32]) -> None:
        """A request comes to `slot`; its trees grow once `extend` has said how it samples.

        Args:
            prompt: [num_tokens] what is known of its text; empty: nothing is drafted for it.
        """
        of = self.slots[slot]
        of["generation"] += 1
        of["length"], of["text_check"], of["grows"] = 0, 0, READS
        self._append(slot, prompt)

    def end(self, slot: int) -> None:
        """The request has left."""
        self.start(slot, np.zeros(0, np.int32))

    def extend(self, slot: int, text: npt.NDArray[np.int32], terms: Terms) -> int:
        """The request's text stands, with its last token, below which trees grow.

        Args:
            text: [num_tokens] all of it.

        Returns:
            How many tokens were new.
        """
        of = self.slots[slot]
        of["temperature"], of["seed"] = terms.temperature, terms.seed
        of["top_k"], of["top_p"] = terms.top_k, terms.top_p
        of["grows"] = CHAINS if terms.chain_only else TREES
        news = text[int(of["length"]) :]
        self._append(slot, news)
        return len(news)

    def accepted(
        self, prob: npt.NDArray[np.float32], depth: npt.NDArray[np.int32], terms: Terms
    ) -> npt.NDArray[np.float32]:
        """How likely candidates are taken if their parents are, by what the worker has learnt.

        Args:
            prob: [num_rows, children] that the draft gives them, best first.
            depth: [num_rows] of them, from 1.
            terms: of their request, which samples by the target's noise or greedily.
        """
        first = np.minimum(depth, NUM_DEPTHS).astype(np.int64) - 1
        first += NUM_DEPTHS * (terms.temperature > 0)
        rank = np.minimum(np.arange(prob.shape[1]), MAX_CHILDREN - 1)
        level: npt.NDArray[np.float32] = level_acceptance(
            prob,
            MAX_CHILDREN * first,
            rank,
            np.zeros(len(prob), np.float32),
            *self.acceptance.reshape(2, -1),
            SMALLEST_PROB,
        )
        return level

    def _append(self, slot: int, news: npt.NDArray[np.int32]) -> None:
        of, length = self.slots[slot], int(self.slots[slot]["length"])
        news = np.ascontiguousarray(news, np.int32)
        self.tokens[slot, length : length + len(news)] = news
        of["text_check"] = checksum(news, int(of["text_check"]))
        of["length"] = length + len(news)
        of["check"] = checksum(self._rows[slot, :_CHECKED])


@dataclass
class KnownText:
    """What the drafter knows of a slot's text."""

    generation: int
    tokens: npt.NDArray[np.int32]  # [max_len] of which the first `length` are known
    length: int = 0
    check: int = 0
    terms: Terms = Terms()
    grows: int = READS


class TruthReader:
    """Reads the board, slot by slot; what was caught while it was written is read again later."""

    def __init__(self, board: TruthBoard) -> None:
        """Args:
        board: the worker's.
        """
        self._board = board
        self._seen = np.zeros_like(board.slots)
        self._seen_rows = self._seen.view(np.uint8).reshape(board._rows.shape)
        self.texts: dict[int, KnownText] = {}

    def poll(self) -> list[int]:
        """Slots of which there is news; `texts` has it. Those without a request are not in there."""
        board, changed = self._board, []
        news = (board._rows != self._seen_rows).any(axis=1)
        for slot in np.flatnonzero(news).tolist():
            row = board._rows[slot].copy()
            of = row.view(_SLOT)[0]
            if int(of["check"]) != checksum(row[:_CHECKED]) or not self._read(slot, of):
                continue
            self._seen_rows[slot] = row
            changed.append(slot)
        return changed

    def _read(self, slot: int, of: np.void) -> bool:
        """Take the text that `of` speaks of; whether it could be read."""
        length, board = int(of["length"]), self._board
        if length == 0:
            self.texts.pop(slot, None)
            return True
        known = self.texts.get(slot)
        if known is None or known.generation != int(of["generation"]):
            known = KnownText(int(of["generation"]), np.zeros(board.tokens.shape[1], np.int32))
        if not known.length <= length <= board.tokens.shape[1]:
            return False
        news = board.tokens[slot, known.length : length].copy()
        check = checksum(news, known.check)
        if check != int(of["text_check"]):
            return False
        known.tokens[known.length : length] = news
        known.length, known.check, known.grows = length, check, int(of["grows"])
        known.terms = Terms(
            float(of["temperature"]),
            int(of["seed"]),
            int(of["top_k"]),
            float(of["top_p"]),
            known.grows == CHAINS,
        )
        self.texts[slot] = known
        return True
