"""Where an engine's cost table comes from."""

from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.vllm


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Function that prepares costs for a fake engine: its table and the number of timings.

    `start.runtime.tables`: what the engine has decided by. `start.idle`: what is to be timed later.
    """
    from vllm.config.compilation import CUDAGraphMode

    from vllm_smart.adapter import cost_tables, costs
    from vllm_smart.adapter.engine_settings import AdditionalConfig
    from vllm_smart.config import GrowthLimits, load_config

    measured = []
    shapes = [(8, 1, 0), (8, 1, 100)]
    steps = SimpleNamespace(max_verify_tokens=64, max_draft_rows=16, context_shapes=shapes)
    steps.run = lambda kind, *size: measured.append((kind, size)) or 1.0 + size[0] + size[-1] / 100
    monkeypatch.setattr(costs, "StepTimer", lambda runner: steps)
    group = SimpleNamespace(world_size=1, rank_in_group=0, cpu_group=SimpleNamespace(world_size=1))
    for module in (costs, cost_tables):
        monkeypatch.setattr(module, "get_tp_group", lambda: group)
    model = SimpleNamespace(
        model="target", revision=None, dtype="torch.float32", quantization=None, enforce_eager=True
    )
    model.is_moe, model.hf_config = False, SimpleNamespace(to_dict=lambda: dict(run.model_is))
    spec = SimpleNamespace(method="eagle", model="drafter", draft_model_config=model)
    vllm_config = SimpleNamespace(
        model_config=model,
        speculative_config=spec,
        parallel_config=SimpleNamespace(tensor_parallel_size=1, data_parallel_size=1),
        attention_config=SimpleNamespace(backend=None),
        compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode.NONE),
    )

    runtime = SimpleNamespace(
        boards=None,  # the drafter runs in the target's steps
        tables=[],
        use_costs=lambda table, rehearse: runtime.tables.append(table),
        use_measured=lambda table: runtime.tables.append(table),
        reports=SimpleNamespace(show_table=lambda name, expected: runtime.shown.append(name)),
        shown=[],
        catch_up=lambda: None,
        limits=GrowthLimits(node_budget=8, depth=4, width=4, children=2),
    )
    speculator = SimpleNamespace(runtime=runtime)
    runner = SimpleNamespace(vllm_config=vllm_config, speculator=speculator, max_num_reqs=2)

    def run(measure="start", **cost_table):
        measured.clear()
        runtime.tables.clear()
        settings = {"cache_dir": str(tmp_path), "repeats": 1, "measure": measure, **cost_table}
        drafter = {"method": "eagle", "model": "drafter"}
        config = load_config({"drafter": drafter, "cost_table": settings})
        vllm_config.additional_config = AdditionalConfig(smart=config.model_dump(mode="json"))
        run.idle = costs.prepare_costs(runner, config)
        (table,) = runtime.tables
        return table, len(measured)

    run.model_is = {"hidden_size": 64}
    run.steps, run.model, run.compilation = steps, model, vllm_config.compilation_config
    run.runtime, run.measured, run.parallel = runtime, measured, vllm_config.parallel_config
    return run


def test_a_table_is_measured_once_and_reused_at_the_next_start(start):
    first, num_first = start()
    second, num_second = start()
    assert num_first > 0
    assert num_second == 0
    assert second.verify_ms(10) == first.verify_ms(10) == pytest.approx(11.1)
    assert np.array(second.samples.context) == pytest.approx(
        np.array([(8, 1, 0, 9.0), (8, 1, 100, 10.0)])
    )


def test_another_model_has_another_table_and_another_place_has_not(start):
    start()
    start.model.model = "elsewhere/target"
    assert start()[1] == 0
    start.model_is = {"hidden_size": 128}
    assert start()[1] > 0


def test_other_graphs_have_another_table(start):
    start()
    start.compilation.cudagraph_mode = type(start.compilation.cudagraph_mode).FULL
    assert start()[1] > 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}'])
def test_an_unreadable_table_is_measured_again_with_a_warning(start, tmp_path, content, caplog_vllm):
    start()
    (path,) = tmp_path.glob("*.json")
    path.write_text(content)
    assert start()[1] > 0
    assert "Measuring again" in caplog_vllm.text


def test_a_table_of_much_smaller_steps_is_measured_again(start, caplog_vllm):
    start()
    start.steps.max_verify_tokens = 1024
    assert start()[1] > 0
    assert "ends at 64 tokens" in caplog_vllm.text
    start.steps.max_verify_tokens = 64
    assert start()[1] == 0


def test_a_table_that_ends_where_steps_are_slow_is_reused(start):
    start.steps.max_verify_tokens = 8192
    table, num_measured = start()
    assert num_measured > 0
    assert table.samples.verify[-1][0] < 2048
    quick = start.steps.run
    start.steps.run = lambda kind, *size: quick(kind, *size) / 4  # whatever is slow by now
    assert start()[1] == 0
    start.steps.max_verify_tokens = 4 * 8192
    assert start()[1] > 0


def test_a_table_made_on_a_busy_machine_is_used_but_not_kept(start, tmp_path, caplog_vllm):
    quiet = start.steps.run
    rng = np.random.default_rng(0)
    start.steps.run = lambda kind, *size: quiet(kind, *size) * rng.choice((1.0, 4.0))
    table, _ = start(repeats=8)
    assert table.verify_ms(1) > 0
    assert "the machine was busy" in caplog_vllm.text
    assert not list(tmp_path.glob("*.json"))


def test_measuring_can_be_forced_and_forbidden(start):
    from vllm_smart.errors import ConfigError

    with pytest.raises(ConfigError, match=r"cost_table\.measure"):
        start(measure="never")
    start()
    assert start(measure="always")[1] > 0
    assert start(measure="never")[1] == 0


def test_an_engine_begins_by_a_guess_and_measures_while_it_is_idle(start, tmp_path, caplog_vllm):
    caplog_vllm.set_level("INFO")
    guess, num_timed = start("auto")
    assert 0 < num_timed < 40
    assert guess.verify_ms(10) == pytest.approx(11.1, rel=0.01)
    assert "costs are a first guess" in caplog_vllm.text
    assert not list(tmp_path.glob("*.json"))
    num_steps = 1
    while start.idle.run_one() is not None:
        num_steps += 1
    assert len(start.measured) == num_timed + num_steps
    assert "costs measured while idle" in caplog_vllm.text
    measured = start.runtime.tables[-1]
    assert len(measured.samples.verify) > len(guess.samples.verify)
    assert measured.samples.context
    (path,) = tmp_path.glob("*.json")
    assert str(path) in caplog_vllm.text
    again, num_timed = start("auto")
    assert (num_timed, start.idle) == (0, None)
    assert again.samples == measured.samples


def test_of_two_idle_engines_one_measures_and_both_decide_by_its_table(start, tmp_path):
    start("auto")
    first, tables_of_first = start.idle, start.runtime.tables
    start.runtime.tables = []
    start("auto")
    second = start.idle
    first._tables._owner, second._tables._owner = "first", "second"
    assert first.run_one() == 0.0
    num_timed = len(start.measured)
    assert second.run_one() > 0
    assert len(start.measured) == num_timed
    start.runtime.tables = tables_of_first
    while first.run_one() is not None:
        assert second.run_one() > 0
    start.runtime.tables = tables_of_second = []
    assert second.run_one() is None
    assert tables_of_second[-1].samples == tables_of_first[-1].samples
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_an_engine_that_must_know_waits_for_another_that_measures(start, tmp_path, monkeypatch):
    from vllm_smart.adapter import costs

    start()
    (path,) = tmp_path.glob("*.json")
    text = path.read_text()
    path.unlink()
    lease = path.with_name(path.name + ".lease")
    lease.write_text("another engine")

    def another_goes_on(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            path.write_text(text)
            lease.unlink()

    waits = []
    monkeypatch.setattr(costs.time, "sleep", another_goes_on)
    assert start()[1] == 0
    assert len(waits) == 3


def test_what_is_never_idle_is_measured_at_start(start, monkeypatch):
    start.parallel.data_parallel_size = 2
    assert start("auto")[1] > 40
    assert start.idle is None


def test_an_engine_in_its_clients_process_is_measured_at_start(start, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    assert start("auto")[1] > 40
    assert start.idle is None


def test_a_cache_that_cannot_be_written_does_not_stop_the_engine(start, tmp_path, caplog_vllm):
    blocked = tmp_path / "file"
    blocked.write_text("")
    table, _ = start(cache_dir=str(blocked))
    assert table.verify_ms(1) > 0
    assert "could not be kept" in caplog_vllm.text


@pytest.fixture
def caplog_vllm(caplog, monkeypatch):
    """caplog that sees vLLM's loggers, which do not propagate."""
    import logging

    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog
