"""A server under a load that changes for an hour: nothing is lost, nothing grows, text is plain's.

    OMP_NUM_THREADS=1 python -m tests.soak --minutes 60 --out docs/results/soak.json

The shipped pair with EAGLE-3 and n-grams, compiled, with so few KV blocks that requests are preempted.
Plain vLLM answers a pool of requests first, in this process. Then clients ask for them again and again,
none to more of them than there are seats, in phases of half a minute. Some hang up amid an answer, the
settings are edited every half minute, at times to something that cannot be, and three times a process
of clients is killed. Between cycles, with nobody there, it is counted what the server holds.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil
import yaml

from tests.e2e import scenarios
from tests.e2e.serving import MAX_MODEL_LEN, engine_totals, metrics_text, serving
from tests.fuzz.serve import serve
from vllm_smart.demo_model import demo_model_paths

_NUM_REQUESTS, _MOST_TOKENS = 160, 120
_SEATS, _NUM_BLOCKS = 8, 12  # of 128 tokens: three requests of full length
_CLIENTS = (0, 1, 2, 4, 8, 24, 2, 16, 1)  # of each phase of a cycle
_PHASE_S = 30.0
_HUNG_UP = 0.15  # of all requests
_KILLS, _KILLED_CLIENTS = 3, 8
_MOST_GROWTH = 1.02  # of memory from the second third to the last one
_SHAPES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.8, "repetition_penalty": 1.3},
    {"temperature": 0.0, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 0.0, "stop": ["\n\n", "def "]},
    {"temperature": 0.0, "structured_outputs": scenarios.GRAMMAR["structured_outputs"]},
)
_TREE = {"node_budget": 16, "depth": 5, "width": 4, "children": 4}
_SETTINGS: dict[str, Any] = {
    "drafter": {"method": "eagle3", "model": "demo:eagle3"},
    "ngram": {"max_nodes": 16},
    "tree": _TREE,
    "policy": {"name": "smart"},
}
_EDITS: tuple[dict[str, Any], ...] = (
    {"policy": {"name": "fixed_tree", "num_nodes": 12, "depth": 5, "width": 4, "children": 4}},
    {"policy": {"name": "chain", "num_tokens": 4}},
    {"tree": {**_TREE, "depth": "deep"}},  # is refused, and the chain goes on
    {"policy": {"name": "off"}},
    {"tree": {**_TREE, "node_budget": 4}, "acceptance": {"window": 300}},
    {},
)


def pool() -> list[dict[str, Any]]:
    """Requests for `tests.fuzz.serve`, which all join at once."""
    random, prompts = Random(0), scenarios.prompts()
    requests = []
    for index in range(_NUM_REQUESTS):
        shape = _SHAPES[index % len(_SHAPES)]
        params = {**shape, "max_tokens": random.randrange(8, _MOST_TOKENS), "seed": index}
        params["ignore_eos"] = "stop" not in shape and "structured_outputs" not in shape
        prompt = random.choice(prompts)[: MAX_MODEL_LEN - _MOST_TOKENS]
        requests.append({"prompt": prompt, "params": params, "joins": 0, "aborted": None})
    return requests


def plain_answers(requests: list[dict[str, Any]]) -> list[list[int]]:
    """Tokens that plain vLLM answers to each, on the runner of our servers."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    arguments = {"model": str(demo_model_paths()["target"]), "dtype": "float32", "max_num_seqs": 16}
    arguments |= {"max_model_len": MAX_MODEL_LEN, "gpu_memory_utilization": 0.3}
    return [output["tokens"][0] for output in serve(arguments, requests, set())]


class Soak:
    """The clients of one server, and what they saw."""

    def __init__(
        self, address: str, requests: list[dict[str, Any]], answers: list[list[int]], settings: Path
    ) -> None:
        from openai import AsyncOpenAI

        self._address, self._requests, self._answers = address, requests, answers
        self._settings = settings
        self._client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        self._random = Random(1)
        self._edits = itertools.cycle(_EDITS)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.idle: list[dict[str, Any]] = []

    async def run(self, minutes: float) -> None:
        """Cycles of phases until the time is over."""
        begin, end = time.monotonic(), time.monotonic() + 60 * minutes
        kills = [begin + 60 * minutes * (i + 0.5) / _KILLS for i in range(_KILLS)]
        while time.monotonic() < end:
            for num_clients in _CLIENTS:
                self._edit()
                until = time.monotonic() + _PHASE_S
                phase = [self._ask_until(until) for _ in range(num_clients)]
                if kills and time.monotonic() > kills[0] and num_clients:
                    kills.pop(0)
                    phase.append(self._kill_clients())
                await asyncio.gather(asyncio.sleep(_PHASE_S / 3), *phase)
            await self._count_idle(time.monotonic() - begin)

    async def _ask_until(self, until: float) -> None:
        while time.monotonic() < until:
            index = self._random.randrange(len(self._requests))
            hangs_up = self._random.random() < _HUNG_UP
            try:
                await self._ask(index, self._random.randrange(1, 20) if hangs_up else None)
            except Exception as error:  # whatever a client sees is what is looked for
                self.faults.append(f"request {index}: {type(error).__name__}: {error}"[:500])
            await asyncio.sleep(self._random.expovariate(2.0))

    async def _ask(self, index: int, most_chunks: int | None) -> None:
        stream = await self._client.completions.create(**body(self._requests[index]), stream=True)
        tokens: list[int] = []
        async with stream:
            for_chunks = itertools.count(1)
            async for chunk in stream:
                for choice in chunk.choices:
                    tokens += choice.token_ids or ()
                if most_chunks is not None and next(for_chunks) > most_chunks:
                    self.counts["hung_up"] += 1
                    break
        expected = self._answers[index]
        is_whole = most_chunks is None or tokens == expected
        self.counts["finished"] += is_whole
        self.counts["tokens"] += len(tokens)
        if tokens != (expected if is_whole else expected[: len(tokens)]):
            self.counts["differing"] += 1
            self.faults.append(f"request {index} ({self._requests[index]['params']}) differs: {tokens}")

    def _edit(self) -> None:
        settings = {**_SETTINGS, **next(self._edits)}
        written = self._settings.with_suffix(".new")
        written.write_text(yaml.safe_dump(settings))
        written.replace(self._settings)
        self.counts["edits"] += 1

    async def _kill_clients(self) -> None:
        asked = [body(request) for request in self._requests[:_KILLED_CLIENTS]]
        arguments = (self._address, [{**one, "max_tokens": 300} for one in asked])
        process = multiprocessing.get_context("spawn").Process(target=stream_all, args=arguments)
        process.start()
        await asyncio.sleep(_PHASE_S / 3)
        if not process.is_alive():
            self.faults.append("the clients that were to be killed had ended")
        process.kill()
        process.join()
        self.counts["killed_clients"] += _KILLED_CLIENTS

    async def _count_idle(self, at_s: float) -> None:
        deadline = time.monotonic() + 60.0
        while True:
            await self._ask(0, None)  # gauges are of the last step
            await asyncio.sleep(1.5)  # and the page looks once a second
            totals = engine_totals(metrics_text(self._address), 0)
            running = totals["vllm:num_requests_running"] + totals["vllm:num_requests_waiting"]
            if not running or time.monotonic() > deadline:
                break
        processes = _server_processes(self._address)
        row = {
            "at_s": round(at_s),
            "requests_left": running,
            "kv_cache_used": totals["vllm:kv_cache_usage_perc"],
            "preemptions": totals["vllm:num_preemptions_total"],
            "accepted_nodes": totals["vllm_smart:accepted_nodes_total"],
            "rss_mib": round(sum(p.memory_info().rss for p in processes) / 2**20, 1),
            "open_files": sum(p.num_fds() for p in processes),
            "threads": sum(p.num_threads() for p in processes),
            "processes": len(processes),
        }
        self.idle.append(row)
        print(json.dumps({**row, **self.counts, "faults": len(self.faults)}), flush=True)

    def judge(self, log: str) -> None:
        """Add to the faults what the server has kept, and what its `log` says."""
        self.faults += leaks(self.idle)
        self.counts["edits_taken_over"] = log.count("in effect.")
        self.counts["edits_refused"] = log.count("changes nothing")
        wanted = ["finished", "hung_up", "killed_clients", "edits_taken_over", "edits_refused"]
        self.faults += [f"{name}: none" for name in wanted if not self.counts[name]]
        self.faults += [line for line in log.splitlines() if "ERROR" in line or "Traceback" in line]


def leaks(idle: list[dict[str, Any]]) -> Iterator[str]:
    """What was lost by counts taken with nobody there, oldest first."""
    for row in idle:
        if row["requests_left"] or row["kv_cache_used"]:
            yield f"after {row['at_s']} s: {row['requests_left']} requests and KV blocks are held"
    third = len(idle) // 3
    if not third:
        yield "too short for what grows"
        return
    if not idle[-1]["preemptions"]:
        yield "nothing was preempted"
    before, last = idle[third:-third], idle[-third:]
    for name, most in (("rss_mib", _MOST_GROWTH), ("open_files", 1.0), ("threads", 1.0)):
        was, is_now = (median(row[name] for row in rows) for rows in (before, last))
        if is_now > was * most:
            yield f"{name} grew from {was} to {is_now}"


def body(request: dict[str, Any]) -> dict[str, Any]:
    """Of the server's completions."""
    known = ("temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty")
    params = request["params"]
    asked = {key: params[key] for key in (*known, "frequency_penalty") if key in params}
    beyond = {key: value for key, value in params.items() if key not in asked}
    beyond["return_token_ids"] = True
    return {"model": "demo", "prompt": request["prompt"], **asked, "extra_body": beyond}


def stream_all(address: str, bodies: list[dict[str, Any]]) -> None:
    """Ask for all at once, and read slowly until killed."""
    from openai import AsyncOpenAI

    async def read(client: AsyncOpenAI, one: dict[str, Any]) -> None:
        while True:
            async for _ in await client.completions.create(**one, stream=True):
                await asyncio.sleep(0.05)

    async def read_all() -> None:
        client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none")
        await asyncio.gather(*(read(client, one) for one in bodies))

    asyncio.run(read_all())


def _server_processes(address: str) -> list[psutil.Process]:
    port = int(address.rsplit(":", 1)[1])
    (server,) = (
        process
        for process in psutil.Process().children()
        if any(c.laddr.port == port for c in process.net_connections() if c.status == "LISTEN")
    )
    return [server, *server.children(recursive=True)]


def main() -> None:
    """Serve, load, judge; the exit status is 1 if there were faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    requests = pool()
    answers = plain_answers(requests)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = folder / "smart.yaml"
        settings.write_text(yaml.safe_dump(_SETTINGS))
        engine = {
            "speculative_config": {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 16},
            "additional_config": {"smart": {"config": str(settings)}},
            "num_gpu_blocks_override": _NUM_BLOCKS,
            "max_num_seqs": _SEATS,
        }
        with serving(folder, engine) as address:
            soak = Soak(address, requests, answers, settings)
            asyncio.run(soak.run(args.minutes))
        soak.judge((folder / "log").read_text())
    report = {"minutes": args.minutes, "counts": soak.counts, "idle": soak.idle, "faults": soak.faults}
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"counts": soak.counts, "faults": soak.faults}, indent=1))
    sys.exit(bool(soak.faults))


if __name__ == "__main__":
    main()
