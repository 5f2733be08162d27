"""Compiles loops before they are needed: in a process of its own, while vLLM compiles the model.

numba compiles a function at its first call, and an engine's first start calls some thirty of them: 20 s
on one core, while another has nothing to do. What is compiled here the engine finds in numba's cache.
What is missing in `loops.json` it compiles itself, as it would have without this.

    python -m vllm_smart.kernels.cpu.ahead eagle3+ngram bfloat16
"""

import fcntl
import functools
import subprocess
import sys
import time
from pathlib import Path

_LOCK = "compiling.lock"  # locked as long as a process is at it
_LOOK_EVERY_S = 0.05
_MOST_S = 300.0  # then the engine compiles what it lacks itself


@functools.cache
def start_compiling(drafters: str, dtype: str, folder: Path) -> None:
    """Start a process that fills numba's cache, once in this process for the same arguments.

    Does nothing while another one is at it.

    Args:
        drafters: the drafter's method, "ngram", or both with a plus.
        dtype: of the model, as "bfloat16".
        folder: for the file that says that the process runs.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        # The lock belongs to the open file: the process holds it without knowing, and however it ends.
        command = [sys.executable, "-m", __name__, drafters, dtype]
        subprocess.Popen(command, pass_fds=[file.fileno()], stdin=subprocess.DEVNULL)


def wait_for_compiling(folder: Path, most_s: float = _MOST_S) -> bool:
    """Wait until no process is filling numba's cache; whether that was so in time.

    Args:
        folder: as for `start_compiling`.
        most_s: seconds to wait at most.
    """
    deadline = time.monotonic() + most_s
    if not (folder / _LOCK).exists():
        return True
    with (folder / _LOCK).open() as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(_LOOK_EVERY_S)
    return False


def compile_all(drafters: str, dtype: str) -> None:
    """Fill numba's cache for engines with these drafters and dtype; quick where it is filled."""
    import torch

    from vllm_smart.kernels.cpu.loops import loops_of
    from vllm_smart.kernels.kv_compaction.cpu import compaction_entry
    from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention

    # The largest first, and the last that the engine gets to.
    of_model: torch.dtype = getattr(torch, dtype)
    CpuTreeAttention(num_threads=1).warm_up(of_model)
    compaction_entry(of_model.itemsize)
    for loop in reversed(loops_of(f"{drafters} {8 * of_model.itemsize}-bit")):
        loop.compile()


if __name__ == "__main__":
    compile_all(*sys.argv[1:])
