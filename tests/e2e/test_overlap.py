"""A drafter in a process of its own: whatever it does, and whenever, the text is plain decoding's.

python -m tests.e2e.test_overlap RESULT.json
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vllm_smart.growth.published import Beside
from vllm_smart.overlap.drafts import Miss
from vllm_smart.proposer import Candidates, GrowthWork

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[2]
NUM_PROMPTS, NUM_TOKENS = 12, 40
# Joins and leaves, chunked prefills, prefix hits, and so few blocks that requests are preempted.
SIZES = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256}
PREEMPTING = {"block_size": 32, "num_gpu_blocks_override": 12}
SHAPES = (
    {},
    {"temperature": 0.8},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    {"logprobs": 3},
    {"temperature": 0.8, "repetition_penalty": 1.3},
)


class Lockstep:
    """A placement that waits for whole trees."""

    def __init__(self, beside: Beside) -> None:
        self.beside = beside

    def submit(self, work: GrowthWork) -> GrowthWork:
        return self.beside.submit(work)

    def collect(self, work: GrowthWork) -> Candidates:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            waits = [req for req, found in work.source.found.items() if not self.is_whole(found)]
            if not waits:
                break
            time.sleep(1e-4)
            work.source.look_again(waits)
        return self.beside.collect(work)

    @staticmethod
    def is_whole(found) -> bool:
        return not isinstance(found, Miss) and found[0].is_done and found[1] == 0


class Drafter:
    """The drafter's process of an engine, to be disturbed."""

    def __init__(self, llm) -> None:
        from tests.e2e import controls

        self.speculator = controls.model_runner(llm).speculator
        self.remote, self.beside = self.speculator.drafter, self.speculator.growth.beside

    def lockstep(self, on: bool) -> None:
        """Have each step wait until the trees below its texts are as large as they get."""
        self.speculator.growth.placement = Lockstep(self.beside) if on else self.beside

    def signal_for(self, stop_s: float, run_s: float, until: threading.Event) -> None:
        """Stop and continue the process in turns."""
        while not until.is_set():
            os.kill(self.remote.pid, signal.SIGSTOP)
            time.sleep(stop_s)
            os.kill(self.remote.pid, signal.SIGCONT)
            time.sleep(run_s)


def main(result: Path) -> None:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_USE_V2_MODEL_RUNNER="1")
    from vllm import LLM, SamplingParams

    from tests.e2e import controls, scenarios

    base = {"model": scenarios.job("plain")["engine"]["model"], "dtype": "float32", **SIZES}
    base |= {"enforce_eager": True, "gpu_memory_utilization": 0.2, "seed": 0}
    chosen = [p for p in scenarios.prompts() if len(p) < SIZES["max_model_len"] - NUM_TOKENS]
    prompts = [{"prompt_token_ids": p} for p in chosen[-NUM_PROMPTS:]]
    params = [
        SamplingParams(
            **{"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": index}
            | SHAPES[index % len(SHAPES)]
        )
        for index in range(NUM_PROMPTS)
    ]

    def texts(llm) -> list[list[int]]:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    plain = LLM(**base)  # kept: what is left of an engine goes when it does
    report: dict = {"plain": texts(plain), "shm": sorted(os.listdir("/dev/shm"))}
    policy = {"name": "fixed_tree", "num_nodes": 10, "depth": 4, "width": 3, "children": 3}
    arguments = scenarios.with_trees("draft_model")
    smart = arguments["additional_config"]["smart"]
    smart["drafter"]["placement"] = "process"
    smart["cost_table"] = {"measure": "always", "budget_s": 2.0, "cache_dir": str(result.parent)}
    llm = LLM(**base, **PREEMPTING, **arguments, disable_log_stats=False)
    drafter, watch = Drafter(llm), controls.AcceptanceWatch.attach(llm)

    def run(name: str) -> None:
        watch.reset()
        before = controls.smart_counters(llm)
        told = texts(llm)
        counted = controls.smart_counters(llm)
        numbers = {
            key: counted[key] - before[key]
            for key in counted
            if key.startswith("overlap") and not isinstance(counted[key], dict)
        }
        report[name] = {"texts": told, **watch.summary(), "counters": numbers}

    run("by costs")
    controls.set_policy(llm, policy)
    run("free")
    drafter.lockstep(True)
    run("lockstep")
    drafter.lockstep(False)
    drafter.beside.max_wait_ms = 0.0
    run("never waits")
    drafter.beside.max_wait_ms = None
    until = threading.Event()
    thread = threading.Thread(target=drafter.signal_for, args=(0.009, 0.001, until))
    thread.start()
    run("slowed")
    until.set()
    thread.join()
    timer = threading.Timer(1.0, os.kill, (drafter.remote.pid, signal.SIGKILL))
    timer.start()
    run("killed")
    timer.join()
    deadline = time.monotonic() + 120
    while not drafter.remote.is_there and time.monotonic() < deadline:
        drafter.remote.watch()
        time.sleep(0.1)
    run("back")
    report["preemptions"] = next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    report["restarts"] = drafter.remote.num_restarts
    report["pid"] = drafter.remote.pid
    report["shm_after"] = sorted(os.listdir("/dev/shm"))
    result.write_text(json.dumps(report))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    result = tmp_path_factory.mktemp("overlap") / "result.json"
    command = [sys.executable, "-m", "tests.e2e.test_overlap", str(result)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(result.read_text())


RUNS = ("by costs", "free", "lockstep", "never waits", "slowed", "killed", "back")


@pytest.mark.parametrize("name", RUNS)
def test_the_text_is_plain_decodings(run, name):
    assert run[name]["texts"] == run["plain"]


def test_requests_were_preempted_meanwhile(run):
    assert run["preemptions"] > 5


def test_whole_trees_are_accepted_longer_than_those_of_a_slow_drafter(run):
    assert run["lockstep"]["num_accepted"] > 1.2 * run["slowed"]["num_accepted"]


@pytest.mark.parametrize("name", ["free", "never waits", "back"])
def test_what_was_drafted_beforehand_is_found_and_accepted(run, name):
    counted = run[name]["counters"]
    assert counted["overlap_hits"] > 20
    assert run[name]["num_accepted"] > 20


def test_a_step_that_may_not_wait_does_not(run):
    assert run["never waits"]["counters"]["overlap_wait_seconds"] == 0
    assert run["free"]["counters"]["overlap_wait_seconds"] > 0


def test_a_drafter_that_was_killed_is_missed_and_comes_back(run):
    assert run["restarts"] == 1
    assert run["killed"]["counters"]["overlap_misses"] > 10


def test_nothing_is_left_of_it(run):
    assert run["shm_after"] == run["shm"]
    assert not Path(f"/proc/{run['pid']}").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
