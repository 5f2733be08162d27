"""Costs of this engine's steps: taken from the cache, or measured when the engine starts."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

import vllm_smart
from vllm_smart.adapter.step_timer import StepTimer
from vllm_smart.config import SmartConfig
from vllm_smart.errors import ConfigError, CostTableError
from vllm_smart.profiling import (
    CostTable,
    TableKey,
    default_folder,
    load,
    measure,
    save,
    table_path,
)
from vllm_smart.scheduler import explain, explain_line, needs_costs
from vllm_smart.seams.host import vllm_version

logger = init_logger("vllm.smart")

_MOST_NOISE = 0.5  # of a table that is kept


def prepare_costs(
    runner: GPUModelRunner, config: SmartConfig, rehearse: Callable[[], None] = lambda: None
) -> None:
    """Give the runtime of `runner` its cost table and say in one line what was chosen.

    Every tensor-parallel rank decides by rank 0's table, so all ranks grow the same trees.

    Args:
        runner: of this worker.
        config: the engine's settings.
        rehearse: runs requests that mean nothing, once costs are known.
    """
    runtime = runner.speculator.runtime
    if not needs_costs(config):
        runtime.use_costs(None, rehearse=rehearse)
        logger.info("vllm_smart: policy %s needs no costs.", config.policy.name)
        return
    group = get_tp_group()
    table = _table(runner, config, is_first=group.rank_in_group == 0)
    if group.world_size > 1:
        table = group.broadcast_object(table, src=0)
    name = _table_path(runner.vllm_config, config).name
    runtime.use_costs(table, name, rehearse)
    if group.rank_in_group == 0:
        has_drafter = config.drafter.method != "ngram"
        expected = list(explain(table, runtime.limits, runner.max_num_reqs))
        runtime.reports.stats.show_table(expected)
        logger.info("vllm_smart: %s", explain_line(expected, has_drafter))


def _table(runner: GPUModelRunner, config: SmartConfig, is_first: bool) -> CostTable:
    """The user's table, the cached one, or a new measurement (which all ranks take part in)."""
    settings = config.cost_table
    if settings.path is not None:
        return load(settings.path)
    key, path = table_key(runner.vllm_config), _table_path(runner.vllm_config, config)
    folder = path.parent
    timer = StepTimer(runner)
    table = None
    if settings.measure != "always" and is_first and path.exists():
        try:
            table = _covering(load(path, key), timer.max_verify_tokens)
            logger.info("vllm_smart: cost table %s reused.", path)
        except CostTableError as error:
            logger.warning("vllm_smart: %s Measuring again.", error)
    group = get_tp_group()
    if group.world_size > 1:
        table = group.broadcast_object(table, src=0)
    if table is not None:
        return table
    if settings.measure == "never":
        raise ConfigError(
            f"cost_table.measure is 'never', but there is no usable table at {path}. "
            "Set it to 'auto', or give cost_table.path."
        )
    start = time.perf_counter()
    with tqdm(desc="vllm_smart: timing steps", unit="step", disable=not is_first) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        table = measure(
            timer.run,
            timer.max_verify_tokens,
            timer.max_draft_rows,
            settings.repeats,
            settings.budget_s,
            show,
            timer.context_shapes,
        )
    logger.info("vllm_smart: costs measured in %.1f s.", time.perf_counter() - start)
    noise = table.samples.noise
    if noise > _MOST_NOISE:
        logger.warning(
            "vllm_smart: the machine was busy while steps were timed (repeated timings differ by "
            "%.0f%%): the cost table is used, but not kept. Live step times will correct it.",
            noise * 100,
        )
    elif is_first:
        try:
            logger.info("vllm_smart: cost table %s written.", save(table, key, folder))
        except OSError as error:
            logger.warning("vllm_smart: the cost table could not be kept in %s: %s.", folder, error)
    return table


def _table_path(vllm_config: VllmConfig, config: SmartConfig) -> Path:
    """Where the engine's table is, or would be kept."""
    settings = config.cost_table
    folder = settings.cache_dir or default_folder()
    return settings.path or table_path(folder, table_key(vllm_config))


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
        drafter=f"{spec.method}:{spec.model}",
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization or "none",
        tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
        attention_backend=str(vllm_config.attention_config.backend or "default"),
        vllm_version=vllm_version(),
        vllm_smart_version=vllm_smart.__version__,
        compiled=not model.enforce_eager,
        cudagraph_mode=vllm_config.compilation_config.cudagraph_mode.name,
    )


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
