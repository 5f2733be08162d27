"""Candidates that several sources have named, as one tree: who says what, how likely that makes each.

A node's children may come from a drafter, from n-grams, or from both. Each child has what speaks for
it in columns (`Evidence`). A logistic regression over `FEATURES` says how likely the target is to
sample it there. Children are ranked by that, and asked about one by one, as in `kernels.acceptance`.

The same features, with what the target really sampled, are what the regression learns from: every child
of a node that the text has passed is a label, verified or not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Who has named a candidate: GRAMMAR, where it is all that may come next. Others count on from there,
# and are learnt of together. Nothing is learnt of what is certain.
MODEL, NGRAM, BOTH, GRAMMAR = 0, 1, 2, 3
NUM_SOURCES = 4

# Of `features`, in their order: the weights of a regression are named by these.
FEATURES = (
    "constant",
    "model",  # the drafter has named it
    "model: logit",
    "model: not its first choice",
    "ngram",  # it has followed the text before
    "ngram: log length",  # of the match, up to its parent
    "ngram: logit of share",
    "ngram: log count",
    "both",
    "left by the model",  # log of the probability that the drafter gives to none of its choices
    "ngram alone",  # though the drafter was asked
    "no ngram: log length of the best",  # of its siblings' matches
    "no ngram: log number of ngrams",
    "depth",
    "sampled",  # at a temperature
    "sampled, model: logit",
    "sampled, ngram: log length",
    "both, model: logit",
    "both, ngram: log length",
    "both, ngram: logit of share",
    "both: not the model's first choice",
)


@dataclass(frozen=True)
class Evidence:
    """What speaks for each candidate, [num_reqs, capacity] each; columns as of the candidates."""

    model_prob: npt.NDArray[np.float32]  # what the drafter says, given the parent; 0 = not named
    model_rank: npt.NDArray[np.int32]  # among its choices after the parent
    match_len: npt.NDArray[np.int32]  # tokens before it that the text has had before; 0 = no n-gram
    count: npt.NDArray[np.int32]  # how often it has followed them
    share: npt.NDArray[np.float32]  # of the n-grams after its parent, as they are weighed
    accepted: npt.NDArray[np.float32]  # how likely it is if its parent is accepted
    is_expanded: npt.NDArray[np.bool_]  # whether the drafter was asked what comes after it

    @classmethod
    def none(cls, num_reqs: int, capacity: int) -> "Evidence":
        """Of candidates that nobody has named yet."""
        dtypes = np.float32, np.int32, np.int32, np.int32, np.float32, np.float32, np.bool_
        columns: list[npt.NDArray[Any]] = [np.zeros((num_reqs, capacity), dtype) for dtype in dtypes]
        return cls(*columns)

    @property
    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays, in the order of the fields; what `cpu` takes."""
        by_ngrams = self.match_len, self.count, self.share
        return self.model_prob, self.model_rank, *by_ngrams, self.accepted, self.is_expanded


@dataclass(frozen=True)
class SiblingScores:
    """What an `AcceptanceModel` makes of siblings: as in `kernels.acceptance`, by their source."""

    row_of: npt.NDArray[np.int64]  # [NUM_SOURCES, depths, ranks] a candidate's regression
    first: npt.NDArray[np.int64]  # [num_reqs] from where on each request's regressions are
    intercept: npt.NDArray[np.float32]  # [regressions]
    slope: npt.NDArray[np.float32]  # [regressions]
    offset: npt.NDArray[np.float32]  # [num_reqs] added to the intercepts


@dataclass(frozen=True)
class EvidenceScores:
    """What candidates of a batch are judged by."""

    weights: npt.NDArray[np.float64]  # [len(FEATURES)]
    siblings: SiblingScores | None  # None where policies take probabilities as they are
    is_sampled: npt.NDArray[np.bool_]  # [num_reqs] whether the target draws at a temperature
    chain_only: npt.NDArray[np.bool_]  # [num_reqs] one child a node at most

    def arguments(self) -> tuple[Any, ...]:
        """As `cpu.rank_children` takes them."""
        by = self.siblings
        if by is None:
            none = np.zeros(len(self.is_sampled), np.float32)
            rows = np.zeros((1, 1, 1), np.int64)
            by = SiblingScores(rows, none.astype(np.int64), none[:0], none[:0], none)
        of_siblings = self.siblings is not None, by.row_of, by.first, by.intercept, by.slope, by.offset
        return self.weights, self.is_sampled, self.chain_only, *of_siblings
