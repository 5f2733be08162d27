"""What the machine can do: its arithmetic, and how many of its cores are idle.

Two threads on one free core are far slower than one: each operation waits for the thread that
was taken off its core.
"""

import time
from contextlib import AbstractContextManager, nullcontext

import torch

# Inductor otherwise compiles the number of threads into its kernels.
torch._inductor.config.cpp.dynamic_threads = True


def autocast() -> AbstractContextManager:
    """Matrix products in bfloat16 where the CPU has them; emulated ones are far slower."""
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


class ThreadTuner:
    """Tries the other thread counts now and then and stays with the fastest.

    Call `tick` once a training step. A trial is two steps, because the first one pays for waking
    threads up.
    """

    def __init__(self, every: int = 30) -> None:
        self._counts = list(range(1, torch.get_num_threads() + 1))
        self._every = every
        self._trials: list[int] = []
        self._seconds: dict[int, float] = {}
        self._steps = every  # the first trial is due at once
        self._since = time.monotonic()

    def tick(self) -> None:
        """Notes that a step has ended and sets the thread count of the next one."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._steps += 1
        if self._trials:
            self._seconds[self._trials[0]] = seconds
            if self._steps % 2 == 0:
                self._trials.pop(0)
                best = min(self._seconds, key=self._seconds.__getitem__)
                torch.set_num_threads(self._trials[0] if self._trials else best)
        elif self._steps >= self._every:
            self._steps, self._seconds = 0, {}
            self._trials = list(self._counts)
            torch.set_num_threads(self._trials[0])
