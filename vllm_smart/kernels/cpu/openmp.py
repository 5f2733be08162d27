"""Compiled functions on torch's own threads."""

import ctypes
from typing import Any

import torch


class OpenMPTeam:
    """Runs compiled functions on the OpenMP threads that torch (and vLLM) use.

    The functions are submitted to the very OpenMP runtime that torch is bound to, so they inherit
    its threads and the affinity that vLLM gave them: there is no second pool to compete for the
    cores while the first still spins. With one thread, or where no such runtime is found,
    everything runs on the calling thread.

    Attributes:
        num_threads: Threads that take part, the caller included.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """`num_threads` defaults to torch's; another number makes OpenMP restart its threads."""
        self._parallel: Any = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        if self._parallel is None:
            self.num_threads = 1
        else:
            self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            self._parallel.restype = None

    def run(self, function: Any, argument: int, num_items: int) -> None:
        """Calls `function(argument)` on every thread, or only here if there is but one item.

        Args:
            function: A compiled function, see `compile_entry`.
            argument: Address of its argument block.
            num_items: How many pieces of work the threads share; with none, nothing happens.
        """
        if num_items == 0:
            return
        if self.num_threads == 1 or num_items == 1:
            function(argument)
        else:  # always the full team: libgomp ends the threads that a smaller one leaves out
            self._parallel(function, argument, self.num_threads, 0)
