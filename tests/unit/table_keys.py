"""A key of a cost table, for tests that need some."""

from vllm_smart.profiling import TableKey

KEY = TableKey(
    device="NVIDIA H200",
    target="meta-llama/Llama-3.1-8B-Instruct",
    drafter="eagle3:some/head",
    dtype="bfloat16",
    quantization="none",
    tensor_parallel_size=1,
    attention_backend="FLASH_ATTN",
    vllm_version="0.32.0",
    vllm_smart_version="0.1.0",
    compiled=True,
    cudagraph_mode="FULL_AND_PIECEWISE",
)


def other_key(**fields: object) -> TableKey:
    """`KEY` with some fields replaced."""
    return KEY.model_copy(update=fields)
