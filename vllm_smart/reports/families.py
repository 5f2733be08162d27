"""What is counted of steps, as data: the worker writes it, the front end exports it.

Names, units and labels follow Prometheus' conventions: base units, and `_total` after counters, which
its client adds.
"""

import math
from dataclasses import dataclass
from typing import Literal

from vllm_smart.overlap.drafts import Miss
from vllm_smart.scheduler import Rest

MAX_DEPTH = 16  # deeper nodes count as this deep
ERROR_EDGES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
# No node at all is below 0.5: Ray refuses an edge of 0.
NODE_EDGES = (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Label:
    """A label with all the values that it may have."""

    name: str
    values: tuple[str, ...]


# Requests of a step: "4" is 4 to 7, "0" is prompts alone.
BATCH = Label("batch", ("0", "1", "2", "4", "8", "16", "32", "64+"))
DEPTH = Label("depth", tuple(map(str, range(1, MAX_DEPTH + 1))))
# As `kernels.evidence` numbers them; the last one stands for all others.
SOURCE = Label("source", ("model", "ngram", "both", "grammar", "other"))
VERDICT = Label("verdict", ("allowed", "forbidden"))
WHY_UNMASKED = Label("reason", ("compiling", "failed"))
REASON = Label("reason", tuple(rest.value for rest in Rest))
MISS = Label("reason", tuple(miss.value for miss in Miss))
# Whether a step was predicted to take longer than it did, or not as long. Prometheus' histograms have
# no sum of values that may be below 0.
SIGN = Label("sign", ("over", "under"))
FACTOR = Label("of", ("verify", "draft", "context"))
_OVERHEADS = ("step", "request", "drafting", "drafting_request", "branching", "branching_request")
OVERHEAD = Label("of", _OVERHEADS)


def batch_place(num_requests: int) -> int:
    """The place of a batch of so many requests among the values of `BATCH`."""
    return min(num_requests.bit_length(), len(BATCH.values) - 1)


@dataclass(frozen=True)
class Family:
    """Numbers of one name."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: tuple[Label, ...] = ()
    edges: tuple[float, ...] = ()  # of a histogram: upper ends of its buckets, the last one left out

    @property
    def shape(self) -> tuple[int, ...]:
        """By labels; of a histogram [labels, 2, buckets]: counts, and sums of what was counted."""
        of_labels = tuple(len(label.values) for label in self.labels)
        return (*of_labels, 2, len(self.edges) + 1) if self.kind == "histogram" else of_labels

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


def _counter(name: str, text: str, *labels: Label) -> Family:
    return Family("counter", name, text, labels)


def _gauge(name: str, text: str, *labels: Label) -> Family:
    return Family("gauge", name, text, labels)


FAMILIES = (
    _counter("steps", "Target steps that ended with a decision about the next one.", BATCH),
    _counter("step_requests", "Requests of these steps that go on.", BATCH),
    _counter("steps_without_speculation", "Decisions to verify no draft node in the next step."),
    _counter("steps_without_drafting", "Steps in which no drafter ran, and why.", REASON),
    _counter("rows_read", "Tokens that the drafter has read."),
    _counter("draft_levels", "Levels drafted, the first of which comes with reading.", BATCH),
    _counter("unused_draft_levels", "Levels drafted of which no node was verified."),
    _counter(
        "chosen_nodes",
        "Draft nodes chosen; of requests that end, or are trimmed, not all are verified.",
        BATCH,
    ),
    _counter("chosen_trees", "Trees chosen that have a draft node.", BATCH),
    _counter("chosen_tree_levels", "Depths of these trees, added up.", BATCH),
    _counter("trees", "Trees verified; each brings a token besides its accepted nodes."),
    _counter("draft_nodes", "Draft nodes verified, by depth and by who has named them.", DEPTH, SOURCE),
    _counter("expected_nodes", "Of these, how many were expected to be accepted.", DEPTH, SOURCE),
    _counter("accepted_nodes", "Of these, how many were accepted.", DEPTH, SOURCE),
    _counter(
        "grammar_nodes", "Draft nodes of requests with a grammar, and what it says of them.", VERDICT
    ),
    _counter(
        "trees_without_grammar",
        "Trees grown as if their request had no grammar, and why the drafter did not know it.",
        WHY_UNMASKED,
    ),
    _counter("ngram_seconds", "Time spent on looking up n-grams."),
    _counter("overlap_hits", "Look-ups of requests whose next candidates were drafted beforehand."),
    _counter("overlap_misses", "Look-ups that found none, and why.", MISS),
    _counter("overlap_judged_lookups", "Look-ups whose hit was foreseen, one of a step."),
    _counter("overlap_foreseen_hits", "Of these, how many were expected to be hits."),
    _counter("overlap_judged_hits", "Of these, how many were hits."),
    _counter(
        "overlap_levels", "Levels that the drafter's process has run, passes of reading included."
    ),
    _counter("overlap_nodes", "Nodes that it has expanded, needed or not."),
    _counter("overlap_busy_seconds", "Time that this has taken, beside the target's steps."),
    _counter("overlap_wait_seconds", "Time that steps have waited for it."),
    _counter("overlap_restarts", "Times that it was started again after it had died."),
    _counter("step_seconds", "Time of steps, from their begin to the begin of the next.", BATCH),
    _counter(
        "plain_seconds",
        "Time that plain decoding would have taken for what these steps have emitted.",
        BATCH,
    ),
    _counter("predicted_step_seconds", "Predicted time of the steps that were predicted."),
    _counter("measured_step_seconds", "Measured time of the same steps."),
    _counter("jit_compilations", "Functions compiled while serving; requests waited for each."),
    Family("histogram", "step_draft_nodes", "Draft nodes chosen for a step.", edges=NODE_EDGES),
    Family(
        "histogram",
        "step_time_error_ratio",
        "How far the predicted time of a step was from the measured one, over or under it.",
        (SIGN,),
        ERROR_EDGES,
    ),
    _gauge("drafter_runs", "1 where drafting pays at present, 0 where plain decoding is faster."),
    _gauge("drafting_gain_ratio", "What drafting is expected to gain at present, over not drafting."),
    _gauge("cost_correction_ratio", "Factors of the cost table's times, by live steps.", FACTOR),
    _gauge("cost_correction_seconds", "Time of a step that no forward accounts for.", OVERHEAD),
    _gauge("table_nodes", "Nodes of a tree that the cost table gives a middling drafter.", BATCH),
    _gauge("table_speedup_ratio", "Speed-up that it expects of them.", BATCH),
)
NUM_VALUES = sum(family.size for family in FAMILIES)
INFO = Family("gauge", "engine_info", "1 for what the engine speculates by, 0 for what it did before.")
INFO_LABELS = ("version", "policy", "drafter", "table")
