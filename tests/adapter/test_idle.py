"""What an engine core does while it waits: steps are timed, and requests do not wait for them."""

import queue
import threading
import time
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.vllm
CALL = "asks something of the core, and is no request"


class Core:
    """An engine core that has nothing to do until something arrives."""

    def __init__(self, num_steps: int, is_ours: bool = True) -> None:
        self.vllm_config = SimpleNamespace(is_ours=is_ours)
        self.input_queue = queue.Queue()
        self.model_executor = SimpleNamespace(collective_rpc=self.run)
        self.num_left, self.num_timed = num_steps, 0
        self.waits = []  # seconds for which another engine is at it
        self.is_paused, self.works, self.seen = False, False, []
        self.num_timed_before = {}  # of each that has arrived
        self.process_input_queue_block = True
        self.on_step = lambda: None

    def run(self, method):
        assert method == "smart_time_step"
        if self.waits:
            return [self.waits.pop()]
        if self.num_left:
            self.num_left -= 1
            self.num_timed += 1
            self.on_step()
            return [0.0 if self.num_left else None]
        return [None]

    def is_running(self):
        return True

    def has_work(self):
        return self.works

    def is_sleeping(self):
        return self.is_paused

    def _process_input_queue(self):
        """As vLLM's: whatever is no request leaves it waiting for the next."""
        while not self.works and self.is_running():
            waits = self.process_input_queue_block
            try:
                self.take(self.input_queue.get(block=waits))
            except queue.Empty:
                break
            if not waits:
                break
        while not self.input_queue.empty():
            self.take(self.input_queue.get_nowait())

    def take(self, arrived):
        self.seen.append(arrived)
        self.num_timed_before[arrived] = self.num_timed
        self.works |= arrived != CALL


def run(core, last, keeps_working=False):
    """The core's loop, until `last` has arrived."""
    while last not in core.seen:
        core._process_input_queue()
        core.works = keeps_working


@pytest.fixture
def install(monkeypatch):
    """Function that puts our part around `Core`."""
    import vllm.v1.engine.core as module

    from vllm_smart.entry import idle

    class Extended(Core):
        pass

    monkeypatch.setattr(module, "EngineCoreProc", Extended)
    monkeypatch.setattr(idle, "has_trees", lambda config: config.is_ours)
    monkeypatch.setattr(idle, "_QUIET_S", 0.05)
    idle.time_steps_while_idle()
    idle.time_steps_while_idle()
    return Extended


def arrives(core, request, after_s):
    threading.Timer(after_s, core.input_queue.put, (request,)).start()


def test_steps_are_timed_until_a_request_arrives_and_go_on_later(install):
    core = install(num_steps=10)
    core.on_step = lambda: core.num_timed == 4 and core.input_queue.put("a")
    run(core, "a")
    assert (core.num_timed, core.seen) == (4, ["a"])
    core.on_step = lambda: None
    arrives(core, "b", 0.3)
    run(core, "b")
    assert (core.num_timed, core.seen) == (10, ["a", "b"])
    core.input_queue.put("c")
    run(core, "c")
    assert core.seen == ["a", "b", "c"]
    assert core.process_input_queue_block


def test_what_is_no_request_interrupts_the_timing_for_a_moment(install):
    core = install(num_steps=10)
    core.on_step = lambda: core.num_timed == 4 and core.input_queue.put(CALL)
    arrives(core, "a", 1.0)
    run(core, "a")
    assert core.num_timed_before == {CALL: 4, "a": 10}


def test_while_another_engine_measures_this_one_looks_now_and_then(install):
    core = install(num_steps=10)
    core.waits = [0.05] * 3
    arrives(core, "a", 1.0)
    run(core, "a")
    assert (core.waits, core.num_timed_before) == ([], {"a": 10})


def test_a_request_does_not_wait_until_the_next_look(install):
    core = install(num_steps=10)
    core.waits = [30.0]
    arrives(core, "a", 0.3)
    started_s = time.monotonic()
    run(core, "a")
    assert time.monotonic() - started_s < 5.0
    assert core.num_timed == 0


def test_requests_that_come_one_after_the_other_wait_for_no_step(install):
    core = install(num_steps=10)
    for request in range(5):
        arrives(core, request, 0.01)
        run(core, request)
    assert (core.num_timed, core.seen) == (0, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("state", ["works", "is_paused"])
def test_an_engine_that_has_work_or_sleeps_times_nothing(install, state):
    core = install(num_steps=10)
    setattr(core, state, True)
    arrives(core, "a", 0.2)
    run(core, "a", keeps_working=core.works)
    assert (core.num_timed, core.seen) == (0, ["a"])
    core.works = core.is_paused = False
    arrives(core, "b", 0.3)
    run(core, "b")
    assert core.num_timed == 10


def test_an_engine_that_wakes_goes_on_without_a_request(install):
    core = install(num_steps=10)
    core.is_paused = True
    threading.Timer(0.2, setattr, (core, "is_paused", False)).start()
    arrives(core, "a", 1.0)
    run(core, "a")
    assert core.num_timed_before == {"a": 10}


def test_an_engine_without_trees_waits_as_ever(install):
    core = install(num_steps=10, is_ours=False)
    arrives(core, "a", 0.2)
    core._process_input_queue()
    assert (core.num_timed, core.seen) == (0, ["a"])


def test_an_error_is_logged_once_and_the_engine_goes_on(install, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    core = install(num_steps=10)

    def fail():
        raise MemoryError("no room")

    core.on_step = fail
    for request in ("a", "b"):
        arrives(core, request, 0.2)
        run(core, request)
    assert (core.num_timed, core.seen) == (1, ["a", "b"])
    # Other tests may have the logger hand records on twice.
    said = {record.created for record in caplog.records if "could not be timed" in record.message}
    assert len(said) == 1
    assert "vllm-smart profile" in caplog.text
