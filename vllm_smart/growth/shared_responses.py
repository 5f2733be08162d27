"""Finished responses, offered to later requests of the same tenant."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from vllm_smart.proposer.shared_ring import NOBODY, SharedRing

# In a request's extra arguments, where the front end puts it: whose responses it may see.
TENANT_KEY = "_smart_tenant"
EVERYBODY = 0  # the tenant of all requests of an engine


class StartedRequest(Protocol):
    """What is read of a request that vLLM hands to its workers, its `NewRequestData`."""

    prompt_len: int
    sampling_params: Any


def tenant_of(cache_salt: str | None, adapter: str | None) -> int:
    """Whose a request is: as told by its `cache_salt` and its adapter; NOBODY's without a salt."""
    if not cache_salt:
        return NOBODY
    name = f"{len(cache_salt)}:{cache_salt}{adapter or ''}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1


class SharedResponses:
    """Knows of each slot whose request it has, and keeps what it has answered once it has ended.

    A response counts as finished if its last token is one that ends it, or its length does. One whose
    client has gone, or that a stop string has ended, is not kept: workers cannot tell them apart.
    """

    def __init__(
        self, ring: SharedRing, scope: Literal["tenant", "engine"], history: np.ndarray
    ) -> None:
        """Args:
        ring: where responses are kept.
        scope: whether requests see those of their tenant, or all of the engine's.
        history: [max_num_reqs, max_model_len] int32, the tokens of requests by slot.
        """
        self.ring = ring
        self._scope, self._history = scope, history
        num_slots, self._max_len = history.shape
        self.tenant = np.full(num_slots, NOBODY, np.int64)  # by slot
        self._prompt_len = np.zeros(num_slots, np.int64)
        self._most = np.zeros(num_slots, np.int64)  # tokens of prompt and response
        self._ends: dict[int, frozenset[int]] = {}  # tokens that end it, by slot

    def add_request(self, slot: int, request: StartedRequest) -> None:
        """Another request starts in `slot`."""
        params = request.sampling_params
        self.tenant[slot] = NOBODY
        if params is None:
            return
        extra: Mapping[str, Any] = params.extra_args or {}
        tenant = EVERYBODY if self._scope == "engine" else extra.get(TENANT_KEY, NOBODY)
        self.tenant[slot], self._prompt_len[slot] = tenant, request.prompt_len
        self._most[slot] = min(request.prompt_len + (params.max_tokens or self._max_len), self._max_len)
        self._ends[slot] = frozenset(() if params.ignore_eos else params.all_stop_token_ids)
        self._ends[slot] |= frozenset(params.stop_token_ids or ())

    def ended(self, slot: int, num_known: int) -> None:
        """The request in `slot` has ended.

        Args:
            num_known: its tokens that have been settled.
        """
        tenant, self.tenant[slot] = int(self.tenant[slot]), NOBODY
        response = self._history[slot, self._prompt_len[slot] : num_known]
        if tenant == NOBODY or not len(response):
            return
        if num_known >= self._most[slot] or int(response[-1]) in self._ends[slot]:
            self.ring.add(response, tenant)
