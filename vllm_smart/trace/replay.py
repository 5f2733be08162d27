"""What other policies would have made of the recorded steps: their tokens, and their time by a table.

Replayed are the steps in which every request drafted; each on its own, from the state that the
trace was in. Whether a policy's nodes are accepted is known exactly as far as the trace tells which
tokens followed; beyond, their recorded path_prob stands in. Times are the table's: drafting and
verification; if it is the trace's own, corrected as it was by then. A policy that may rest does so
where its gate would have, by these costs; what the drafter missed meanwhile is read afterwards. When
the gate asks for drafts of a few requests, all draft: a trace that is replayed knows no other steps.

A trace with n-grams is replayed with all of its sources or one of them, by what `Relearnt` makes of
these: how likely candidates were recorded to be was learnt from all of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from vllm_smart.config import PaperPolicyConfig, SmartConfig
from vllm_smart.config.settings import POLICIES
from vllm_smart.errors import TraceError
from vllm_smart.profiling import CostTable
from vllm_smart.trace.reader import Step, Trace
from vllm_smart.trace.relearnt import Sources
from vllm_smart.trace.replayer import Replayer
from vllm_smart.trace.verdicts import Continuation, continuations, emitted

_SIZE = {"chain": "num_tokens", "fixed_tree": "num_nodes"}  # the setting that NAME:SIZE gives


@dataclass(frozen=True)
class Replayed:
    """A policy's totals over the replayed steps."""

    policy: str
    num_steps: int
    num_rests: int  # steps of them in which the drafter did not run
    num_draft_nodes: int
    known_tokens: int  # bonus tokens included
    estimated_tokens: float  # expected of nodes whose verdict the trace does not tell
    predicted_ms: float
    plain_tokens: int  # the same steps without drafts
    plain_ms: float
    steps_beyond_record: int  # in which it wanted candidates that were not drafted

    @property
    def tokens(self) -> float:
        """Tokens emitted, known and estimated."""
        return self.known_tokens + self.estimated_tokens

    @property
    def speedup(self) -> float:
        """Over plain decoding, by the same table."""
        return self.tokens / self.predicted_ms * self.plain_ms / self.plain_tokens


def with_policy(config: SmartConfig, name: str) -> SmartConfig:
    """`config` under another policy.

    Args:
        config: of the trace.
        name: a policy's name; `chain:K` and `fixed_tree:N` say how many nodes. Anything else is
            as in `config` if that has the same policy, and at its default if not; a fixed_tree
            has the depth, width and children of `config.tree`.

    Raises:
        TraceError: there is no such policy.
    """
    kind, _, size = name.partition(":")
    if kind not in POLICIES or (size and kind not in _SIZE):
        raise TraceError(
            f"--policy {name!r} is no policy. Allowed: {', '.join(POLICIES)}; chain and fixed_tree "
            "also with a number of nodes, as in chain:5."
        )
    if kind == config.policy.name and not size:
        return config
    settings: dict[str, object] = {"name": kind}
    if kind == "fixed_tree":
        tree = config.tree
        settings |= {"depth": tree.depth, "width": tree.width, "children": tree.children}
        settings["num_nodes"] = tree.node_budget
    try:
        if size:
            settings[_SIZE[kind]] = int(size)
        policy = POLICIES[kind].model_validate(settings)
    except ValueError as error:
        raise TraceError(f"--policy {name!r}: {size!r} is not a possible number of nodes.") from error
    return config.model_copy(update={"policy": policy})


def recorded_costs(trace: Trace) -> CostTable:
    """The costs that the trace, or the last part of it, was decided by.

    Raises:
        TraceError: the trace's policy knew none.
    """
    if trace.costs is None:
        raise TraceError("the trace holds no costs: pass --table TABLE.json.")
    return CostTable(trace.costs)


def sources_of(trace: Trace, asked: str | None) -> Sources | None:
    """Whose candidates to replay.

    Args:
        trace: recorded steps.
        asked: `model`, `ngram` or `both`; None = all that there are.

    Returns:
        None where the drafter's candidates are all that there are, which are taken as recorded.

    Raises:
        TraceError: there is no such source, or the trace has no candidates of it.
    """
    if asked is not None and asked not in get_args(Sources):
        allowed = ", ".join(get_args(Sources))
        raise TraceError(f"--sources {asked!r} is no source. Allowed: {allowed}.")
    requests = (request for step in trace.steps for request in step.decision.requests)
    if not any(request.said is not None for request in requests):
        if asked in (None, "model"):
            return None
        raise TraceError(
            f"--sources {asked}: the trace has no n-grams. Record one with an `ngram:` block in the "
            "YAML, or leave --sources out."
        )
    if trace.header.config.drafter.method == "ngram":
        if asked in (None, "ngram"):
            return "ngram"
        raise TraceError(
            f"--sources {asked}: the trace was recorded without a drafter. Record one with "
            "`drafter: {method: eagle3, ...}` beside the `ngram:` block, or use --sources ngram."
        )
    return cast(Sources, asked or "both")


def replay(trace: Trace, name: str, table: CostTable, sources: str | None = None) -> Replayed:
    """Replay one policy.

    Args:
        trace: recorded steps.
        name: as for `with_policy`.
        table: costs; corrected as recorded where they are the trace's own.
        sources: as for `sources_of`.

    Raises:
        TraceError: there is no such policy, no such source, or no step to replay.
    """
    config = with_policy(trace.header.config, name)
    whose = sources_of(trace, sources)
    if isinstance(config.policy, PaperPolicyConfig) and whose in ("ngram", "both"):
        raise TraceError(
            f"--policy {name}: its rule is about one drafter's tree and knows no n-grams. Replay it "
            "with --sources model."
        )
    replayer = Replayer(config, table, whose)
    is_own = table.samples == trace.costs
    steps = []
    for step, followed in replayable(trace.steps, whose):
        corrects = is_own and step.decision.step >= trace.costs_since
        correction = step.decision.correction if corrects else None
        brought = emitted(step.decision, step.outcome)
        steps.append(replayer.replay(step.decision, followed, brought, correction))
    if not steps:
        raise TraceError("the trace has no step in which every request drafted: nothing to replay.")
    return Replayed(
        policy=name,
        num_steps=len(steps),
        num_rests=sum(step.rests for step in steps),
        num_draft_nodes=sum(step.num_draft_nodes for step in steps),
        known_tokens=sum(step.num_bonus + step.num_accepted for step in steps),
        estimated_tokens=sum(step.estimated for step in steps),
        predicted_ms=sum(step.predicted_ms for step in steps),
        plain_tokens=sum(step.num_bonus for step in steps),
        plain_ms=sum(step.plain_ms for step in steps),
        steps_beyond_record=sum(
            step.regrown is not None and step.regrown.beyond_record for step in steps
        ),
    )


def replayable(
    steps: Sequence[Step], sources: Sources | None
) -> Iterator[tuple[Step, dict[str, Continuation]]]:
    """Steps whose requests all drafted and that some requests followed up, and with what.

    N-grams alone are there in every step.
    """
    for step, followed in zip(steps, continuations(steps), strict=True):
        if (step.decision.drafting == "all" or sources == "ngram") and followed:
            yield step, followed


def report(rows: Iterable[Replayed]) -> Iterator[str]:
    """A table for people, one line per policy."""
    yield (
        f"{'policy':16} {'nodes/step':>10} {'tokens/step':>11} {'ms/step':>9} {'tokens/s':>9} "
        f"{'speedup':>8} {'rested':>7} {'estimated':>9} {'beyond':>7}"
    )
    for row in rows:
        steps = row.num_steps
        yield (
            f"{row.policy:16} {row.num_draft_nodes / steps:10.1f} {row.tokens / steps:11.2f} "
            f"{row.predicted_ms / steps:9.2f} {row.tokens / row.predicted_ms * 1e3:9.1f} "
            f"{row.speedup:8.2f} {row.num_rests / steps:7.1%} {row.estimated_tokens / row.tokens:9.1%} "
            f"{row.steps_beyond_record / steps:7.1%}"
        )


def summary(trace: Trace) -> str:
    """One line about what was recorded."""
    outcomes = [step.outcome for step in trace.steps if step.outcome is not None]
    tokens = sum(request.num_tokens for outcome in outcomes for request in outcome.requests)
    times = sorted(outcome.measured_ms for outcome in outcomes if outcome.measured_ms is not None)
    drafting = sum(step.decision.drafting == "all" for step in trace.steps)
    timed = f", median {times[len(times) // 2]:.2f} ms" if times else ""
    return (
        f"recorded under policy {trace.header.config.policy.name}: {len(trace.steps)} steps, "
        f"{drafting} of them drafted for all requests; "
        f"{tokens / max(len(outcomes), 1):.2f} tokens/step{timed}."
    )
