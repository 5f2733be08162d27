"""Reading a trace back, strictly: what does not fit is an error that names its line."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vllm_smart.errors import TraceError, first_fault
from vllm_smart.profiling import CostSamples
from vllm_smart.trace.records import (
    READ_VERSIONS,
    Costs,
    Decision,
    Drafted,
    Header,
    Outcome,
    Record,
    Verified,
)

logger = logging.getLogger("vllm.smart")

_KINDS: dict[str, type[Record]] = {
    "header": Header,
    "costs": Costs,
    "decision": Decision,
    "outcome": Outcome,
}


@dataclass(frozen=True)
class Step:
    """A decision and what came of it; None if the trace ends before, or its requests did."""

    decision: Decision
    outcome: Outcome | None


@dataclass(frozen=True)
class Trace:
    """A whole trace, in order."""

    header: Header
    steps: tuple[Step, ...]
    costs: CostSamples | None  # the latest, by which most was decided; None where none were known
    costs_since: int = 0  # the first step that was decided by them


def read_trace(path: Path) -> Trace:
    """Read a trace. A last line that a crash cut off is left out, with a warning.

    Raises:
        TraceError: naming the line and what is wrong with it.
    """
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise TraceError(f"trace {path} cannot be read ({error.strerror}).") from error
    lines = content.split(b"\n")
    cut_off = lines.pop()  # empty, unless the last line was not finished
    if cut_off:
        try:
            json.loads(cut_off)
            lines.append(cut_off)
        except ValueError:
            logger.warning("trace %s: line %d is cut off and left out.", path, len(lines) + 1)
    if not lines:
        raise TraceError(f"trace {path} is empty.")
    header: Header | None = None
    costs, costs_since = None, 0
    steps: dict[int, Step] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse(line)
            if isinstance(record, Header) or header is None:
                header = _first(record, number)
                costs = header.costs
            elif isinstance(record, Costs):
                costs, costs_since = record.costs, next(reversed(steps), -1) + 1
            elif isinstance(record, Decision):
                if steps and record.step <= next(reversed(steps)):
                    raise ValueError(f"step {record.step} follows step {next(reversed(steps))}")
                steps[record.step] = Step(record, None)
            else:
                steps[record.step] = _answered(steps.get(record.step), record)
        except ValueError as error:
            raise TraceError(f"trace {path}, line {number}: {error}.") from error
    assert header is not None
    return Trace(header, tuple(steps.values()), costs, costs_since)


def read_steps_after(path: Path, offset: int) -> tuple[Step, ...]:
    """The steps that were decided after the first `offset` bytes of a trace were written.

    For a trace that is still being written: the last lines may be missing, and outcomes of decisions
    before are left out.

    Args:
        path: the trace.
        offset: the file's size at some moment; may be in the middle of a line.

    Raises:
        TraceError: it cannot be read, or a line is wrong.
    """
    try:
        with path.expanduser().open("rb") as file:
            file.seek(max(0, offset - 1))  # so that what comes before the first new line is no line
            lines = file.read().split(b"\n")[bool(offset) : -1]
    except OSError as error:
        raise TraceError(f"trace {path} cannot be read ({error.strerror}).") from error
    steps: dict[int, Step] = {}
    for line in lines:
        try:
            record = _parse(line)
            if isinstance(record, Decision):
                steps[record.step] = Step(record, None)
            elif isinstance(record, Outcome) and record.step in steps:
                steps[record.step] = _answered(steps[record.step], record)
        except ValueError as error:
            raise TraceError(f"trace {path}, after byte {offset}: {error}.") from error
    return tuple(steps.values())


def _parse(line: bytes) -> Record:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, not one of {', '.join(_KINDS)}")
    if kind == "header" and content.get("schema_version") not in READ_VERSIONS:
        raise ValueError(
            f"schema_version is {content.get('schema_version')!r}; "
            f"this vllm_smart reads {', '.join(map(str, READ_VERSIONS))}"
        )
    try:
        return _KINDS[kind].model_validate_json(line)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error


def _first(record: Record, number: int) -> Header:
    if number > 1:
        raise ValueError("a second header; a trace has one, in line 1")
    if not isinstance(record, Header):
        raise ValueError("the first line must be a header")
    return record


def _answered(step: Step | None, outcome: Outcome) -> Step:
    """The step that `outcome` belongs to, with it."""
    if step is None or step.outcome is not None:
        raise ValueError(f"an outcome of step {outcome.step}, of which there is no open decision")
    decision = step.decision
    drafted = {request.request: request for request in decision.requests}
    for verified in outcome.requests:
        if verified.request not in drafted:
            raise ValueError(f"request {verified.request!r} is not among the decision's")
        _check_path(verified, drafted[verified.request])
    return Step(decision, outcome)


def _check_path(verified: Verified, drafted: Drafted) -> None:
    nodes, last = {0}, 0
    for node in verified.verified:
        if not 0 < node < len(drafted.parent) or int(drafted.parent[node]) not in nodes:
            raise ValueError(f"request {verified.request!r}: node {node} was verified without parent")
        nodes.add(node)
    for node in verified.accepted:
        if node not in nodes or drafted.parent[node] != last:
            raise ValueError(f"request {verified.request!r}: node {node} does not continue the path")
        last = node
    for node in verified.verified:
        if drafted.parent[node] == last and drafted.token[node] == verified.bonus_token:
            raise ValueError(f"request {verified.request!r}: the path must go on to node {node}")
