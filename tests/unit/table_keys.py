"""A key of a cost table, for tests that need some."""

from pathlib import Path

from vllm_smart.profiling import CostTable, TableKey, to_text

KEY = TableKey(
    device="NVIDIA H200",
    target="LlamaForCausalLM-32x4096-0f1e2d3c4b5a",
    drafter="eagle3:LlamaForCausalLMEagle3-1x4096-a5b4c3d2e1f0",
    dtype="bfloat16",
    quantization="none",
    tensor_parallel_size=1,
    nodes=1,
    attention_backend="FLASH_ATTN",
    vllm_version="0.32.0",
    cost_version=1,
    compiled=True,
    cudagraph_mode="FULL_AND_PIECEWISE",
)


def other_key(**fields: object) -> TableKey:
    """`KEY` with some fields replaced."""
    return KEY.model_copy(update=fields)


def save(table: CostTable, key: TableKey, folder: Path) -> Path:
    """The file of a table, as an engine keeps it."""
    path = folder / key.file_name
    path.write_text(to_text(table, key))
    return path
