"""Costs of this engine's steps: taken from the cache, or measured, at its start or while it is idle."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm
from vllm import envs
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

import vllm_smart
from vllm_smart.adapter.engine_settings import smart_config
from vllm_smart.adapter.overlap.speculator import RemoteSpeculator
from vllm_smart.adapter.step_timer import StepTimer
from vllm_smart.config import SmartConfig
from vllm_smart.errors import ConfigError, CostTableError
from vllm_smart.profiling import (
    CostTable,
    Progress,
    TableKey,
    Timings,
    default_folder,
    guess,
    load,
    measure,
    run_all,
    save,
    table_path,
)
from vllm_smart.scheduler import explain, explain_line, needs_costs
from vllm_smart.seams.host import vllm_version

logger = init_logger("vllm.smart")

_Table = TypeVar("_Table", CostTable, CostTable | None)

_MOST_NOISE = 0.5  # of a table that is kept


def prepare_costs(
    runner: GPUModelRunner, config: SmartConfig, rehearse: Callable[[], None] = lambda: None
) -> "IdleTiming | None":
    """Give the runtime of `runner` its cost table and say in one line what was chosen.

    Every tensor-parallel rank decides by rank 0's table, so all ranks grow the same trees.

    Args:
        runner: of this worker.
        config: the engine's settings.
        rehearse: runs requests that mean nothing, once costs are known.

    Returns:
        What is to be timed while the engine is idle; None where the table is final.
    """
    runtime = runner.speculator.runtime
    if isinstance(runner.speculator, RemoteSpeculator):
        runner.speculator.drafter.wait_until_ready()
    if not needs_costs(config):
        runtime.use_costs(None, rehearse)
        logger.info("vllm_smart: policy %s needs no costs.", config.policy.name)
        return None
    known, idle = _from_rank_0(_known(runner, config)), None
    if known is not None:
        table = known
    elif config.cost_table.measure == "never":
        raise ConfigError(
            "cost_table.measure is 'never', but there is no usable table at "
            f"{_path(runner.vllm_config, config)}. Set it to 'auto', or give cost_table.path."
        )
    elif config.cost_table.measure == "auto" and _is_ever_idle(runner.vllm_config):
        table = _from_rank_0(_guessed(runner))
        idle = IdleTiming(runner, config)
    else:
        table = _from_rank_0(_measured(runner, config))
    table = _with_waits(runner, table)
    runtime.use_costs(table, rehearse)
    _say_what_pays(runner, config, table, "guess" if idle is not None else _table_name(runner, config))
    return idle


class IdleTiming:
    """Times the steps of an engine that has begun by a guess, one after the other."""

    def __init__(self, runner: GPUModelRunner, config: SmartConfig) -> None:
        """Nothing is run yet.

        Args: as for `prepare_costs`.
        """
        self._runner, self._config = runner, config
        self._timer = StepTimer(runner)
        self._timings = _all_timings(self._timer, config)
        self._due = next(self._timings)
        self._spent_s = 0.0

    def run_one(self) -> bool:
        """Time one step, which no request may be waiting for; whether there are more to time.

        After the last one the engine decides by what was measured.
        """
        kind, size = self._due
        self._runner.speculator.runtime.catch_up()
        ms = self._timer.run(kind, *size)
        self._spent_s += ms / 1e3
        try:
            self._due = self._timings.send(ms)
        except StopIteration as end:
            self._use(_from_rank_0(end.value))
            return False
        return True

    def _use(self, table: CostTable) -> None:
        _keep(table, self._runner.vllm_config, self._config)
        table = _with_waits(self._runner, table)
        self._runner.speculator.runtime.use_measured(table)
        if _is_first():
            logger.info("vllm_smart: costs measured while idle, in %.1f s of steps.", self._spent_s)
        _say_what_pays(self._runner, self._config, table, _table_name(self._runner, self._config))


def _with_waits(runner: GPUModelRunner, table: CostTable) -> CostTable:
    """`table` with what steps wait for a level of a drafter that runs beside the target."""
    if not isinstance(runner.speculator, RemoteSpeculator):
        return table
    levels = tuple(runner.speculator.drafter.level_ms)
    return CostTable(table.samples.model_copy(update={"draft": levels, "beside": True}))


def _is_ever_idle(vllm_config: VllmConfig) -> bool:
    """Whether somebody calls while the engine has nothing to do (`entry.idle`).

    An engine in its client's process runs when it is asked to, and data-parallel engines in step.
    """
    return envs.VLLM_ENABLE_V1_MULTIPROCESSING and vllm_config.parallel_config.data_parallel_size == 1


def _known(runner: GPUModelRunner, config: SmartConfig) -> CostTable | None:
    """The user's table or, in rank 0, the cached one."""
    settings = config.cost_table
    if settings.path is not None:
        return load(settings.path)
    path = _path(runner.vllm_config, config)
    if settings.measure == "always" or not _is_first() or not path.exists():
        return None
    try:
        table = load(path, table_key(runner.vllm_config))
        table = _covering(table, StepTimer(runner).max_verify_tokens)
    except CostTableError as error:
        logger.warning("vllm_smart: %s Measuring again.", error)
        return None
    logger.info("vllm_smart: cost table %s reused.", path)
    return table


def _guessed(runner: GPUModelRunner) -> CostTable:
    """A first guess, which all ranks take part in."""
    start, timer = time.perf_counter(), StepTimer(runner)
    table = run_all(guess(timer.max_verify_tokens, timer.max_draft_rows), timer.run)
    if _is_first():
        logger.info(
            "vllm_smart: costs are a first guess, from timings of %.1f s. They are measured while the "
            "engine is idle.",
            time.perf_counter() - start,
        )
    return table


def _measured(runner: GPUModelRunner, config: SmartConfig) -> CostTable:
    """A new measurement, which all ranks take part in."""
    start, timer = time.perf_counter(), StepTimer(runner)
    with tqdm(desc="vllm_smart: timing steps", unit="step", disable=not _is_first()) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        table = run_all(_all_timings(timer, config, show), timer.run)
    logger.info("vllm_smart: costs measured in %.1f s.", time.perf_counter() - start)
    _keep(table, runner.vllm_config, config)
    return table


def _all_timings(
    timer: StepTimer, config: SmartConfig, progress: Progress = lambda done, total: None
) -> Timings[CostTable]:
    settings = config.cost_table
    return measure(
        timer.max_verify_tokens,
        timer.max_draft_rows,
        settings.repeats,
        settings.budget_s,
        progress,
        timer.context_shapes,
    )


def _keep(table: CostTable, vllm_config: VllmConfig, config: SmartConfig) -> None:
    """Write what rank 0 has measured for the next start, unless it was much disturbed."""
    noise = table.samples.noise
    if noise > _MOST_NOISE:
        logger.warning(
            "vllm_smart: the machine was busy while steps were timed (repeated timings differ by "
            "%.0f%%): the cost table is used, but not kept. Live step times will correct it.",
            noise * 100,
        )
    elif _is_first():
        folder = _folder(config)
        try:
            path = save(table, table_key(vllm_config), folder)
            logger.info("vllm_smart: cost table %s written.", path)
        except OSError as error:
            logger.warning("vllm_smart: the cost table could not be kept in %s: %s.", folder, error)


def _say_what_pays(
    runner: GPUModelRunner, config: SmartConfig, table: CostTable, table_name: str
) -> None:
    if _is_first():
        if isinstance(runner.speculator, RemoteSpeculator):
            runner.speculator.runtime.reports.show_table(table_name, [])
            logger.info("vllm_smart: the drafter runs beside the target; its gain is not foretold.")
            return
        has_drafter, runtime = config.drafter.method != "ngram", runner.speculator.runtime
        expected = list(explain(table, runtime.limits, runner.max_num_reqs))
        runtime.reports.show_table(table_name, expected)
        logger.info("vllm_smart: %s", explain_line(expected, has_drafter))


def _table_name(runner: GPUModelRunner, config: SmartConfig) -> str:
    return (config.cost_table.path or _path(runner.vllm_config, config)).name


def _is_first() -> bool:
    return get_tp_group().rank_in_group == 0


def _from_rank_0(table: _Table) -> _Table:
    """Rank 0's table, in all ranks."""
    group = get_tp_group()
    return group.broadcast_object(table, src=0) if group.world_size > 1 else table


def _folder(config: SmartConfig) -> Path:
    return config.cost_table.cache_dir or default_folder()


def _path(vllm_config: VllmConfig, config: SmartConfig) -> Path:
    return table_path(_folder(config), table_key(vllm_config))


def _covering(table: CostTable, max_verify_tokens: int) -> CostTable:
    """`table`, unless it was measured for much smaller steps than this engine runs."""
    largest = max(table.samples.verify[-1][0], table.samples.most_tokens)
    if largest * 2 < max_verify_tokens:
        raise CostTableError(
            f"The cost table ends at {largest} tokens; this engine's steps have up to "
            f"{max_verify_tokens}."
        )
    return table


def table_key(vllm_config: VllmConfig) -> TableKey:
    """What a cost table is valid for."""
    model, spec = vllm_config.model_config, vllm_config.speculative_config
    assert spec is not None
    return TableKey(
        device=_device_name(),
        target=model.model,
        drafter=f"{spec.method}:{spec.model}{_placement(vllm_config)}",
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization or "none",
        tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
        attention_backend=str(vllm_config.attention_config.backend or "default"),
        vllm_version=vllm_version(),
        vllm_smart_version=vllm_smart.__version__,
        compiled=not model.enforce_eager,
        cudagraph_mode=vllm_config.compilation_config.cudagraph_mode.name,
    )


def _placement(vllm_config: VllmConfig) -> str:
    config = smart_config(vllm_config)
    is_beside = config is not None and config.drafter.placement == "process"
    return " beside" if is_beside else ""


def _device_name() -> str:
    """The accelerator's name; for a CPU its model and how many threads the engine has."""
    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
        name = names[0] if names else name
    except OSError:
        pass
    return f"{name} ({torch.get_num_threads()} threads)"
