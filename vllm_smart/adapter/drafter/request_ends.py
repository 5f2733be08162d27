"""Where requests end, which no draft need reach beyond."""

import numpy as np
from vllm.v1.worker.gpu.states import RequestState


class RequestEnds:
    """By request-state slot."""

    def __init__(self, req_states: RequestState, max_model_len: int) -> None:
        """Args:
        req_states: vLLM's.
        max_model_len: most tokens of a request.
        """
        self._req_states, self._max_model_len = req_states, max_model_len

    def useful_depth(self, slots: np.ndarray, num_computed: np.ndarray) -> np.ndarray:
        """[num_reqs] tokens that the next step may emit before each request ends, bonus excluded.

        Deeper nodes are wasted, and so is any draft for a request that has ended.
        """
        most = np.minimum(self._req_states.max_seq_len[slots], self._max_model_len)
        return most - (num_computed + 1) - 1
