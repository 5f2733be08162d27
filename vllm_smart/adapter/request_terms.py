"""What single requests allow and ask for: chains only, a weight, a cap on their draft nodes."""

from typing import Any

import numpy as np
from vllm.logger import init_logger
from vllm.v1.core.sched.output import NewRequestData

logger = init_logger("vllm.smart")

WEIGHT_KEY = "smart_weight"  # in a request's `vllm_xargs` (`SamplingParams.extra_args`)
MAX_NODES_KEY = "smart_max_nodes"
_HIGHEST_WEIGHT = 100.0
_NO_CAP = np.iinfo(np.int64).max


class RequestTerms:
    """By request-state slot."""

    def __init__(self, max_num_reqs: int) -> None:
        """Args:
        max_num_reqs: number of slots.
        """
        # Requests whose trees must be chains: a grammar checks drafts in order.
        self.chain_only = np.zeros(max_num_reqs, bool)
        self._max_nodes = np.full(max_num_reqs, _NO_CAP)

    def add_request(self, slot: int, data: NewRequestData) -> float:
        """Note the terms of a request that was given `slot`; returns its weight, 1 by default."""
        params = data.sampling_params
        self.chain_only[slot] = params is not None and (
            params.structured_outputs is not None or params.thinking_token_budget is not None
        )
        extra = (params.extra_args if params is not None else None) or {}
        cap = _read(extra, MAX_NODES_KEY, data.req_id, lowest=0, highest=_NO_CAP)
        self._max_nodes[slot] = _NO_CAP if cap is None else int(cap)
        weight = _read(extra, WEIGHT_KEY, data.req_id, 1 / _HIGHEST_WEIGHT, _HIGHEST_WEIGHT)
        return 1.0 if weight is None else weight

    def max_nodes_of(self, slots: np.ndarray) -> np.ndarray | None:
        """[len(slots)] most draft nodes of each request; None where none has a cap."""
        caps = self._max_nodes[slots]
        return caps if (caps != _NO_CAP).any() else None


def _read(extra: dict[str, Any], key: str, request: str, lowest: float, highest: float) -> float | None:
    """The number under `key`; None if it is missing, or wrong, of which the log tells."""
    value = extra.get(key)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if lowest <= number <= highest:
        return number
    logger.warning(
        "vllm_smart: request %s: %s=%r is not a number from %g to %g and has no effect.",
        *(request, key, value, lowest, highest),
    )
    return None
