"""The front end's side of the counters: who looks for them, where, and what Ray gets."""

import asyncio
import gc
import sys
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomllib

from tests.unit.reports.metrics import count_something, samples
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.reports.families import NUM_VALUES
from vllm_smart.reports.stats import StepStats

pytestmark = pytest.mark.vllm


def test_inside_ray_the_metrics_are_rays(shared, monkeypatch):
    """Against what vLLM's wrappers call of `ray.util.metrics`."""
    from vllm.v1.metrics import ray_wrappers

    from vllm_smart.adapter import metrics
    from vllm_smart.reports.exporter import EngineSeries, Metrics

    told: dict[str, list] = {}

    class RayMetric:
        def __init__(self, name, description, tag_keys, boundaries=()):
            self._name, self._tag_keys = name, tag_keys
            assert all(edge > 0 for edge in boundaries), "Ray refuses them"

        def note(self, value, tags):
            assert set(tags) == set(self._tag_keys)
            told.setdefault(self._name, []).append((value, tags))

        inc = set = observe = note

    monkeypatch.setattr(
        ray_wrappers,
        "ray_metrics",
        SimpleNamespace(Counter=RayMetric, Gauge=RayMetric, Histogram=RayMetric),
    )
    monkeypatch.setattr(ray_wrappers, "_get_replica_id", lambda: "replica")
    series = EngineSeries(Metrics(metrics._ray_types()), "model", 0)
    count_something(shared)
    series.update(shared.values, shared.about)
    value, tags = told["vllm_smart_plain_seconds"][0]
    assert value == pytest.approx(0.03)
    assert tags == {"model_name": "model", "engine": "0", "batch": "2", "ReplicaId": "replica"}
    assert [value for value, _ in told["vllm_smart_step_time_error_ratio"]] == pytest.approx(
        [0.11, 0.16, 0.1]
    )


@pytest.mark.parametrize(("actor", "is_ray"), [("an id", True), (None, False)])
def test_rays_metrics_are_for_actors_not_for_drivers(monkeypatch, actor, is_ray):
    from vllm_smart.adapter import metrics

    context = SimpleNamespace(get_actor_id=lambda: actor)
    ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert metrics._is_ray_actor() is is_ray


def vllm_config(prefix: str | None, api_rank: int = 0):
    from vllm_smart.adapter.engine_settings import COUNTERS, AdditionalConfig

    return SimpleNamespace(
        additional_config=AdditionalConfig({COUNTERS: prefix}),
        model_config=SimpleNamespace(served_model_name="model"),
        parallel_config=SimpleNamespace(_api_process_rank=api_rank),
    )


@pytest.fixture
def logger_of(monkeypatch, types):
    """A function that makes stat loggers, whose metrics are in `registry`."""
    from vllm_smart.adapter import metrics
    from vllm_smart.reports.exporter import Metrics

    made = Metrics(types)
    monkeypatch.setattr(metrics, "metrics_of", lambda types: made)
    monkeypatch.setattr(metrics, "_EVERY_S", 0.02)
    return metrics.SmartStatLogger


def warnings_of(module, monkeypatch) -> list[str]:
    """What `module` warns of from now on."""
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *args: said.append(text % args))
    return said


def eventually(condition) -> bool:
    for _ in range(250):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_one_api_server_speaks_for_all(tmp_path, monkeypatch, logger_of, registry):
    from vllm_smart.reports.shared import SharedCounters, new_prefix

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prefix = new_prefix()
    for rank in range(2):
        count_something(SharedCounters.create(prefix, rank))
    others = logger_of(vllm_config(prefix, api_rank=1), [0, 1])
    time.sleep(0.2)
    assert sum(samples(registry, "steps_total").values()) == 0
    speaker = logger_of(vllm_config(prefix), [0, 1])
    assert eventually(lambda: list(tmp_path.iterdir()) == [])
    assert eventually(lambda: samples(registry, "steps_total", engine="1")["2",] == 1)
    assert samples(registry, "steps_total", engine="0")["2",] == 1
    del others, speaker


def test_engines_without_trees_have_no_thread(logger_of):
    before = set(threading.enumerate())
    config = vllm_config(None)
    config.additional_config = {}
    logger_of(config, [0]).record(None, None)
    assert set(threading.enumerate()) <= before


def test_the_thread_ends_with_its_engine(logger_of, tmp_path):
    before = set(threading.enumerate())
    stat_logger = logger_of(vllm_config(str(tmp_path / "none")), [0])
    (thread,) = set(threading.enumerate()) - before
    assert thread.is_alive()
    del stat_logger
    gc.collect()
    assert eventually(lambda: not thread.is_alive())


class Core:
    """vLLM's client of two engines of two workers each; 0 shares its memory with this process."""

    def __init__(self):
        self.stats, self.num_asked, self.fails = StepStats.of_process(), 0, False

    async def call_utility_all_async(self, utility, method, timeout, args, kwargs):
        assert (utility, method, timeout, args, kwargs) == (
            *("collective_rpc", "smart_counted", None),
            *((), None),
        )
        self.num_asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("the engine is dead")
        about = {"version": "1", "policy": "smart", "drafter": "eagle3", "table": "t.json"}
        told = {"values": self.stats._values.tolist(), "about": about}
        idle = {"values": np.zeros(NUM_VALUES).tolist(), "about": about}
        return [[{"engine": rank, **told}, {"engine": rank, **idle}] for rank in (0, 1)]


@pytest.fixture
def front_end(logger_of, monkeypatch, tmp_path):
    """A stat logger of engines 0, whose counters are here, and 1; and the client that it asks."""
    from vllm_smart.adapter import ask_engines
    from vllm_smart.reports.shared import SharedCounters, new_prefix

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ask_engines, "_ASK_EVERY_S", 0.05)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    prefix, core = new_prefix(), Core()
    stat_logger = logger_of(vllm_config(prefix), [0, 1])
    count_something(SharedCounters.create(prefix, 0))

    async def begin():
        stat_logger.ask_through(core)

    asyncio.run_coroutine_threadsafe(begin(), loop).result()
    yield stat_logger, core
    stat_logger._inquiry = None
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_engines_on_another_machine_are_asked_and_those_here_are_not_counted_twice(front_end, registry):
    _, core = front_end
    core.stats.record_time(2, step_s=0.5, plain_s=0.75)
    assert eventually(lambda: samples(registry, "step_seconds_total", engine="1")["2",] == 0.5)
    core.stats.record_time(2, step_s=0.5, plain_s=0.75)
    assert eventually(lambda: samples(registry, "step_seconds_total", engine="1")["2",] == 1.0)
    assert samples(registry, "engine_info", engine="1") == {("eagle3", "smart", "t.json", "1"): 1}
    num_asked = core.num_asked
    assert eventually(lambda: core.num_asked >= num_asked + 3)
    assert samples(registry, "step_seconds_total", engine="1")["2",] == 1.0
    assert samples(registry, "step_seconds_total", engine="0")["2",] == pytest.approx(0.02)


def test_engines_that_do_not_answer_are_named_once(front_end, monkeypatch, registry):
    from vllm_smart.adapter import metrics

    _, core = front_end
    said = warnings_of(metrics, monkeypatch)
    core.fails = True
    assert eventually(lambda: said)
    num_asked = core.num_asked
    time.sleep(0.2)
    (text,) = said
    assert "nothing new of engines 1 " in text
    assert "the engine is dead" in text
    assert core.num_asked == num_asked
    assert samples(registry, "step_seconds_total", engine="0")["2",] == pytest.approx(0.02)


def test_nobody_is_asked_whose_counters_are_here(front_end, monkeypatch):
    from vllm_smart.reports.shared import SharedCounters

    stat_logger, core = front_end
    SharedCounters.create(stat_logger._prefix, 1)
    assert eventually(lambda: len(stat_logger._shared) == 2)
    time.sleep(0.1)
    num_asked = core.num_asked
    time.sleep(0.2)
    assert core.num_asked == num_asked


def engine_args(rank: int, count: int):
    from vllm.engine.arg_utils import AsyncEngineArgs

    args = AsyncEngineArgs(model=str(demo_model_paths()["target"]))
    args._api_process_rank, args._api_process_count = rank, count
    return args


@pytest.fixture
def installed(monkeypatch):
    from vllm_smart.adapter import counters

    group = counters.STAT_LOGGER_PLUGINS_GROUP
    points = [EntryPoint("vllm_smart", "vllm_smart.adapter.metrics:SmartStatLogger", group)]
    monkeypatch.setattr(counters, "entry_points", lambda group: points)
    monkeypatch.delenv(counters._PREFIX_ENV, raising=False)
    return points


def test_all_api_servers_of_an_engine_agree_and_two_engines_do_not(installed, monkeypatch):
    from vllm_smart.adapter import counters

    monkeypatch.setenv(counters._PREFIX_ENV, "of another engine")
    parent = counters.choose_prefix(engine_args(-1, 2))
    assert [counters.choose_prefix(engine_args(rank, 2)) for rank in (0, 1)] == [parent, parent]
    alone = {counters.choose_prefix(engine_args(0, 1)) for _ in range(2)}
    assert len(alone | {parent}) == 3


def test_an_engine_without_a_server_counts_for_itself(installed):
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.adapter import counters

    assert counters.choose_prefix(EngineArgs(model=str(demo_model_paths()["target"]))) is None


def test_an_installation_without_the_entry_point_is_noticed(installed, monkeypatch):
    from vllm_smart.adapter import counters

    said = warnings_of(counters, monkeypatch)
    installed.clear()
    assert counters.choose_prefix(engine_args(0, 1)) is None
    (text,) = said
    assert "Install it again" in text


def test_the_package_has_the_entry_point_that_vllm_loads():
    """As pyproject.toml says it; a class that vLLM takes."""
    from vllm.v1.metrics.loggers import AggregateStatLoggerBase

    from vllm_smart.adapter import counters

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"][counters.STAT_LOGGER_PLUGINS_GROUP]
    (value,) = [points[counters._ENTRY_POINT]]
    loaded = EntryPoint("vllm_smart", value, counters.STAT_LOGGER_PLUGINS_GROUP).load()
    assert issubclass(loaded, AggregateStatLoggerBase)
