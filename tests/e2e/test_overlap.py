"""A drafter in a process of its own: whatever it does, and whenever, the text is plain decoding's.

python -m tests.e2e.test_overlap RESULT.json
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.e2e import scenarios
from vllm_smart.growth.published import Beside, Found
from vllm_smart.overlap.drafts import Miss, PublishedTree
from vllm_smart.profiling.corrected_cost import CorrectedCost
from vllm_smart.proposer import Candidates, GrowthWork

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[2]
NUM_PROMPTS, NUM_TOKENS, STOPPED_S = 16, 40, 5.0
# As it reads prompts, grows trees, and is nearly done. The next one is killed while it starts.
KILLED_AFTER_S, NEXT_KILLED_S = (0.02, 0.3, 0.8), 0.3
# Joins and leaves, chunked prefills, prefix hits, and so few blocks that requests are preempted.
SIZES = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256}
PREEMPTING = {"block_size": 32, "num_gpu_blocks_override": 12}
SHAPES = (
    {},
    {"temperature": 0.8},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    {"logprobs": 3},
    {"stop": ["\n\n", "def "], "ignore_eos": False},
    {"temperature": 0.8, "repetition_penalty": 1.3},
    {"structured_outputs": scenarios.GRAMMAR["structured_outputs"], "ignore_eos": False},
)
# The first requests. An inline drafter knows grammars, and penalties of samples; a process does not.
SAME_DRAFTS = slice(0, len(SHAPES) - 2)
# One node of each level is expanded: the drafter's trees have it wherever they are whole.
NARROW = {"name": "fixed_tree", "num_nodes": 10, "depth": 3, "width": 1, "children": 4}
LARGEST = {"name": "fixed_tree", "num_nodes": scenarios.TREE["node_budget"]}
LARGEST |= {of: scenarios.TREE[of] for of in ("depth", "width", "children")}
WIDE = {**NARROW, "depth": 4, "width": 3}


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


class Oracle:
    """Finds what plain decoding has said, whatever the drafter thinks; or another token, if it errs."""

    def __init__(self, whole: list[list[int]], history: np.ndarray, errs: bool) -> None:
        self.whole = [np.array(text, np.int32) for text in whole]
        self.history, self.errs = history, np.int32(errs)

    def find(self, slot: int, end: int) -> Found:
        said = self.history[slot, : end + 1]
        for text in self.whole:
            if len(text) > len(said) and np.array_equal(text[: len(said)], said):
                token = text[len(said) : len(said) + WIDE["depth"]] ^ self.errs
                first = np.array([*range(1, len(token) + 1), -1], np.int32)
                prob = np.ones(len(first), np.float32)
                return PublishedTree(
                    0, len(said), True, 1, np.append(np.int32(-1), token), prob, first
                ), 0
        return Miss.NOT_EXPANDED


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

    def after(self, seconds: float, *signals: signal.Signals, apart_s: float = 0.0) -> threading.Thread:
        """Send it signals later."""

        def send() -> None:
            time.sleep(seconds)
            for number in signals:
                os.kill(self.remote.pid, number)
                time.sleep(apart_s)

        thread = threading.Thread(target=send)
        thread.start()
        return thread

    def come_back(self) -> None:
        deadline = time.monotonic() + 120
        while not self.remote.is_there and time.monotonic() < deadline:
            self.remote.watch()
            time.sleep(0.05)


def _ours_in_shared_memory() -> set[str]:
    """Names in shared memory, without what other processes have mapped: engines of other tests."""
    of_others = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if int(maps.parent.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended
                of_others += maps.read_text()
    return {name for name in os.listdir("/dev/shm") if f"/dev/shm/{name}" not in of_others}


def _with_dear_drafts(cost: CorrectedCost, num_requests: int, drafts: bool) -> float:
    """Half a plain step more where drafts are made, whatever this machine takes for them."""
    return 0.5 * drafts * cost.verify_ms(num_requests)


def main(result: Path) -> None:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_USE_V2_MODEL_RUNNER="1")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from tests.e2e import controls
    from vllm_smart.adapter.engine_settings import smart_config
    from vllm_smart.adapter.overlap import speculator

    base = {"model": scenarios.job("plain")["engine"]["model"], "dtype": "float32", **SIZES}
    base |= {"enforce_eager": True, "gpu_memory_utilization": 0.2, "seed": 0}
    chosen = [p for p in scenarios.prompts() if len(p) < SIZES["max_model_len"] - NUM_TOKENS]
    chosen = chosen[-NUM_PROMPTS:]
    chosen[1] = (chosen[1] * SIZES["max_model_len"])[: SIZES["max_model_len"] - NUM_TOKENS // 2]
    prompts = [{"prompt_token_ids": p} for p in chosen]
    params = []
    for index in range(NUM_PROMPTS):
        terms = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": index}
        terms |= SHAPES[index % len(SHAPES)]
        if "structured_outputs" in terms:
            grammar = StructuredOutputsParams(**terms["structured_outputs"])
            terms = {**terms, "structured_outputs": grammar}
        params.append(SamplingParams(**terms))

    def texts(llm, kept: slice = slice(None)) -> list[list[int]]:
        outputs = llm.generate(prompts[kept], params[kept], use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    report: dict = {}

    def run(name: str, llm, watch, kept: slice = slice(None)) -> None:
        watch.reset()
        before = controls.smart_counters(llm)
        begin = time.monotonic()
        told = texts(llm, kept)
        counted = controls.smart_counters(llm)
        numbers = {
            key: counted[key] - before[key]
            for key in counted
            if key.startswith("overlap") and not isinstance(counted[key], dict)
        }
        seconds = time.monotonic() - begin
        report[name] = {"texts": told, "seconds": seconds, "counters": numbers, **watch.summary()}
        print(f"{name}: {seconds:.1f} s, {numbers}, {watch.summary()}", flush=True)

    plain = LLM(**base)  # kept: what is left of an engine goes when it does
    report["plain"], shared_before = texts(plain), _ours_in_shared_memory()
    # With as much room set aside for drafts as the other engine has, or others are preempted.
    arguments = scenarios.with_trees("draft_model", LARGEST)
    smart = arguments["additional_config"]["smart"]
    smart["drafter"]["placement"] = "auto"
    smart["cost_table"] = {"cache_dir": str(result.parent)}
    inline = LLM(**base, **PREEMPTING, **arguments)
    report["chosen"] = smart_config(inline.llm_engine.vllm_config).drafter.placement
    controls.set_policy(inline, NARROW)
    run("inline", inline, controls.AcceptanceWatch.attach(inline), SAME_DRAFTS)
    arguments = scenarios.with_trees("draft_model")
    smart = arguments["additional_config"]["smart"]
    smart["drafter"]["placement"] = "process"
    smart["cost_table"] = {"measure": "always", "budget_s": 2.0, "cache_dir": str(result.parent)}
    # All nodes that there is room for are expanded: an inline drafter knows no such bound either.
    speculator.LEAST_PROB = 1e-30
    llm = LLM(**base, **PREEMPTING, **arguments, disable_log_stats=False)
    drafter, watch = Drafter(llm), controls.AcceptanceWatch.attach(llm)
    samples = drafter.speculator.runtime._table.samples
    report["timed beside"] = [size for size, _ in samples.slowed]

    run("by costs", llm, watch)
    controls.set_policy(llm, NARROW)
    drafter.lockstep(True)
    llm.reset_prefix_cache()  # as the inline drafter's engine: hits change which steps there are
    run("lockstep", llm, watch, SAME_DRAFTS)
    with controls.control(llm, "no compaction"):
        run("no compaction", llm, watch)
    drafter.lockstep(False)
    boards, find = drafter.speculator.growth.boards, drafter.speculator.growth.boards.find
    whole = [p["prompt_token_ids"] + said for p, said in zip(prompts, report["plain"], strict=True)]
    boards.find = Oracle(whole, boards._history, errs=False).find
    run("oracle", llm, watch)
    with mock.patch.object(CorrectedCost, "overhead_ms", _with_dear_drafts):
        for name, errs in (("paying oracle", False), ("erring oracle", True)):
            controls.set_policy(llm, {"name": "smart"})
            boards.find = Oracle(whole, boards._history, errs).find
            run(name, llm, watch)
    boards.find = find
    controls.set_policy(llm, WIDE)
    run("free", llm, watch)
    boards.find = lambda slot, end: find(slot, end - 1)
    run("a token behind", llm, watch)
    boards.find = find
    drafter.beside.max_wait_ms = 0.0
    run("never waits", llm, watch)
    drafter.beside.max_wait_ms = None
    until = threading.Event()
    thread = threading.Thread(target=drafter.signal_for, args=(0.009, 0.001, until))
    thread.start()
    run("slowed", llm, watch)
    until.set()
    thread.join()
    thread = drafter.after(0.2, signal.SIGSTOP, signal.SIGCONT, apart_s=STOPPED_S)
    run("stopped", llm, watch)
    thread.join()
    thread = drafter.after(0.5, signal.SIGKILL)
    run("killed", llm, watch)
    thread.join()
    drafter.come_back()
    run("back", llm, watch)
    thread = drafter.after(0.0, signal.SIGINT)  # which Python raises as an exception
    run("raising", llm, watch)
    thread.join()
    for seconds in KILLED_AFTER_S:
        drafter.come_back()
        drafter.remote._backoff_s = 0.0  # the next one starts at once
        thread = drafter.after(seconds, signal.SIGKILL, signal.SIGINT, apart_s=NEXT_KILLED_S)
        run(f"killed after {seconds} s", llm, watch)
        thread.join()
    report["preemptions"] = next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    report["restarts"] = drafter.remote.num_restarts
    report["pid"] = drafter.remote.pid
    report["left"] = sorted(_ours_in_shared_memory() - shared_before)
    result.write_text(json.dumps(report))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    result = tmp_path_factory.mktemp("overlap") / "result.json"
    command = [sys.executable, "-m", "tests.e2e.test_overlap", str(result)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(result.read_text())


WITH_A_DRAFTER = ("lockstep", "by costs", "free", "a token behind", "never waits", "slowed", "back")
IN_LOCKSTEP = ("inline", "lockstep")
AGAIN = tuple(f"killed after {seconds} s" for seconds in KILLED_AFTER_S)
WITHOUT_ONE = ("oracle", "paying oracle", "erring oracle", "stopped", "killed", "raising", *AGAIN)


@pytest.mark.parametrize("name", ["inline", *WITH_A_DRAFTER, *WITHOUT_ONE])
def test_the_text_is_plain_decodings(run, name):
    texts = run[name]["texts"]
    assert texts == run["plain"][: len(texts)]
    assert len(texts) == (SAME_DRAFTS.stop if name in IN_LOCKSTEP else NUM_PROMPTS)


def test_a_cache_that_is_left_as_it_was_changes_the_text(run):
    assert run["no compaction"]["texts"] != run["plain"]


def test_requests_were_preempted_meanwhile(run):
    assert run["preemptions"] > 12


def test_in_lockstep_the_process_drafts_what_an_inline_drafter_does(run):
    counted = ("num_trees", "num_accepted", "accepted_by_rank", "num_branching_steps", "num_moved")
    process, inline = ({of: run[name][of] for of in counted} for name in ("lockstep", "inline"))
    assert process == inline
    assert inline["num_accepted"] > 50


def test_what_was_not_measured_leaves_the_drafter_inline(run):
    assert run["chosen"] == "inline"


def test_an_engine_that_times_its_steps_times_them_beside_its_drafter_too(run):
    assert run["timed beside"][:3] == [1, 4, 16]


def test_whole_trees_are_accepted_longer_than_those_of_a_slow_drafter(run):
    per_token = {
        name: run[name]["num_accepted"] / sum(map(len, run[name]["texts"]))
        for name in ("lockstep", "slowed")
    }
    assert per_token["lockstep"] > 1.2 * per_token["slowed"]


@pytest.mark.parametrize("name", ["free", "never waits", "back"])
def test_what_was_drafted_beforehand_is_found_and_accepted(run, name):
    counted = run[name]["counters"]
    assert counted["overlap_hits"] > 20
    assert run[name]["num_accepted"] > 20


def test_a_step_that_may_not_wait_does_not(run):
    assert run["never waits"]["counters"]["overlap_wait_seconds"] == 0
    assert run["free"]["counters"]["overlap_wait_seconds"] > 0


def test_where_all_was_drafted_beforehand_steps_find_it_at_once(run):
    told = sum(map(len, run["plain"]))
    counted = run["oracle"]["counters"]
    # A request that ends by itself is looked up once more: nobody knows yet that it has.
    assert counted["overlap_misses"] <= sum(len(text) < NUM_TOKENS for text in run["plain"])
    assert counted["overlap_wait_seconds"] < 1e-3 * counted["overlap_hits"]
    assert run["oracle"]["num_accepted"] > 0.6 * told


def test_the_gate_ends_drafting_that_is_never_right(run):
    erring, paying = run["erring oracle"], run["paying oracle"]
    assert "0" not in erring["accepted_by_source"]  # but what grammars force
    told = sum(map(len, run["plain"]))
    assert erring["counters"]["overlap_hits"] < 0.6 * told
    # At the same price it goes on where it is right: most tokens are drafted ones.
    assert paying["num_accepted"] > 0.5 * told


def test_what_is_found_for_another_position_is_not_accepted(run):
    assert run["a token behind"]["num_accepted"] < 0.5 * run["free"]["num_accepted"]


@pytest.mark.parametrize("name", ["stopped", "killed", "raising"])
def test_a_drafter_that_is_not_there_is_missed(run, name):
    assert run[name]["counters"]["overlap_misses"] > 10


def test_a_drafter_that_was_killed_comes_back(run):
    assert run["restarts"] >= 1
    assert run["back"]["counters"]["overlap_hits"] > run["killed"]["counters"]["overlap_hits"]


def test_it_came_back_however_it_was_killed(run):
    # The last one may not have been there yet. On an idle machine the next signal kills a new process
    # as it starts, which is a restart more.
    assert run["restarts"] >= len(("killed", "raising", *AGAIN)) - 1
    assert sum(run[name]["counters"]["overlap_hits"] for name in AGAIN) > 0


def test_a_request_reached_the_longest_length(run):
    assert len(run["plain"][1]) == NUM_TOKENS // 2


def test_nothing_is_left_of_it(run):
    assert run["left"] == []
    assert not Path(f"/proc/{run['pid']}").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
