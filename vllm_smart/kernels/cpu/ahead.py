"""Compiles loops before they are needed: in a process of its own, while vLLM compiles the model.

numba compiles a function at its first call, and an engine's first start calls some thirty of them: 20 s
on one core, while another has nothing to do. What is compiled here the engine finds in numba's cache.
What is missing in `loops.json` it compiles itself, as it would have without this.

    python -m vllm_smart.kernels.cpu.ahead eagle3+ngram bfloat16 FOLDER
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

_LOCK = "compiling.lock"  # locked as long as a process is at it
_LOOK_EVERY_S = 0.05
_MOST_S = 300.0  # then the engine compiles what it lacks itself
_PACKAGE = Path(__file__).parents[2]


def start_compiling(drafters: str, dtype: str, folder: Path) -> None:
    """Start a process that fills numba's cache.

    Does nothing where that was done before, and while another process is at it.

    Args:
        drafters: the drafter's method, "ngram", or both with a plus.
        dtype: of the model, as "bfloat16".
        folder: for the file that says that the process runs.

    Raises:
        OSError: the folder cannot be written.
    """
    mark = _mark(drafters, dtype, folder)
    if mark.exists() and mark.read_text(encoding="utf-8") == _state():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        # The lock belongs to the open file: the process holds it without knowing, and however it ends.
        command = [sys.executable, "-m", __name__, drafters, dtype, str(folder)]
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


def compile_for_every_drafter(folder: Path, progress: Callable[[str, int, int], None]) -> None:
    """Fill numba's cache for engines in bfloat16, the dtype of most models.

    Args:
        folder: as for `start_compiling`.
        progress: called with what is done, how much of it, and of how much.
    """
    from vllm_smart.kernels.cpu.loops import engines_of

    folder.mkdir(parents=True, exist_ok=True)
    of_dtype = [engine for engine in engines_of() if engine.endswith(" 16-bit")]
    for done, engine in enumerate(of_dtype):
        progress("compiling loops", done, len(of_dtype))
        compile_all(engine.removesuffix(" 16-bit"), "bfloat16", folder)
    progress("compiling loops", len(of_dtype), len(of_dtype))


def compile_all(drafters: str, dtype: str, folder: Path) -> None:
    """Fill numba's cache for engines with these drafters and dtype; arguments as `start_compiling`."""
    import torch

    from vllm_smart.kernels.cpu.loops import loops_of
    from vllm_smart.kernels.kv_compaction.cpu import compaction_entry
    from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention

    # The largest first, and the last that the engine gets to.
    of_model: torch.dtype = getattr(torch, dtype)
    attention = CpuTreeAttention(num_threads=1)
    for each in {of_model, torch.float32}:  # in which its bits are checked at the start
        attention.warm_up(each, head_size=64)  # any multiple of 32, as most are
    compaction_entry(of_model.itemsize)
    for loop in reversed(loops_of(f"{drafters} {8 * of_model.itemsize}-bit")):
        try:
            loop.compile()
        except Exception as error:  # the list is of another version, or numba is
            print(f"vllm_smart: {loop} is not compiled ahead: {error!r}", file=sys.stderr)
    _mark(drafters, dtype, folder).write_text(_state(), encoding="utf-8")


def _mark(drafters: str, dtype: str, folder: Path) -> Path:
    """The file that says for which state of our code numba's cache was filled.

    It lies in that cache, and goes with it; in `folder` where numba may not write beside our code.
    """
    given, beside = os.environ.get("NUMBA_CACHE_DIR"), Path(__file__).parent / "__pycache__"
    if given:
        folder = Path(given)
    elif os.access(beside, os.W_OK):
        folder = beside
    return folder / f"vllm_smart-compiled-{drafters}-{dtype}"


def _state() -> str:
    """Of all that numba's cache goes by."""
    import llvmlite.binding as binding

    cpu = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    digest = hashlib.sha256(f"{version('numba')} {sys.version} {cpu}".encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        stat = path.stat()
        digest.update(f"{path} {stat.st_mtime_ns} {stat.st_size}".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    compile_all(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
