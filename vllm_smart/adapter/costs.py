"""Costs of this engine's steps: found, or measured, at its start or while it is idle."""

import functools
import time
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm
from vllm import envs
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.logger import init_logger
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_smart.adapter.cost_tables import tables_of
from vllm_smart.adapter.step_timer import StepTimer
from vllm_smart.config import SmartConfig
from vllm_smart.errors import ConfigError, CostTableError
from vllm_smart.profiling import (
    CostTable,
    Progress,
    SharedTables,
    Timings,
    guess,
    load,
    measure,
    run_all,
)
from vllm_smart.scheduler import explain, explain_line, needs_costs

logger = init_logger("vllm.smart")

_Broadcast = TypeVar("_Broadcast")

_MOST_NOISE = 0.5  # of a table that is kept
_LOOK_AGAIN_S = 1.0  # for a table that another engine measures


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
    runtime, settings = runner.speculator.runtime, config.cost_table
    if runtime.boards is not None:
        runtime.boards.drafter.wait_until_ready()
    if not needs_costs(config):
        runtime.use_costs(None, rehearse)
        logger.info("vllm_smart: policy %s needs no costs.", config.policy.name)
        return None
    if settings.path is not None:
        table = _with_waits(runner, load(settings.path))
        runtime.use_costs(table, rehearse)
        _say_what_pays(runner, config, table, settings.path.name)
        return None
    largest = StepTimer(runner).max_verify_tokens
    tables = tables_of(runner.vllm_config, settings, functools.partial(_check_covers, largest))
    seeks = settings.measure != "always" and _is_first()
    known, idle = _from_rank_0(tables.find() if seeks else None), None
    if known is not None:
        table = known
    elif settings.measure == "never":
        raise ConfigError(
            f"cost_table.measure is 'never', but there is no usable table {tables.name} in "
            f"{tables.places}. Set it to 'auto', or give cost_table.path."
        )
    elif settings.measure == "auto" and _is_ever_idle(runner.vllm_config):
        table = _from_rank_0(_guessed(runner))
        idle = IdleTiming(runner, config, tables)
    else:
        table = _at_start(runner, config, tables)
    table = _with_waits(runner, table)
    runtime.use_costs(table, rehearse)
    if idle is None:
        tables.close()
    _say_what_pays(runner, config, table, "guess" if idle is not None else tables.name)
    return idle


class IdleTiming:
    """Times the steps of an engine that has begun by a guess, one after the other.

    Of engines that need the same table one does. The others look for it now and then.
    """

    def __init__(self, runner: GPUModelRunner, config: SmartConfig, tables: SharedTables) -> None:
        """Nothing is run yet.

        Args: as for `prepare_costs`, and where the table will be.
        """
        self._runner, self._config, self._tables = runner, config, tables
        self._timer = StepTimer(runner)
        self._timings = _all_timings(self._timer, config)
        self._due = next(self._timings)
        self._spent_s = 0.0

    def run_one(self) -> float | None:
        """Time one step, which no request may be waiting for, or look for the table.

        After the last one the engine decides by what was measured, here or elsewhere.

        Returns:
            Seconds until this is worth calling again; None when there is no more to do.
        """
        turn = _from_rank_0(self._tables.turn() if _is_first() else None)
        if isinstance(turn, CostTable):
            self._use(turn)
            return None
        if not turn:
            return _LOOK_AGAIN_S
        kind, size = self._due
        self._runner.speculator.runtime.catch_up()
        ms = self._timer.run(kind, *size)
        self._spent_s += ms / 1e3
        try:
            self._due = self._timings.send(ms)
        except StopIteration as end:
            if _is_first():
                logger.info("vllm_smart: costs measured while idle, in %.1f s of steps.", self._spent_s)
                _keep(end.value, self._tables)
            self._use(_from_rank_0(end.value))
            return None
        return 0.0

    def _use(self, table: CostTable) -> None:
        self._tables.close()
        table = _with_waits(self._runner, table)
        self._runner.speculator.runtime.use_measured(table)
        _say_what_pays(self._runner, self._config, table, self._tables.name)


def _with_waits(runner: GPUModelRunner, table: CostTable) -> CostTable:
    """`table` with what steps wait for a level of a drafter that runs beside the target."""
    boards = runner.speculator.runtime.boards
    if boards is None:
        return table
    levels = tuple(boards.drafter.level_ms)
    return CostTable(table.samples.model_copy(update={"draft": levels, "beside": True}))


def _is_ever_idle(vllm_config: VllmConfig) -> bool:
    """Whether somebody calls while the engine has nothing to do (`entry.idle`).

    An engine in its client's process runs when it is asked to, and data-parallel engines in step.
    """
    return envs.VLLM_ENABLE_V1_MULTIPROCESSING and vllm_config.parallel_config.data_parallel_size == 1


def _at_start(runner: GPUModelRunner, config: SmartConfig, tables: SharedTables) -> CostTable:
    """A table that an engine does not start without: measured here, or awaited from another engine."""
    turn: CostTable | bool = True
    if config.cost_table.measure == "always":
        tables.claim()  # so that others wait; that it is somebody's already does not keep us
    elif _waits_for_others(runner.vllm_config):
        turn = _from_rank_0(_turn(tables) if _is_first() else True)
    return turn if isinstance(turn, CostTable) else _measured(runner, config, tables)


def _waits_for_others(vllm_config: VllmConfig) -> bool:
    """Data-parallel engines with experts run their steps together, so none may wait for another."""
    has_partners = vllm_config.parallel_config.data_parallel_size > 1
    return not (has_partners and vllm_config.model_config.is_moe)


def _turn(tables: SharedTables) -> CostTable | bool:
    turn = tables.turn()
    if turn is False:
        logger.info("vllm_smart: another engine measures cost table %s: waiting for it.", tables.name)
    while turn is False:
        time.sleep(_LOOK_AGAIN_S)
        turn = tables.turn()
    return turn


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


def _measured(runner: GPUModelRunner, config: SmartConfig, tables: SharedTables) -> CostTable:
    """A new measurement, which all ranks take part in; rank 0's."""
    start, timer = time.perf_counter(), StepTimer(runner)
    with tqdm(desc="vllm_smart: timing steps", unit="step", disable=not _is_first()) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()
            if _is_first():
                tables.claim()

        is_beside = runner.speculator.runtime.boards is not None
        found = run_all(_all_timings(timer, config, show, is_beside), timer.run)
        table = _with_waits(runner, _from_rank_0(found))
    if _is_first():
        logger.info("vllm_smart: costs measured in %.1f s.", time.perf_counter() - start)
        _keep(table, tables)
    return table


def _all_timings(
    timer: StepTimer,
    config: SmartConfig,
    progress: Progress = lambda done, total: None,
    is_beside: bool = False,
) -> Timings[CostTable]:
    settings = config.cost_table
    return measure(
        timer.max_verify_tokens,
        timer.max_draft_rows,
        settings.repeats,
        settings.budget_s,
        progress,
        timer.context_shapes,
        is_beside,
    )


def _keep(table: CostTable, tables: SharedTables) -> None:
    """Keep what was measured for other starts, unless it was much disturbed."""
    noise = table.samples.noise
    if noise > _MOST_NOISE:
        logger.warning(
            "vllm_smart: the machine was busy while steps were timed (repeated timings differ by "
            "%.0f%%): the cost table is used, but not kept. Live step times will correct it.",
            noise * 100,
        )
    else:
        tables.keep(table)


def _say_what_pays(
    runner: GPUModelRunner, config: SmartConfig, table: CostTable, table_name: str
) -> None:
    if _is_first():
        has_drafter, runtime = config.drafter.is_model, runner.speculator.runtime
        if runtime.boards is not None:
            runtime.reports.show_table(table_name, [])
            logger.info("vllm_smart: the drafter runs beside the target; its gain is not foretold.")
            return
        expected = list(explain(table, runtime.limits, runner.max_num_reqs))
        runtime.reports.show_table(table_name, expected)
        logger.info("vllm_smart: %s", explain_line(expected, has_drafter))


def _is_first() -> bool:
    return get_tp_group().rank_in_group == 0


def _from_rank_0(value: _Broadcast) -> _Broadcast:
    """What rank 0 has, in all ranks."""
    group = get_tp_group()
    return group.broadcast_object(value, src=0) if group.world_size > 1 else value


def _check_covers(max_verify_tokens: int, table: CostTable) -> None:
    """Refuse a table that was measured for much smaller steps than this engine runs."""
    largest = max(table.samples.verify[-1][0], table.samples.most_tokens)
    if largest * 2 < max_verify_tokens:
        raise CostTableError(
            f"The cost table ends at {largest} tokens; this engine's steps have up to "
            f"{max_verify_tokens}."
        )
