"""The n-grams of an engine's requests: kept up with their texts, asked for, judged by what came."""

import time
from collections.abc import Sequence

import numpy as np

from vllm_smart.config import NgramConfig
from vllm_smart.growth.host_history import HostHistory
from vllm_smart.growth.shared_responses import SharedResponses, StartedRequest
from vllm_smart.kernels.evidence.cpu import judged_children
from vllm_smart.proposer import BOTH, NGRAM, Candidates, EvidencePool, Frontier, StepGrammars
from vllm_smart.proposer.ngram import Contexts, NgramIndex, NgramLimits, NgramStore, continuations
from vllm_smart.scheduler import EvidenceModel
from vllm_smart.step import StepResult
from vllm_smart.tree import TreeBatch

_KEPT = ("token", "parent", "depth", "source")
# Milliseconds that a look takes of a host, and those of each request: see `benchmarks.ngram_looks`.
# Constants, because all ranks must decide alike.
_LOOK_MS, _LOOK_REQUEST_MS = 0.8, 0.02
# Looks that have not paid for themselves until one more step rests between two, and most steps from one
# to the next.
_UNPAID, _MOST_BETWEEN = 16, 4


class Ngrams:
    """What repeats in each request, by slot."""

    def __init__(
        self,
        config: NgramConfig,
        history: HostHistory,
        barriers: Sequence[int] = (),
        others: Sequence[NgramStore] = (),
        shared: SharedResponses | None = None,
    ) -> None:
        """Args:
        config: the settings.
        history: the tokens of requests by slot, kept by others.
        barriers: tokens that are neither matched nor proposed, such as placeholders of images.
        others: where else contexts may occur.
        shared: finished responses, among which they may occur, too.
        """
        self.limits = NgramLimits(
            config.max_nodes, config.max_match, config.min_match, config.max_depth
        )
        self._history = history
        num_slots, max_len = history.tokens.shape
        self._index = NgramIndex(num_slots, max_len, barriers)
        self._stores: list[NgramStore] = [self._index, *others]
        self._shared = shared
        if shared is not None:
            self._stores.append(shared.ring)
        # Of each slot: where the root of its latest candidates is, -1 = it has none; and these.
        self._root = np.full(num_slots, -1, np.int64)
        self._candidates = Candidates.roots(num_slots, 1)
        self._seconds = 0.0
        # Looks that nothing has paid for yet, and what a token pays of one.
        self._unpaid, self._token_worth = 0.0, 0.0
        self._since_look = 0

    def is_due(self) -> bool:
        """Whether to look in this step; to be asked once a step. Texts can be caught up with later."""
        self._since_look += 1
        every = 1 + int(self._unpaid) // _UNPAID
        if self._since_look < every and self._shared is None:
            return False
        self._since_look = 0
        return True

    def chosen(self, trees: TreeBatch, beyond_plain: tuple[float, float] | None) -> None:
        """What is going to be verified after a look.

        Args:
            trees: which are verified.
            beyond_plain: milliseconds that this takes, and what a token of it is worth. None where a
                drafter has a part in it, or costs are unknown: then all that is verified is worth it.
        """
        self._token_worth = 0.0
        if beyond_plain is not None:
            rows_ms, token_ms = beyond_plain
            look_ms = _LOOK_MS + _LOOK_REQUEST_MS * len(trees.num_nodes)
            self._token_worth = token_ms / look_ms
            self._owe(1.0 + rows_ms / look_ms)
        elif (trees.is_node() & ((trees.source == NGRAM) | (trees.source == BOTH))).any():
            self._unpaid = 0.0
        else:
            self._owe(1.0)

    def accepted(self, num_tokens: int) -> None:
        """So many draft tokens of what was chosen last were accepted."""
        self._owe(-self._token_worth * num_tokens)
        self._token_worth = 0.0

    def _owe(self, num_looks: float) -> None:
        most = float(_UNPAID * (_MOST_BETWEEN - 1))
        self._unpaid = min(max(self._unpaid + num_looks, 0.0), most)

    def take_seconds(self) -> float:
        """Time spent since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def add_request(self, slot: int, request: StartedRequest | None = None) -> None:
        """Another request starts in `slot`; None: none does, for now."""
        self._history.add_request(slot)
        self._index.reset(np.array([slot]))
        self._root[slot] = -1
        self._since_look = _MOST_BETWEEN  # its text may repeat itself, whatever others do
        if self._shared is not None and request is not None:
            self._shared.add_request(slot, request)

    def ended(self, slot: int) -> None:
        """The request in `slot` has ended."""
        if self._shared is not None:
            self._shared.ended(slot, int(self._index.num_indexed[slot]))

    def settled(self, result: StepResult, is_sampled: np.ndarray, model: EvidenceModel | None) -> None:
        """A step has ended: its tokens stand. Learn from them, and index them.

        Args:
            result: what it has brought.
            is_sampled: [num_reqs] whether each request draws at a temperature.
            model: learns which candidates the texts went on with; None learns nothing.
        """
        start = time.perf_counter()
        self._history.follow(result.slots, result.end + result.emits)
        if model is not None:
            self._judge(result, is_sampled, model)
        self._index.extend(result.slots, self._history.tokens, result.end + result.emits)
        self._root[result.slots] = -1
        self._seconds += time.perf_counter() - start

    def _judge(self, result: StepResult, is_sampled: np.ndarray, model: EvidenceModel) -> None:
        root = self._root[result.slots]
        judged = np.flatnonzero((root >= 0) & result.emits)
        if not len(judged):
            return
        slots, root, of = result.slots[judged], root[judged], self._candidates
        used = slice(int(of.size[slots].max()))
        length = np.minimum(result.end[judged] - root, int(of.depth[slots, used].max()) + 1)
        tokens = self._history.tokens
        place = np.minimum(root[:, None] + 1 + np.arange(length.max()), tokens.shape[1] - 1)
        text = tokens[slots[:, None], place].astype(np.int64)
        assert of.evidence is not None
        features, is_next = judged_children(
            *(getattr(of, name)[slots, used] for name in _KEPT),
            tuple(column[slots, used] for column in of.evidence.columns),
            of.size[slots],
            text,
            length.astype(np.int64),
            is_sampled[judged],
        )
        model.observe(features, is_next)

    def source(
        self,
        slots: np.ndarray,
        end: np.ndarray,
        useful_depth: np.ndarray,
        grammars: StepGrammars | None = None,
    ) -> "NgramSource":
        """The source of a step's candidates.

        Args:
            slots: [num_reqs] of the requests that a pool is of.
            end: [num_reqs] known tokens of each, the root's included.
            useful_depth: [num_reqs] deeper nodes would be wasted.
            grammars: of requests that have some; what they forbid is left out.
        """
        tenant = self._shared.tenant[slots] if self._shared is not None else None
        contexts = Contexts.of(slots, self._history.tokens, end, tenant)
        return NgramSource(self, contexts, useful_depth, grammars)

    def add_to(
        self,
        pool: EvidencePool,
        contexts: Contexts,
        req: np.ndarray,
        max_depth: np.ndarray,
        grammars: StepGrammars | None = None,
    ) -> int:
        """Add the trees of [num_rows] requests `req` to a pool; returns how many have some."""
        start = time.perf_counter()
        trees = continuations(self._stores, contexts, self.limits, self._index.barriers)
        if grammars is not None:
            trees = grammars.allowed_of(req, trees)
        pool.add_paths(req, trees, max_depth)
        self._seconds += time.perf_counter() - start
        return int(np.count_nonzero(trees.num))

    def keep(self, result: StepResult, growing: np.ndarray, candidates: Candidates) -> None:
        """Remember candidates until it is known what the text went on with.

        Args:
            result: of the step that has grown them.
            growing: [num_reqs] batch indices of the requests that the candidates are of.
            candidates: all of them.
        """
        slots, kept = result.slots[growing], self._candidates
        assert candidates.evidence is not None
        width = candidates.token.shape[1]
        if kept.evidence is None or kept.token.shape[1] < width:
            kept = Candidates.roots(len(self._root), width)
            kept.evidence = type(candidates.evidence).none(len(self._root), width)
            self._candidates = kept
            self._root[:] = -1
        assert kept.evidence is not None
        for name in _KEPT:
            getattr(kept, name)[slots, :width] = getattr(candidates, name)
        for to, column in zip(kept.evidence.columns, candidates.evidence.columns, strict=True):
            to[slots, :width] = column
        kept.size[slots] = candidates.size
        self._root[slots] = np.where(result.emits[growing], result.end[growing], -1)


class NgramSource:
    """What came after the latest tokens of requests where they stood before; of one step."""

    name, is_one_shot = "ngram", True

    def __init__(
        self,
        ngrams: Ngrams,
        contexts: Contexts,
        useful_depth: np.ndarray,
        grammars: StepGrammars | None,
    ) -> None:
        """Args: as `Ngrams.source` makes them."""
        self._ngrams, self._contexts, self._useful_depth = ngrams, contexts, useful_depth
        self._grammars = grammars

    def expand(self, pool: EvidencePool, frontier: Frontier) -> int:
        """Add the trees below some roots; see `CandidateSource`."""
        req, of = frontier.req, self._contexts
        if not len(req):
            return 0
        asked = Contexts(of.slots[req], of.history, of.end[req], of.tenant[req])
        depth = self._useful_depth[req]
        return self._ngrams.add_to(pool, asked, req, depth, self._grammars)
