"""How likely a candidate is to be accepted, learnt from what the target accepted before.

Drafters are too modest or too sure of themselves, differently by depth and rank; policies need
probabilities that mean what they say. Knows nothing of trees: callers pass flat arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import MAX_CHILDREN, AcceptanceConfig
from vllm_smart.kernels.evidence import NUM_SOURCES, SiblingScores
from vllm_smart.kernels.grow import NUM_CONFIDENCES
from vllm_smart.scheduler.evidence import EvidenceModel
from vllm_smart.scheduler.online_logistic import OnlineLogistic

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Rows = npt.NDArray[np.intp]
_Slots = npt.NDArray[np.integer[Any]]

_NUM_DEPTHS = 5
_NUM_RANKS = 5
_DEPTH_BUCKET = np.array([0, 0, 1, 2, 3, 3, 4])  # by depth; deeper ones share the last
_RANK_BUCKET = np.array([0, 1, 2, 3, 3, 4])  # by rank; later ones share the last
# Rows of the fit, for each source apart, and again for coupled requests, for masked ones, and for those
# that are both: one for everything, one per
# rank over all depths, one per depth and rank. Each row's prior is centred on the row that is one step
# more general.
_FIRST_OF_RANK, _FIRST_OF_BOTH = 1, 1 + _NUM_RANKS
_NUM_ROWS = _FIRST_OF_BOTH + _NUM_DEPTHS * _NUM_RANKS
_OF_SOURCE = _NUM_ROWS * np.arange(4 * NUM_SOURCES)  # its first row
_OF_COUPLED = _NUM_ROWS * NUM_SOURCES  # from a row to that of coupled requests
_OF_MASKED = 2 * _OF_COUPLED  # and to that of masked ones
_MORE_GENERAL = _FIRST_OF_RANK + (np.arange(_NUM_ROWS) - _FIRST_OF_BOTH) % _NUM_RANKS
_MORE_GENERAL[:_FIRST_OF_BOTH] = 0
_MORE_GENERAL = (_MORE_GENERAL + _OF_SOURCE[:, None]).reshape(-1)
_MORE_GENERAL[_OF_SOURCE] = -1
_ROW = _FIRST_OF_BOTH + _DEPTH_BUCKET[:, None] * _NUM_RANKS + _RANK_BUCKET  # [depth, rank]
_STEPS_PER_UPDATE = 4  # a fit costs more than being three steps fresher is worth
_FIRST_RANKS = np.minimum(np.arange(MAX_CHILDREN), _ROW.shape[1] - 1)
# Of a request's own offset: how far requests differ (1 / variance, in logits), and observations
# remembered, because a request's text changes as it grows.
_OFFSET_PRECISION = 1 / 0.5**2
_OFFSET_WINDOW = 50
# Of levels' promises, which vary less than outcomes: the mass that the prior is worth, and what is
# remembered.
_LEVEL_PRIOR = 4.0
_LEVEL_WINDOW = 300.0
_MASSES = ("parent_mass", "child_mass")
# Acceptance by rank before anything was seen: a middling drafter's.
_PRIOR_BY_RANK = 0.6 * 0.3 ** np.arange(MAX_CHILDREN)


class AcceptanceModel:
    """Acceptance given that the parent is accepted and siblings before are not:
    sigmoid(a + b * logit(share)).

    A node's share is what the draft gives it of what it leaves for it and its later siblings. Asked
    one by one, siblings are together at most certain, and one of which the draft is sure leaves little
    to the others. One (a, b) per bucket of depth and rank, fitted online, drawn towards what all depths
    of the rank have in common, that towards what all candidates have in common, and that towards the
    identity a = 0, b = 1, by which drafts mean what they say. Requests share the model: a new request
    starts from the population, and then learns an offset of its own, added to a. Sources are fitted
    apart: what a drafter says of its second choice tells nothing about an n-gram. So are requests whose
    candidates are coupled to the target's noise (`kernels.coupled_tokens`): there, other probabilities
    are asked about. And so are requests whose candidates are masked by a grammar, which takes away what
    the draft would have been wrong about.
    """

    def __init__(
        self, config: AcceptanceConfig, max_num_reqs: int = 1, has_ngrams: bool = False
    ) -> None:
        """Args:
        config: whether to learn, the prior's weight, and how much is remembered.
        max_num_reqs: number of request slots.
        has_ngrams: whether several sources may speak for a candidate.
        """
        self.config = config
        self.evidence = EvidenceModel(config.window) if has_ngrams else None
        self._offset = np.zeros(max_num_reqs, np.float32)
        self._offset_information = np.zeros(max_num_reqs)
        self._first_row = np.zeros(max_num_reqs, np.int64)  # of the fit, for each request
        self._logistic = OnlineLogistic(_MORE_GENERAL, config.prior_weight, config.window)
        self._waiting: list[tuple[_Rows, _Floats, npt.NDArray[np.bool_]]] = []
        # Of levels so far, forgetting: mass of parents by depth bucket and confidence, and of their
        # children, by rank too.
        self._parent_mass = np.zeros((_NUM_DEPTHS, NUM_CONFIDENCES))
        self._child_mass = np.zeros((_NUM_DEPTHS, NUM_CONFIDENCES, MAX_CHILDREN))

    def add_request(self, slot: int, is_coupled: bool = False, is_masked: bool = False) -> None:
        """Another request starts in `slot`; all that is known is whether it is coupled, and masked."""
        self._offset[slot] = self._offset_information[slot] = 0.0
        self._first_row[slot] = _OF_COUPLED * is_coupled + _OF_MASKED * is_masked

    def keep_requests(self, known: "AcceptanceModel") -> None:
        """The requests of another model go on with this one."""
        self._first_row = known._first_row

    def learnt(self) -> dict[str, npt.NDArray[np.float64]]:
        """All that was learnt but what single requests are like, as 2-D arrays by name."""
        return {
            **self._logistic.learnt(),
            "parent_mass": self._parent_mass,
            "child_mass": self._child_mass.reshape(_NUM_DEPTHS, -1),
            **(self.evidence.learnt() if self.evidence is not None else {}),
        }

    def relearn(self, learnt: Mapping[str, npt.ArrayLike]) -> None:
        """Go on from what `learnt` returned before.

        Raises:
            ValueError: it is not of this model's shape, or not finite.
        """
        arrays = self._checked(learnt)
        self._logistic.relearn(arrays)
        if self.evidence is not None:
            self.evidence.relearn(arrays)
        self._parent_mass = arrays["parent_mass"]
        self._child_mass = arrays["child_mass"].reshape(self._child_mass.shape)

    def relearn_all(self, states: Sequence[Mapping[str, npt.ArrayLike]]) -> None:
        """Go on from what several models have learnt, apart from one another.

        Args:
            states: at least one, each as `learnt` returned it.

        Raises:
            ValueError: as for `relearn`.
        """
        arrays = list(map(self._checked, states))
        merged = self._logistic.merged(arrays)
        if self.evidence is not None:
            merged |= self.evidence.merged(arrays)
        masses: dict[str, npt.NDArray[np.float64]] = {
            name: np.sum([each[name] for each in arrays], axis=0) for name in _MASSES
        }
        kept = _LEVEL_WINDOW / np.maximum(masses["parent_mass"], _LEVEL_WINDOW)
        by_child = self._child_mass.shape[-1]
        merged["parent_mass"] = masses["parent_mass"] * kept
        merged["child_mass"] = masses["child_mass"] * np.repeat(kept, by_child, axis=1)
        self.relearn(merged)

    def _checked(self, learnt: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[np.float64]]:
        arrays = {name: np.asarray(rows, np.float64) for name, rows in learnt.items()}
        for name, now in self.learnt().items():
            rows = arrays.get(name)
            if rows is None or rows.shape != now.shape or not np.isfinite(rows).all():
                raise ValueError(f"{name} is not {now.shape} finite numbers")
        return arrays

    def predict(
        self, share: _Floats, depth: _Ints, rank: _Ints, slot: _Slots, source: _Ints | int = 0
    ) -> _Floats:
        """Acceptance probability of candidates whose parent is accepted, and no sibling before.

        Args:
            share: in [0, 1].
            depth: from 1; broadcasts with share.
            rank: from 0; broadcasts with share.
            slot: of the request; broadcasts with share.
            source: who named it, see `kernels.evidence`; broadcasts with share.

        Returns:
            float32 in [0, 1], the shape of share.
        """
        if not self.config.calibrate:
            return share
        row = _row(depth, rank, source) + self._first_row[slot]
        return self._logistic.predict(row, share, self._offset[slot])

    def predict_level(self, draft_prob: _Floats, depth: int, slots: _Slots) -> _Floats:
        """Acceptance probability of a level's candidates if their parents are accepted.

        Args:
            draft_prob: [num_rows, children], column i the draft's i-th choice.
            depth: from 1.
            slots: [num_rows] of the requests.

        Returns:
            [num_rows, children] float32, never increasing along a row, at most 1 together.
        """
        if not self.config.calibrate:
            return draft_prob
        row = _ROW[min(depth, len(_ROW) - 1)][_FIRST_RANKS[: draft_prob.shape[1]]]
        return self._logistic.predict_level(
            self._first_row[slots], row, draft_prob, self._offset[slots]
        )

    def regressions(self, num_levels: int, children: int) -> tuple[_Floats, _Floats]:
        """What `predict_level` goes by, for those who compute it elsewhere.

        Returns:
            Intercepts and slopes, [2, num_levels, children] each: of requests that are not coupled and
            of those that are, of the levels from depth 1 on, by rank.
        """
        depth = np.minimum(np.arange(1, num_levels + 1), len(_ROW) - 1)
        row = _ROW[depth[:, None], _FIRST_RANKS[:children]]
        return self._logistic.of_rows(np.stack((row, row + _OF_COUPLED)))

    def sibling_scores(self, slots: _Slots) -> SiblingScores:
        """The same for candidates of several sources, of the requests in `slots`."""
        every = np.arange(len(_MORE_GENERAL))
        rows = _OF_SOURCE[:, None, None] + _ROW
        learnt = self._logistic.of_rows(every)
        return SiblingScores(rows, self._first_row[slots], *learnt, self._offset[slots])

    def offsets(self, slots: _Slots) -> _Floats:
        """[num_reqs] what is added to the intercepts of the requests in `slots`."""
        return self._offset[slots]

    def observe(
        self,
        share: _Floats,
        depth: _Ints,
        rank: _Ints,
        source: _Ints,
        accepted: npt.NDArray[np.bool_],
        slot: _Slots,
    ) -> None:
        """Learn from the nodes that a walk has judged; see `kernels.outcomes.cpu.judged_nodes`.

        Args:
            share, depth, rank, source, slot: [num_nodes] as in `predict`.
            accepted: [num_nodes] whether the target took the node.
        """
        if not self.config.calibrate or not len(share):
            return
        row = _row(depth, rank, source) + self._first_row[slot]
        if self.config.per_request:
            self._learn_offsets(row, share, accepted, slot)
        self._waiting.append((row, share, accepted))
        if len(self._waiting) == _STEPS_PER_UPDATE:
            self._learn()

    def _learn_offsets(
        self,
        row: _Rows,
        share: _Floats,
        accepted: npt.NDArray[np.bool_],
        slot: _Slots,
    ) -> None:
        """One Newton step per request towards what its own nodes say, from a Gaussian around 0."""
        size = len(self._offset)
        predicted = self._logistic.predict(row, share, self._offset[slot]).astype(np.float64)
        count = np.bincount(slot, minlength=size)
        kept = (1.0 - 1.0 / _OFFSET_WINDOW) ** count
        pull = (1.0 - kept) * self._offset * _OFFSET_PRECISION
        self._offset_information *= kept
        self._offset_information += np.bincount(slot, predicted * (1.0 - predicted), size)
        gradient = np.bincount(slot, accepted - predicted, size) - pull
        step = gradient / (self._offset_information + _OFFSET_PRECISION)
        self._offset += step.clip(-1.0, 1.0).astype(np.float32)

    def _learn(self) -> None:
        row, share, accepted = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting.clear()
        by_rank = _MORE_GENERAL[row]
        rows = np.concatenate((row, by_rank, _MORE_GENERAL[by_rank]))
        self._logistic.update(rows, np.tile(share, 3), np.tile(accepted, 3))

    def saw_level(self, depth: int, parent_mass: _Floats, child_mass: _Floats) -> None:
        """Note what a drafted level promised, for `mean_by_rank`.

        Args:
            depth: of the level, from 1.
            parent_mass: [NUM_CONFIDENCES] path probabilities of the nodes that were expanded, but for
                what others have named after them, summed by their confidence.
            child_mass: [NUM_CONFIDENCES, children] of their children, by rank too.
        """
        bucket = _depth_bucket(depth)
        kept = (1.0 - 1.0 / _LEVEL_WINDOW) ** parent_mass
        self._parent_mass[bucket] = self._parent_mass[bucket] * kept + parent_mass
        self._child_mass[bucket] *= kept[:, None]
        self._child_mass[bucket, :, : child_mass.shape[1]] += child_mass

    def mean_by_rank(self, depth: int) -> _Floats:
        """Expected acceptance of a level that is not drafted yet, parents accepted, nobody else's child
        sampled after them.

        What levels at that depth have promised after nodes of the same confidence, each node weighing
        as much as it was likely, and drawn towards the depth above while there is little. Of promises
        rather than of outcomes, because the nodes verified are the likelier ones.

        Args:
            depth: of the level, from 1.

        Returns:
            [NUM_CONFIDENCES, MAX_CHILDREN] float32, by the parent's confidence and by rank.
        """
        mean = np.tile(_PRIOR_BY_RANK, (NUM_CONFIDENCES, 1))
        for bucket in range(_depth_bucket(depth) + 1):
            mean = (self._child_mass[bucket] + _LEVEL_PRIOR * mean) / (
                self._parent_mass[bucket, :, None] + _LEVEL_PRIOR
            )
        return mean.astype(np.float32)


def _depth_bucket(depth: int) -> int:
    return int(_DEPTH_BUCKET[min(depth, len(_DEPTH_BUCKET) - 1)])


def _row(depth: _Ints, rank: _Ints, source: _Ints | int) -> _Rows:
    last_depth, last_rank = (length - 1 for length in _ROW.shape)
    row: _Rows = _ROW[np.minimum(depth, last_depth), np.minimum(rank, last_rank)]
    of_source: _Rows = row + _OF_SOURCE[np.minimum(source, NUM_SOURCES - 1)]
    return of_source
