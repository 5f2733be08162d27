"""Where an engine's ranks count for `/metrics`: the front end chooses, the workers make it."""

import os
from importlib.metadata import entry_points

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.logger import init_logger
from vllm.plugins import STAT_LOGGER_PLUGINS_GROUP

from vllm_smart.adapter.engine_settings import counters_prefix
from vllm_smart.reports.shared import SharedCounters, new_prefix

logger = init_logger("vllm.smart")

_ENTRY_POINT = "vllm_smart"
# Several API servers make a configuration each; all count on what the process before them has chosen.
_PREFIX_ENV = "_VLLM_SMART_COUNTERS"


def choose_prefix(args: EngineArgs) -> str | None:
    """Where the engine of `args` is to count; None where there is no `/metrics`.

    In the process that starts several API servers, these inherit the answer.
    """
    if not isinstance(args, AsyncEngineArgs):
        return None
    if not any(point.name == _ENTRY_POINT for point in entry_points(group=STAT_LOGGER_PLUGINS_GROUP)):
        logger.warning(
            "vllm_smart: /metrics will not have vllm_smart:*, because this installation was made "
            "before there was an entry point in %s. Install it again, e.g. `pip install -e .`.",
            STAT_LOGGER_PLUGINS_GROUP,
        )
        return None
    is_api_server = args._api_process_count > 1 and args._api_process_rank >= 0
    prefix = (os.environ.get(_PREFIX_ENV) if is_api_server else None) or new_prefix()
    if args._api_process_rank < 0:
        os.environ[_PREFIX_ENV] = prefix
    return prefix


def shared_counters(vllm_config: VllmConfig) -> SharedCounters | None:
    """What this worker is to count into; None if nobody reads it."""
    prefix, parallel = counters_prefix(vllm_config), vllm_config.parallel_config
    if prefix is None or parallel.rank % parallel.world_size != 0:
        return None
    rank = parallel.data_parallel_index
    try:
        return SharedCounters.create(prefix, rank)
    except OSError as error:
        logger.warning(
            "vllm_smart: engine %d will be missing on /metrics: %s. Set TMPDIR to a folder that the "
            "engine's processes may write to.",
            rank,
            error,
        )
        return None
