"""A campaign: configurations are checked; those that are accepted are started, beside plain vLLM."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.check import ACCEPTED, FAULT, check
from tests.fuzz.configurations import random_configuration
from tests.fuzz.requests import near, random_request

_ROOT = Path(__file__).parents[2]
_JOBS_PER_PROCESS = 8
_PROCESS_TIMEOUT_S = 900


@dataclass
class Campaign:
    """What was tried and what came of it. `faults` must be empty in the end."""

    outcomes: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    num_engines: int = 0
    num_requests: int = 0
    num_refused_requests: int = 0
    num_invalid_engines: int = 0  # plain vLLM does not start, or dies
    faults: list[dict[str, Any]] = field(default_factory=list)


def run(
    folder: Path,
    seed: int,
    num_configurations: int,
    num_engines: int,
    num_requests: int,
    deadline_s: float,
    keep: Callable[[Campaign], None] = lambda campaign: None,
) -> Campaign:
    """Check configurations 0, 1, ... of a seed; start the first accepted ones, with random requests.

    Args:
        folder: scratch; checkpoints are made here.
        seed: with a configuration's index, all that decides about it.
        num_configurations: checked without starting an engine.
        num_engines: most engines started.
        num_requests: of each.
        deadline_s: no engine is started later than so many seconds from now.
        keep: is given what there is so far, whenever there is more.
    """
    campaign, deadline = Campaign(), time.monotonic() + deadline_s
    outcomes, refusals = Counter[str](), Counter[str]()
    jobs = []
    for index in range(num_configurations):
        configuration = random_configuration(Random(f"{seed} {index}"))
        outcome, message = check(configuration, folder)
        outcomes[outcome] += 1
        if outcome == FAULT:
            campaign.faults.append({"index": index, "check": message, "configuration": configuration})
        elif outcome == ACCEPTED and len(jobs) < num_engines and not _needs_processes(configuration):
            jobs.append(_job(seed, index, configuration, num_requests))
        elif outcome != ACCEPTED:
            refusals[message[:120]] += 1
    campaign.outcomes, campaign.refusals = dict(outcomes), dict(refusals.most_common())
    while jobs and time.monotonic() < deadline:
        batch, jobs = jobs[:_JOBS_PER_PROCESS], jobs[_JOBS_PER_PROCESS:]
        jobs = [*_serve(batch, folder, campaign), *jobs]
        keep(campaign)
    return campaign


def _needs_processes(configuration: dict[str, Any]) -> bool:
    """Whether the engine has several ranks, or a process of its own: checked, but not started."""
    flags = configuration["flags"]
    return any(flags.get(f"{kind}_parallel_size", 1) > 1 for kind in ("tensor", "data")) or (
        "distributed_executor_backend" in flags
    )


def _job(seed: int, index: int, configuration: dict[str, Any], num_requests: int) -> dict[str, Any]:
    random = Random(f"{seed} {index} requests")
    longest = configuration["flags"].get("max_model_len", 256)
    requests = [random_request(random, longest) for _ in range(num_requests)]
    return {
        "index": index,
        "configuration": configuration,
        "requests": requests,
        "engines": ["ours", "plain"],
    }


def _serve(jobs: list[dict[str, Any]], folder: Path, campaign: Campaign) -> list[dict[str, Any]]:
    """Serve jobs in one process; returns those that it did not get to."""
    question, answer = folder / "jobs.jsonl", folder / "results.jsonl"
    question.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    answer.write_text("")
    command = [sys.executable, "-m", "tests.fuzz.serve", str(question), str(answer), str(folder)]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ}, stdout=errors, stderr=subprocess.STDOUT
        )
        try:
            process.wait(_PROCESS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for line in answer.read_text().splitlines():
        entry = json.loads(line)
        lines[entry["index"], entry["engine"]] = entry
    left = {job["index"]: job for job in jobs}
    for index in dict.fromkeys(index for index, _ in lines):
        job = left.pop(index)
        if _judge(job, lines, campaign, (folder / "stderr").read_text()[-2000:]):
            left[index] = {**job, "requests": [], "engines": ["plain"]}
    return list(left.values())


def _judge(
    job: dict[str, Any], lines: dict[tuple[int, str], dict[str, Any]], campaign: Campaign, errors: str
) -> bool:
    """Count what came of a job; whether it is open yet if plain vLLM can start this engine."""
    ours, plain = (lines.get((job["index"], engine), {}) for engine in ("ours", "plain"))
    where = {"index": job["index"], "configuration": job["configuration"]}
    if ours and "outputs" not in ours:
        campaign.faults.append({**where, "lost": ours.get("error", errors)})
        return True
    if not ours or "outputs" not in plain:
        if not ours and "outputs" not in plain:  # as lost as ours was
            campaign.faults.remove(next(f for f in campaign.faults if f["index"] == job["index"]))
        campaign.num_invalid_engines += "outputs" not in plain
        return False
    campaign.num_engines += 1
    campaign.num_requests += len(job["requests"])
    for request, expected, actual in zip(
        job["requests"], plain["outputs"], ours["outputs"], strict=True
    ):
        campaign.num_refused_requests += "refused" in actual
        for what in differences(request, expected, actual):
            fault = {"request": request, "differs": what, "plain": expected, "ours": actual}
            campaign.faults.append({**where, **fault})
    return False


def differences(
    request: dict[str, Any], expected: dict[str, Any], actual: dict[str, Any]
) -> Iterator[str]:
    """What of a request's result is not as plain vLLM's; an aborted request has none."""
    if "refused" in actual:
        return  # in a sentence, at admission
    if "refused" in expected:
        yield "plain refuses it"
        return
    if request["aborted"] is not None:
        return
    if not actual:
        yield "never finished"
        return
    for key in ("tokens", "text", "ends"):
        if actual[key] != expected[key]:
            yield key
    if not all(map(near, actual["logprobs"], expected["logprobs"])):
        yield "logprobs"
    if not near(actual["prompt_logprobs"], expected["prompt_logprobs"]):
        yield "prompt_logprobs"
