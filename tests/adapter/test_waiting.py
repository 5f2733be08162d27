"""What an engine core tells its workers about who waits, and when."""

import queue
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.vllm


class Core:
    """An engine core that has run a step."""

    def __init__(self, arrived=(), num_left=0, is_ahead=False, is_ours=True, inbox=True) -> None:
        self.vllm_config, self.async_scheduling = SimpleNamespace(is_ours=is_ours), is_ahead
        self.told = []
        self.model_executor = SimpleNamespace(
            collective_rpc=lambda method, args: self.told.append((method, args))
        )
        counts = 6, num_left
        self.scheduler = SimpleNamespace(get_request_counts=lambda: counts, max_num_running_reqs=8)
        if inbox:
            self.input_queue = queue.Queue()
            for kind in arrived:
                self.input_queue.put((kind, object()))

    def post_step(self, model_executed):
        self.told.append(("drafts", ()))


@pytest.fixture
def install(monkeypatch):
    """Function that puts our part around `Core`."""
    import vllm.v1.engine.core as module

    from vllm_smart.entry import waiting

    class Extended(Core):
        pass

    monkeypatch.setattr(module, "EngineCore", Extended)
    monkeypatch.setattr(waiting, "has_trees", lambda config: config.is_ours)
    waiting.tell_workers_who_waits()
    waiting.tell_workers_who_waits()
    return Extended


def test_before_they_draft_workers_are_told_who_waits(install):
    from vllm.v1.engine import EngineCoreRequestType as Kind

    core = install(arrived=(Kind.ADD, Kind.ABORT, Kind.ADD, Kind.UTILITY), num_left=3)
    core.post_step(True)
    assert core.told == [("smart_queue", (3, 2, 2)), ("drafts", ())]
    assert core.input_queue.qsize() == 4


@pytest.mark.parametrize("others", [{}, {"inbox": False}, {"arrived": ("no request",)}])
def test_where_nobody_waits_there_is_nothing_to_tell(install, others):
    core = install(**others)
    core.post_step(True)
    assert core.told == [("drafts", ())]


@pytest.mark.parametrize("others", [{"is_ahead": True}, {"is_ours": False}])
def test_other_engines_are_left_alone(install, others):
    core = install(num_left=3, **others)
    core.post_step(True)
    assert core.told == [("drafts", ())]


def test_a_step_without_work_tells_nothing(install):
    core = install(num_left=3)
    core.post_step(False)
    assert core.told == [("drafts", ())]
