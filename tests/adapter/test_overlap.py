"""The drafter's process from outside: its cores, its end, and how its worker takes that."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vllm_smart.config import AcceptanceConfig
from vllm_smart.overlap.drafts import DraftBoard, Miss
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.truth import Terms, TruthBoard, TruthReader
from vllm_smart.scheduler import AcceptanceModel
from vllm_smart.step import StepResult

pytestmark = pytest.mark.vllm

_CHILD = """
import os, time
from vllm_smart.adapter.overlap.drafter_process import end_with
end_with(os.getppid())
time.sleep(60)
"""
_PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}], process_group=0)
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stopped", [False, True])
def test_a_drafter_does_not_outlive_a_worker_that_is_killed(stopped):
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1.0)  # until it watches
    assert is_running(child)
    if stopped:
        os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


@pytest.fixture
def four_cores(monkeypatch):
    import torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in ("OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("cores", "threads", "chosen"),
    [(None, 1, []), (None, 2, []), ([3], 1, [3]), ([2, 3], 2, [2, 3])],
)
def test_cores_that_the_target_leaves_are_the_drafters(four_cores, cores, threads, chosen):
    from vllm_smart.adapter.overlap.remote_drafter import choose_cores

    assert choose_cores(cores, threads) == chosen


@pytest.mark.parametrize(
    ("cores", "threads", "message"),
    [
        (
            [1, 2, 3],
            3,
            r"cores=\[1, 2, 3\] overlap .* 2 threads .*OMP_NUM_THREADS.* inline",
        ),
        ([4], 1, r"cores=\[4\]: this process may not run on core 4. Choose among \[0, 1, 2"),
        (
            None,
            3,
            "placement='process': of 4 cores, the target's 2 threads leave 2, and .* has 3.* inline",
        ),
    ],
)
def test_cores_that_the_target_needs_are_refused(four_cores, cores, threads, message):
    from vllm_smart.adapter.overlap.remote_drafter import choose_cores
    from vllm_smart.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        choose_cores(cores, threads)


BOUND = {
    "OMP_PLACES": "{0,1}",
    "GOMP_CPU_AFFINITY": "0 1",
    "KMP_AFFINITY": "granularity=fine,explicit,proclist=[0,1]",
}


@pytest.mark.parametrize("name", BOUND)
def test_the_drafter_keeps_off_cores_that_the_target_is_bound_to(four_cores, monkeypatch, name):
    from vllm_smart.adapter.overlap.remote_drafter import choose_cores
    from vllm_smart.errors import ConfigError

    monkeypatch.setenv(name, BOUND[name])
    assert choose_cores(None, 1) == [3]
    assert choose_cores(None, 2) == [2, 3]
    assert choose_cores([2], 1) == [2]
    for cores, threads in (([1, 2], 2), (None, 3)):
        with pytest.raises(ConfigError, match="VLLM_CPU_OMP_THREADS_BIND"):
            choose_cores(cores, threads)


def auto_engine(folder: Path) -> Any:
    """The configuration of an engine that decides by tables in `folder`, as its worker gets it."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.demo_model import demo_model_paths
    from vllm_smart.plugin import register

    register()
    drafter = {"method": "draft_model", "model": "demo:draft", "placement": "auto"}
    return EngineArgs(
        model=str(demo_model_paths()["target"]),
        max_model_len=256,
        speculative_config={"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 8},
        additional_config={"smart": {"drafter": drafter, "cost_table": {"cache_dir": str(folder)}}},
    ).create_engine_config()


def test_a_worker_chooses_by_the_tables_of_its_own_engine(four_cores, tmp_path, monkeypatch):
    from tests.unit.growth.test_placement_choice import PAYS, inline
    from tests.unit.table_keys import save
    from vllm_smart.adapter import cost_tables, engine_settings
    from vllm_smart.adapter.overlap.settle_placement import settle_placement
    from vllm_smart.profiling import TableKey

    said: list[str] = []
    logger = SimpleNamespace(info=lambda text, *values: said.append(text % values))
    monkeypatch.setattr(engine_settings, "logger", logger)
    monkeypatch.setattr(cost_tables, "get_tp_group", lambda: SimpleNamespace(cpu_group=None))
    monkeypatch.setattr(cost_tables, "_node_count", lambda group: 1)

    def settled() -> tuple[str, str, TableKey]:
        engine = auto_engine(tmp_path)
        asked = engine_settings.smart_config(engine)
        placement = settle_placement(engine, asked).drafter.placement
        assert engine_settings.smart_config(engine).drafter.placement == placement
        return placement, said[-1], cost_tables.table_key(engine)

    placement, why, key = settled()
    assert placement == "inline"
    assert "costs of an inline drafter and of a target that its drafter drafts beside were not" in why
    assert key.threads == (2, None)
    save(PAYS.inline, key, tmp_path)
    of_beside = key.model_copy(update={"drafter": TableKey.drafter_beside(key.drafter, 1)})
    save(PAYS.beside, of_beside, tmp_path)
    placement, why, key = settled()
    assert placement == "process"
    assert "drafter.placement is process: drafting beside the target is 1." in why
    assert key == of_beside
    more = of_beside.model_copy(
        update={"drafter": key.drafter.partition(" ")[0], "device": key.device.replace("(2", "(3")}
    )
    save(inline(8.0, step_ms=30.0), more, tmp_path)
    assert settled()[1].endswith("times as fast; give the target these threads.")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    placement, why, _ = settled()
    assert placement == "inline"
    assert "of 2 cores, the target's 2 threads leave 0" in why


class Desk:
    """A worker's boards beside a drafter of the test's."""

    def __init__(self) -> None:
        import torch

        from vllm_smart.adapter.overlap.boards import Boards

        self.text = np.arange(100, 140, dtype=np.int32)
        history = torch.zeros(2, 40, dtype=torch.int32)
        history[1] = torch.from_numpy(self.text)
        self.drafter = SimpleNamespace(
            truth=TruthBoard(2, 40), drafts=DraftBoard(2, 2, 4, 200), is_there=True, watch=lambda: None
        )
        terms = SimpleNamespace(chain_only=np.zeros(2, bool))
        self.acceptance = AcceptanceModel(AcceptanceConfig(), 2)
        self.controller = SimpleNamespace(calibrates=True, acceptance=self.acceptance)
        runtime: Any = SimpleNamespace(
            max_num_reqs=2, noise=None, terms=terms, controller=self.controller
        )
        states: Any = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=history))
        drafter: Any = self.drafter
        self.boards = Boards(drafter, runtime, states)
        self.reader = TruthReader(self.drafter.truth)

    def comes(self, num_tokens: int, **changes: Any) -> None:
        prompt = self.text[:num_tokens].tolist()
        data: dict[str, Any] = {"prefill_token_ids": prompt, "prompt_token_ids": prompt} | changes
        self.boards.add_request(1, cast(Any, SimpleNamespace(**{"mm_features": [], **data})))

    def steps_to(self, length: int) -> None:
        ones = np.ones(1, np.int64)
        result = StepResult(ones, ones, ones * (length - 1), ones > 0)
        # Of no step that a tree was published for: nothing is foreseen.
        plan: Any = SimpleNamespace(root_pos=np.full(1, -1), trees=None)
        self.boards.keep_unread(plan, result, np.zeros(1, np.int64), [])

    def drafts(self, base: int) -> None:
        """What a drafter that has read so far publishes: the text's next token, and one below it."""
        self.reader.poll()
        tree = GrownTree(2, 4)
        for node, token in ((0, self.text[base]), (1, self.text[base + 1])):
            tree.add(np.array([node]), np.array([[token, 7]]), np.array([[0.6, 0.2]], np.float32))
        generation = self.reader.texts[1].generation
        self.drafter.drafts.write(1, generation, base, tree, False)


def test_a_drafter_that_is_two_tokens_behind_may_still_be_right():
    desk = Desk()
    desk.comes(10)
    desk.steps_to(11)
    assert desk.boards.find(1, 10) is Miss.LATE
    desk.drafts(11)
    tree, node = desk.boards.find(1, 10)
    assert (tree.base, node) == (11, 0)
    desk.steps_to(12)
    assert desk.boards.find(1, 11)[1] == 1
    desk.steps_to(13)
    assert desk.boards.find(1, 12) is Miss.NOT_EXPANDED


@pytest.mark.parametrize("calibrates", [True, False])
def test_the_drafter_is_told_what_was_learnt_if_the_policy_goes_by_it(calibrates):
    desk = Desk()
    desk.controller.calibrates = calibrates
    rng, ones = np.random.default_rng(0), np.ones(99, np.int64)
    for _ in range(20):
        desk.acceptance.observe(
            rng.random(99, np.float32), ones, 0 * ones, 0 * ones, rng.random(99) < 0.2, ones
        )
    desk.comes(10)
    desk.steps_to(11)
    prob = np.array([[0.9, 0.05]], np.float32)
    ((first, _),) = desk.drafter.truth.accepted(prob, np.ones(1, np.int32), Terms())
    assert (first < 0.5) == calibrates


def test_the_tree_of_the_slots_last_request_is_nobodys():
    desk = Desk()
    desk.comes(10)
    desk.steps_to(11)
    desk.drafts(11)
    desk.boards.ended(1)
    desk.comes(10)
    desk.steps_to(11)
    assert desk.boards.find(1, 10) is Miss.LATE  # though the same text is found there


def test_a_text_that_goes_on_otherwise_is_a_miss():
    desk = Desk()
    desk.comes(10)
    desk.steps_to(11)
    desk.drafts(11)
    desk.boards._history[1, 11] = 55  # the bonus token counts, too
    assert desk.boards.find(1, 11) is Miss.NOT_IN_TREE
    desk.drafter.is_there = False
    assert desk.boards.find(1, 11) is Miss.NO_DRAFTER


@pytest.mark.parametrize("changes", [{"mm_features": ["an image"]}, {"prompt_token_ids": None}])
def test_nobody_is_told_of_texts_that_are_no_tokens(changes):
    desk = Desk()
    desk.comes(10, **changes)
    desk.steps_to(11)
    assert desk.reader.poll() in ([], [1])
    assert not desk.reader.texts
