"""Which cost table is an engine's own, and where tables are."""

import platform
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from vllm.config import ModelConfig, VllmConfig
from vllm.distributed import get_tp_group
from vllm.distributed.parallel_state import _node_count
from vllm.platforms import current_platform

from vllm_smart.adapter.engine_settings import cluster_address, smart_config
from vllm_smart.config import CostTableConfig
from vllm_smart.profiling import (
    COST_VERSION,
    CostTable,
    FolderStore,
    RayStore,
    SharedTables,
    TableKey,
    TableStore,
    content_name,
    default_folder,
)
from vllm_smart.seams.host import vllm_version


def tables_of(
    vllm_config: VllmConfig,
    settings: CostTableConfig,
    check: Callable[[CostTable], None] = lambda table: None,
    key: TableKey | None = None,
) -> SharedTables:
    """This engine's table, in the stores that the settings name. All tensor-parallel ranks call it.

    Args:
        vllm_config: of the engine.
        settings: where tables are.
        check: as for `SharedTables`.
        key: of another engine's table; None: of this one's.
    """
    stores: list[TableStore] = [FolderStore(settings.cache_dir or default_folder())]
    if settings.shared_dir is not None:
        stores.append(FolderStore(settings.shared_dir))
    if (address := cluster_address(vllm_config)) is not None:
        stores.append(RayStore(address))
    return SharedTables(stores, key or table_key(vllm_config), check)


def table_key(vllm_config: VllmConfig, num_more_threads: int = 0) -> TableKey:
    """What a cost table is valid for. All tensor-parallel ranks call it.

    Args:
        vllm_config: of the engine; one that has not decided where its drafter runs has it inline.
        num_more_threads: of a target on a CPU that had more of them than this one.
    """
    model, config = vllm_config.model_config, smart_config(vllm_config)
    target, drafter = models_by_content(vllm_config)
    if config is not None and config.drafter.placement == "process":
        # A target beside its drafter has other costs, and none of drafting.
        drafter = TableKey.drafter_beside(drafter, config.drafter.num_threads)
    return TableKey(
        device=_device_name(num_more_threads),
        target=target,
        drafter=drafter,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization or "none",
        tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
        nodes=_node_count(get_tp_group().cpu_group),
        attention_backend=str(vllm_config.attention_config.backend or "default"),
        vllm_version=vllm_version(),
        cost_version=COST_VERSION,
        compiled=not model.enforce_eager,
        cudagraph_mode=vllm_config.compilation_config.cudagraph_mode.name,
    )


def models_by_content(vllm_config: VllmConfig) -> tuple[str, str]:
    """Names of target and drafter that all copies of them share, wherever they lie."""
    spec = vllm_config.speculative_config
    assert spec is not None
    draft = _content(spec.draft_model_config) if spec.method != "ngram_gpu" else "none"
    return _content(vllm_config.model_config), f"{spec.method}:{draft}"


def _content(model: ModelConfig) -> str:
    folder: Path | None = Path(model.model)
    if not Path(model.model).is_dir():
        cached = try_to_load_from_cache(model.model, "config.json", revision=model.revision)
        folder = Path(cached).parent if isinstance(cached, str) else None
    return content_name(model.hf_config.to_dict(), folder)


def _device_name(num_more_threads: int) -> str:
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
    return f"{name} ({torch.get_num_threads() + num_more_threads} threads)"
