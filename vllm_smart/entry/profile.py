"""Measuring a cost table without serving: `vllm-smart profile`."""

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vllm_smart.config import SmartConfig
from vllm_smart.entry.launch import PROPOSER
from vllm_smart.errors import SmartError

logger = logging.getLogger("vllm.smart")


def profile(
    target: str, config: SmartConfig, num_speculative_tokens: int | None, engine_args: dict[str, Any]
) -> Path:
    """Start the engine that `vllm serve` would start, time its steps, and keep the table.

    Args:
        target: folder or hub id of the model to serve.
        config: the settings; tables that are there already are measured anew.
        num_speculative_tokens: as for serving; None where the YAML sets `tree.node_budget`.
        engine_args: further arguments of the engine, e.g. {"max_num_seqs": 32}.

    Returns:
        The file of the table, which engines with the same arguments find by themselves.

    Raises:
        SmartError: as at a start of the engine.
    """
    if config.drafter.placement != "auto":
        return _profile(target, config, num_speculative_tokens, engine_args)
    # Whoever chooses between both needs both. A process each, as an engine leaves much behind.
    measured = {}
    for placement in ("process", "inline"):
        placed = config.with_placement(placement)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            run = apart.submit(_profile, target, placed, num_speculative_tokens, engine_args)
            try:
                measured[placement] = run.result()
            except SmartError as error:
                if placement == "inline":
                    raise
                logger.warning("vllm_smart: costs beside the target are not measured: %s", error)
    return measured["inline"]


def _profile(
    target: str, config: SmartConfig, num_speculative_tokens: int | None, engine_args: dict[str, Any]
) -> Path:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    from vllm_smart.profiling import default_folder

    costs = config.cost_table.model_copy(update={"measure": "always"})
    settings = config.model_copy(update={"cost_table": costs}).model_dump(mode="json")
    proposer: dict[str, Any] = {"model": PROPOSER}
    if num_speculative_tokens is not None:
        proposer["num_speculative_tokens"] = num_speculative_tokens
    llm = LLM(
        model=target,
        speculative_config=proposer,
        additional_config={"smart": settings},
        **engine_args,
    )
    name, *_ = llm.collective_rpc("smart_table_name")
    return (costs.cache_dir or default_folder()).expanduser() / name
