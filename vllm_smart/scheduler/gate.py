"""Whether to draft at all: off means that no forward of the drafter runs.

A step that does not draft costs what plain decoding costs, or what verifying n-grams costs where they
are worth it. Whether drafting would pay is told from recent trees: what they
promised, taken as a sample of what the present batch would promise.
"""

from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.profiling import StepCost
from vllm_smart.scheduler.budget import StepLoad

_NUM_TREES = 32  # remembered; about what one large batch brings, or a second of one request
_NUM_EXPLORED = 64  # trees after which their probabilities mean something
_NUM_KNOWN = 8  # the same, where acceptance was learnt before
_REVIEW_EVERY = 8  # steps between looks at an unchanged load
_PROBED_SHARE = 16  # one request in so many drafts in a probe
_PROBED_NODES = 2  # verified of each at least: what is never tried is never learnt
_MARGIN = 0.02  # gain that drafting must promise before it is taken up again
# Drafting steps until a look at what plain steps cost: at first, then twice as many as before. The last
# number at once where drafting gains so much that plain decoding cannot turn out to be faster.
_PLAIN_FIRST, _PLAIN_EVERY = 16, 512
_PLAIN_STEPS = 3  # of such a look: the first still verifies the trees drafted before it
_SURE_GAIN = 0.15
_PROMPT_STEPS, _MOST = 32, 0.8  # steps over which those with prompts are counted; what most of them are
_PROMPT_WINDOW = 2048.0  # emitted tokens over which prompts are counted
# Emitted tokens until most of a prompt is counted. What it brings comes after it: counted at once, many
# that come together would look as if they brought nothing.
_PROMPT_LAG = 512.0
# Steps off until the trees that said so are drawn anew, where n-grams are beside the drafter: what each
# is worth was told when little was known. Then so many times as many.
_EXPLORE_AGAIN, _MORE_RARELY = 64, 4


class Drafting(Enum):
    """Who drafts in a step."""

    ALL = "all"
    EXPLORE = "explore"  # all, and something is verified: too little is known to decide
    NONE = "none"
    PROBE = "probe"  # a few requests, so that what is known stays fresh

    @property
    def least_nodes(self) -> int:
        """Nodes of each tree that are verified whether they pay or not, if there are so many."""
        return 0 if self is Drafting.ALL else _PROBED_NODES


class Probes:
    """Which requests a probe drafts for: others each time."""

    def __init__(self) -> None:
        self._num_probes = 0

    def among(self, able: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A few of `able` [num_able], ascending as they are."""
        count = min(len(able), max(1, len(able) // _PROBED_SHARE))
        start = self._num_probes * count
        self._num_probes += 1
        chosen: npt.NDArray[np.int64] = able[(start + np.arange(count)) % max(len(able), 1)]
        return np.sort(chosen)


class Rest(Enum):
    """Why no drafter runs in a step."""

    PLAIN_IS_FASTER = "plain_is_faster"
    MEASURES_PLAIN = "measures_plain"  # drafting pays, and what plain steps cost is looked at
    # Only prompts are computed and nobody goes on, or who waits for a first token comes first.
    PROMPTS = "prompts"
    NGRAMS_SUFFICE = "ngrams_suffice"  # drafting pays, and adds too little to this step's n-grams
    SETTINGS = "settings"  # they allow no draft node
    # No request lets it draft, there is no drafter, or it had nothing to read.
    NO_CANDIDATES = "no_candidates"


class _Recent:
    """The latest trees of some kind: arrays of one value for each node, best first."""

    def __init__(self, *arrays: npt.NDArray[Any]) -> None:
        """Args:
        arrays: [_NUM_TREES, node_budget] each, zeros.
        """
        self.arrays = arrays
        self.count = 0
        self._next = 0

    def add(self, *rows: npt.NDArray[Any]) -> None:
        """Remember the last of these; [num_trees, <= node_budget] of each array."""
        rows = tuple(of_array[-_NUM_TREES:] for of_array in rows)
        num_trees = len(rows[0])
        at = (self._next + np.arange(num_trees)) % _NUM_TREES
        for array, of_array in zip(self.arrays, rows, strict=True):
            array[at] = 0
            array[at, : of_array.shape[1]] = of_array
        self._next = (self._next + num_trees) % _NUM_TREES
        self.count = min(self.count + num_trees, _NUM_TREES)


class DraftGate:
    """Turns drafting off where recent trees say that plain decoding is faster, and on again.

    Enters with a margin and leaves without one. Resuming is a ski-rental problem: it re-enters once the
    gain forgone equals what catching up on unread tokens costs. So a load that swings never costs more
    than twice what knowing it ahead would have. What the drafter reads of prompts counts as a share of
    each step where there are some to be read, and not once they are.
    """

    def __init__(
        self,
        cost: StepCost,
        node_budget: int,
        depth: int,
        probe_every: int,
        has_others: bool = False,
        gives_way: bool = True,
        sees_arrivals: bool = False,
    ) -> None:
        """Args:
        cost: measured costs.
        node_budget: most draft nodes of a request.
        depth: most levels of a tree.
        probe_every: steps without drafting after which a few requests draft.
        has_others: whether there are candidates without the drafter.
        gives_way: whether requests that wait for their first token may come first.
        sees_arrivals: whether those count who have arrived since the step was scheduled.
        """
        self._cost = cost
        self._probe_every = probe_every
        self._gives_way_to_prompts, self._sees_arrivals = gives_way, sees_arrivals
        self._prompt_share = 0.0  # of steps that compute prompts, of late
        self._explore_after = _EXPLORE_AGAIN if has_others else None
        self._num_off = 0  # steps in a row
        self._most_read = depth + 1  # rows of a request that has drafted in the step before
        shape = _NUM_TREES, node_budget
        self._drafted = _Recent(np.zeros(shape, np.float32), np.zeros(shape, np.int32))  # and depths
        self._undrafted = _Recent(np.zeros(shape, np.float32))  # what there was without the drafter
        # Rows per tree of each level after the first, moving means over drafting steps.
        self._rows = np.zeros(max(depth - 1, 0))
        self._ran = 1.0  # share of trees of late for which the drafter has run
        self._num_learnt = 0
        # Tokens that a request emits per step with trees, and so reads: as last expected.
        self._tokens_each = 2.0
        # Of late; as if tokens had been emitted without prompts before.
        self._num_emitted, self._prompt_rows = _PROMPT_WINDOW / 8, 0.0
        self._new_rows = 0.0  # of prompts, that are not counted yet
        # By depth drafted: running sums over merged trees.
        self._gains: list[npt.NDArray[np.float64]] | None = None
        self.is_on = True
        self.measures_plain = False  # whether the latest decision was a look at what plain steps cost
        self.gives_way = False  # whether it was to rest because of requests that wait
        self._since_probe = 0
        self.gain = 0.0  # of drafting over not drafting, relative, as last reviewed
        self._gain_ms = 0.0  # the same of the time of a step that does not draft
        self._let_go_ms = 0.0  # its sum while drafting was off
        self._since_plain = self._plain_left = 0
        self._plain_after = _PLAIN_FIRST
        self._since_review = 0
        self._reviewed = (0, False, False)  # what is looked at anew when it changes

    def knows_acceptance(self) -> None:
        """Probabilities mean something from the start: only what trees look like has to be seen."""
        self._num_learnt = max(self._num_learnt, _NUM_EXPLORED - _NUM_KNOWN)

    def decide(self, load: StepLoad, num_unread: int, num_prompt_rows: int) -> Drafting:
        """Who drafts for the next step.

        Args:
            load: of that step.
            num_unread: rows that the drafter would have to read first.
            num_prompt_rows: rows of prompts that the present step computes and the drafter will read.
        """
        self.measures_plain = False
        self._remember_prompts(load.num_requests, num_prompt_rows)
        self.gives_way = self._gives_way(load, num_unread, num_prompt_rows)
        if self.gives_way:
            return Drafting.NONE
        if load.num_requests == 0:
            return Drafting.ALL if self.is_on else Drafting.NONE
        if self._num_learnt < _NUM_EXPLORED:
            return Drafting.EXPLORE
        self._since_review += 1
        reads_prompts = num_prompt_rows > 0 or num_unread > self._most_read * load.num_requests
        situation = load.num_requests, load.num_prefill_tokens > 0, reads_prompts
        if situation != self._reviewed or self._since_review >= _REVIEW_EVERY:
            self._since_review, self._reviewed = 0, situation
            self._review(load, reads_prompts)
        if not self.is_on:
            self._let_go_ms = max(0.0, self._let_go_ms + self._gain_ms)
            pays = self.gain > _MARGIN
            self.is_on = pays and self._let_go_ms > self._cost.read_ms(num_unread, load.num_requests)
        if not self.is_on:
            return self._while_off()
        # Not where a prompt waits: it would be read later, in a step of its own.
        return self._while_on(may_look=not reads_prompts)

    def _gives_way(self, load: StepLoad, num_unread: int, num_prompt_rows: int) -> bool:
        """Whether requests that wait would lose more by drafting than the others gain.

        A step that computes prompts is long, and who arrives meanwhile waits for its end. If somebody
        does, or nobody would know, the drafter rests in such steps, unless most are; and if it would
        have less to read of the prompts later.
        """
        self._prompt_share += ((num_prompt_rows > 0) - self._prompt_share) / _PROMPT_STEPS
        if not self._gives_way_to_prompts:
            return False
        if num_prompt_rows and self._prompt_share < _MOST:
            reads_more = num_unread > num_prompt_rows + self._most_read * load.num_requests
            if load.num_waiting or reads_more or not self._sees_arrivals:
                return True
        if not load.num_waiting:
            return False
        if load.num_requests == 0:
            return True
        if self._num_learnt < _NUM_EXPLORED or not self.is_on:
            # What is learnt serves all steps to come, so it may cost something, but not most of them.
            return load.num_waiting >= load.num_requests
        return self._drafting(load, num_unread)[0] <= self._at_rest(load)[0]

    def _remember_prompts(self, num_requests: int, num_rows: int) -> None:
        num_tokens = num_requests * (self._tokens_each if self.is_on else 1.0)
        kept = max(0.0, 1.0 - num_tokens / _PROMPT_WINDOW)
        self._num_emitted = self._num_emitted * kept + num_tokens
        due = self._new_rows * min(1.0, num_tokens / _PROMPT_LAG)
        self._prompt_rows = self._prompt_rows * kept + due
        self._new_rows += num_rows - due

    def _while_on(self, may_look: bool) -> Drafting:
        self._since_probe = self._num_off = 0
        self._since_plain += 1
        is_time = self._since_plain >= (self._plain_after if self.gain < _SURE_GAIN else _PLAIN_EVERY)
        if is_time and may_look:
            self._since_plain, self._plain_left = 0, _PLAIN_STEPS
            self._plain_after = min(2 * self._plain_after, _PLAIN_EVERY)
        if self._plain_left:
            self._plain_left -= 1
            self.measures_plain = True
            return Drafting.NONE
        return Drafting.ALL

    def _while_off(self) -> Drafting:
        self._since_probe += 1
        self._num_off += 1
        if self._num_off == self._explore_after:
            self._explore_after *= _MORE_RARELY
            self._num_off = self._since_probe = 0
            self._num_learnt = _NUM_EXPLORED - _NUM_TREES
            self._since_review = _REVIEW_EVERY  # once they are drawn
            return Drafting.EXPLORE
        if self._since_probe < self._probe_every:
            return Drafting.NONE
        self._since_probe = 0
        return Drafting.PROBE

    def _review(self, load: StepLoad, reads_prompts: bool) -> None:
        # By what it is in the long run: who waits now has a say in this step alone.
        load = replace(load, num_waiting=0)
        rest_rate, rest_ms = self._at_rest(load)
        gain = self.expected_rate(load) / rest_rate - 1.0
        if gain < 0.0 and self.is_on and not reads_prompts:
            # The prompts of those who decode are read. Others are a question once they are there.
            gain = self.expected_rate(load, counts_prompts=False) / rest_rate - 1.0
        self.gain, self._gain_ms = gain, gain * rest_ms
        if self.is_on and gain < 0.0:
            self.is_on, self._let_go_ms = False, 0.0

    def _at_rest(self, load: StepLoad) -> tuple[float, float]:
        """The rate, and milliseconds, of the best step without the drafter; as `PrefixRule` has it."""
        share = load.num_requests / max(self._undrafted.count, 1)
        gains = _gains(self._undrafted.arrays[0][: self._undrafted.count])
        nodes = np.ceil(share * np.arange(len(gains))).astype(np.int64)
        ms = load.verify_ms(self._cost, nodes) + self._cost.overhead_ms(load.num_requests, drafts=False)
        rate = (load.num_served + share * gains) / ms
        best = int(rate.argmax())
        return float(rate[best]), float(ms[best])

    def expected_rate(self, load: StepLoad, counts_prompts: bool = True) -> float:
        """The rate of the best step, if all requests draft trees like recent ones.

        Or only their first levels: a batch of another size may stop earlier.

        Args:
            load: of the step.
            counts_prompts: whether each step pays its share of the prompts that are read now and then.
        """
        # Whoever drafts also reads the prompts, which are never read while nobody does.
        rows_each = 1.0 + counts_prompts * self._prompt_rows / self._num_emitted
        num_read = self._tokens_each * load.num_requests * rows_each
        rate, tokens = self._drafting(load, round(num_read))
        self._tokens_each = tokens / load.num_requests
        return rate

    def _drafting(self, load: StepLoad, num_read: int) -> tuple[float, float]:
        """The rate of the best step that drafts, and its tokens.

        Args:
            num_read: rows that the drafter reads first.
        """
        share = load.num_requests / self._drafted.count  # requests that each tree stands for
        spent_ms = self._cost.overhead_ms(load.num_requests, drafts=True)
        spent_ms += self._ran * self._cost.read_ms(num_read, load.num_requests)
        best_rate, best_tokens = 0.0, float(load.num_requests)
        for level, gains in enumerate(self._gains_by_depth()):
            if level:  # the first comes with what is read
                rows = self._rows[level - 1] * load.num_requests
                if rows < 0.5:
                    break
                spent_ms += self._ran * self._cost.draft_ms(round(rows))
            tokens = load.num_requests + share * gains
            nodes = np.ceil(share * np.arange(len(gains))).astype(np.int64)
            rate = (load.num_waiting + tokens) / (load.verify_ms(self._cost, nodes) + spent_ms)
            best = int(rate.argmax())
            if rate[best] > best_rate:
                best_rate, best_tokens = float(rate[best]), float(tokens[best])
        return best_rate, best_tokens

    def _gains_by_depth(self) -> list[npt.NDArray[np.float64]]:
        if self._gains is None:
            trees, depths = (array[: self._drafted.count] for array in self._drafted.arrays)
            self._gains = []
            for depth in range(1, len(self._rows) + 2):
                self._gains.append(_gains(trees[depths <= depth]))
        return self._gains

    def saw_undrafted(self, prob: npt.NDArray[np.float32]) -> None:
        """Remember what there was without the drafter, whether it ran or not.

        Args:
            prob: [num_reqs, <= node_budget] path_prob, best first.
        """
        self._undrafted.add(prob)

    def learn(
        self,
        prob: npt.NDArray[np.float32],
        depth: npt.NDArray[np.int32],
        num_rows: npt.NDArray[np.int64],
    ) -> None:
        """Remember what was drafted.

        Args:
            prob: [num_trees, <= node_budget] path_prob, best first.
            depth: of the same nodes.
            num_rows: [< depth] rows of each level after the first.
        """
        num_trees, num_known = len(prob), self._drafted.count
        self._num_learnt += num_trees
        self._drafted.add(prob, depth)
        per_tree = np.zeros_like(self._rows)
        per_tree[: len(num_rows)] = num_rows / max(num_trees, 1)
        weight = min(max(num_trees / _NUM_TREES, 1 / (num_known + 1)), 1.0)
        self._rows += weight * (per_tree - self._rows)
        self._ran += weight * (1.0 - self._ran)
        self._gains = None

    def did_without(self, prob: npt.NDArray[np.float32], depth: npt.NDArray[np.int32]) -> None:
        """Remember the trees of a step that would have drafted, had they not been enough.

        Args: as for `learn`.
        """
        weight = min(len(prob) / _NUM_TREES, 1.0)
        self._drafted.add(prob, depth)
        self._ran -= weight * self._ran
        self._gains = None


def _gains(prob: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Tokens that the 0, 1, 2, ... likeliest of some nodes promise together, of any shape."""
    together = np.sort(prob[prob > 0], axis=None)[::-1]
    return np.concatenate(([0.0], np.cumsum(together, dtype=np.float64)))
