"""`drafter.placement: auto`, decided in the worker: it has its threads, and no model yet."""

from vllm.config import VllmConfig

from vllm_smart.adapter.cost_tables import table_key, tables_of
from vllm_smart.adapter.engine_settings import decide_placement
from vllm_smart.adapter.overlap.remote_drafter import choose_cores
from vllm_smart.config import SmartConfig
from vllm_smart.errors import ConfigError
from vllm_smart.growth.placement_choice import PlacementCosts, choose_placement
from vllm_smart.profiling import CostTable, TableKey
from vllm_smart.scheduler.explain import TYPICAL_LIMITS


def settle_placement(vllm_config: VllmConfig, config: SmartConfig) -> SmartConfig:
    """`config` with `drafter.placement` decided, which `vllm_config` has from now on, too.

    The front end has settled on inline already where a process cannot be.
    """
    if config.drafter.placement != "auto":
        return config
    threads = config.drafter.num_threads
    try:
        choose_cores(config.drafter.cores, threads)
    except ConfigError as error:
        return decide_placement(vllm_config, "inline", f"a process of its own has no cores ({error})")
    inline = table_key(vllm_config)
    beside = inline.model_copy(update={"drafter": TableKey.drafter_beside(inline.drafter, threads)})
    keys = inline, beside, table_key(vllm_config, threads)
    costs = PlacementCosts(*(_find(vllm_config, config, key) for key in keys))
    limits = config.growth if config.growth.node_budget else TYPICAL_LIMITS
    max_num_seqs = vllm_config.scheduler_config.max_num_seqs
    return decide_placement(vllm_config, *choose_placement(costs, limits, max_num_seqs))


def _find(vllm_config: VllmConfig, config: SmartConfig, key: TableKey) -> CostTable | None:
    tables = tables_of(vllm_config, config.cost_table, key=key)
    try:
        return tables.find(says_so=False)
    finally:
        tables.close()
