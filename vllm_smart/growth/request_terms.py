"""What single requests allow and ask for: chains only, a weight, a cap on their draft nodes."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

logger = logging.getLogger("vllm.smart")

# In a request's `vllm_xargs` (`SamplingParams.extra_args`).
WEIGHT_KEY = "smart_weight"
MAX_NODES_KEY = "smart_max_nodes"
# Where the engine core puts it for workers: whether reasoning has ended with the prompt (None: not
# known), and what its parser takes.
REASONING_KEY = "_smart_reasoning"
_OUR_PREFIX = "smart_"
_HIGHEST_WEIGHT = 100.0
_NO_CAP = np.iinfo(np.int64).max


class NewRequest(Protocol):
    """What is read of a request that vLLM hands to its workers, its `NewRequestData`."""

    req_id: str
    sampling_params: Any  # its `SamplingParams`; None for requests that sample nothing


class RequestTerms:
    """By request-state slot."""

    def __init__(self, max_num_reqs: int, on_host: bool = True) -> None:
        """Args:
        max_num_reqs: number of slots.
        on_host: whether the host knows trees when it hands their tokens on: only then can a grammar be
            walked along their paths.
        """
        self._on_host = on_host
        self.has_grammar = np.zeros(max_num_reqs, bool)
        # Requests whose trees must be chains: what checks their drafts goes by their order.
        self.chain_only = np.zeros(max_num_reqs, bool)
        self._max_nodes = np.full(max_num_reqs, _NO_CAP)

    def add_request(self, slot: int, data: NewRequest) -> float:
        """Note the terms of a request that was given `slot`; returns its weight, 1 by default."""
        params = data.sampling_params
        has_grammar = params is not None and params.structured_outputs is not None
        has_budget = params is not None and params.thinking_token_budget is not None
        self.has_grammar[slot] = has_grammar
        self.chain_only[slot] = has_budget or (has_grammar and not self._on_host)
        try:
            weight, self._max_nodes[slot] = read_terms(
                params.extra_args if params is not None else None
            )
        except ValueError as error:
            # Front ends refuse such a request. One that came another way must not end the engine.
            logger.warning("vllm_smart: request %s: %s It has no effect.", data.req_id, error)
            weight, self._max_nodes[slot] = read_terms(None)
        return weight

    def may_draft(self, slots: np.ndarray) -> np.ndarray:
        """[len(slots)] bool: False for requests capped at 0 nodes, which no drafter need run for."""
        may: np.ndarray = self._max_nodes[slots] > 0
        return may

    def max_nodes_of(self, slots: np.ndarray) -> np.ndarray | None:
        """[len(slots)] most draft nodes of each request; None where none has a cap."""
        caps = self._max_nodes[slots]
        return caps if (caps != _NO_CAP).any() else None


def read_terms(extra_args: Mapping[str, Any] | None) -> tuple[float, int]:
    """A request's weight and its most draft nodes, from its extra arguments.

    Raises:
        ValueError: a value is wrong, or no such argument exists; the message names it.
    """
    terms = {key: value for key, value in (extra_args or {}).items() if key.startswith(_OUR_PREFIX)}
    weight = terms.pop(WEIGHT_KEY, None)
    cap = terms.pop(MAX_NODES_KEY, None)
    for key in terms:
        raise ValueError(f"{key} is not read. There are {WEIGHT_KEY} and {MAX_NODES_KEY}.")
    if weight is None:
        weight = 1.0
    elif not (_is_number(weight) and 1 / _HIGHEST_WEIGHT <= weight <= _HIGHEST_WEIGHT):
        raise ValueError(
            f"{WEIGHT_KEY}={weight!r} is not a number from {1 / _HIGHEST_WEIGHT:g} to "
            f"{_HIGHEST_WEIGHT:g}."
        )
    if cap is None:
        cap = _NO_CAP
    elif not (_is_number(cap) and cap >= 0 and cap == int(min(cap, _NO_CAP))):
        raise ValueError(f"{MAX_NODES_KEY}={cap!r} is not a whole number from 0 on.")
    return float(weight), int(min(cap, _NO_CAP))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
