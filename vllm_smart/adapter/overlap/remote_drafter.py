"""The drafter's process as the worker sees it: started, watched, and started again when it has died."""

import os
import re
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from vllm.logger import init_logger

from vllm_smart.adapter.overlap.orders import Orders
from vllm_smart.errors import ConfigError, UnsupportedError
from vllm_smart.overlap.drafts import DraftBoard
from vllm_smart.overlap.truth import TruthBoard

logger = init_logger("vllm.smart")

_REHEARSAL_S = 60.0  # most, until it begins or ends to run levels that mean nothing
_START_S = 600.0  # most, of the first start; vLLM compiles the model meanwhile
# After which nobody waits for it: a while, or so many of its largest levels, as reading takes longer.
_SILENT_S, _SILENT_LEVELS = 0.5, 20
_FIRST_BACKOFF_S, _LAST_BACKOFF_S, _HEALTHY_S = 1.0, 60.0, 60.0
# How vLLM binds threads of its own processes; the drafter's go elsewhere.
_BINDING = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


class RemoteDrafter:
    """Owns the process and the boards.

    Attributes:
        truth: what requests have said; to be written.
        drafts: what was grown; to be read.
        num_restarts: so far.
    """

    def __init__(
        self, orders: Orders, boards: tuple[TruthBoard, DraftBoard], cores: Sequence[int], threads: int
    ) -> None:
        """Start the process; it loads its model while the worker loads the target.

        Args:
            orders: for it, with the file descriptors of
            boards: the boards.
            cores: that it runs on; none: on any.
            threads: that it computes with.
        """
        self.truth, self.drafts = boards
        self.num_restarts = 0
        self._fds = [orders.to_memory(), orders.truth_fd, orders.drafts_fd]
        weakref.finalize(self, os.close, self._fds[0])
        self._cores, self._threads = ",".join(map(str, cores)), threads
        self._backoff_s, self._started_s, self._due_s = _FIRST_BACKOFF_S, 0.0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _BINDING}
        environment["OMP_NUM_THREADS"] = str(self._threads)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self.drafts.level_ns[0] = 0
        self._started_s = time.monotonic()
        self._process = process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm_smart.adapter.overlap.drafter_process"),
                *(str(self._fds[0]), str(os.getpid()), self._cores),
            ],
            env=environment,
            pass_fds=self._fds,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the engine
        )
        weakref.finalize(self, _end, process)  # also when the interpreter ends

    @property
    def pid(self) -> int:
        """Of the latest process."""
        assert self._process is not None
        return self._process.pid

    @property
    def level_ms(self) -> list[tuple[int, float]]:
        """(rows, milliseconds) of levels, as timed when it started; empty until it is ready."""
        if not self.drafts.level_ns[0]:
            return []
        times = self.drafts.level_ns.tolist()
        return [(1 << number, ns / 1e6) for number, ns in enumerate(times) if ns > 0]

    @property
    def is_there(self) -> bool:
        """Whether it drafts, and may be waited for."""
        return self._process is not None and self.drafts.level_ns[0] > 0 and self._is_awake

    @property
    def _is_awake(self) -> bool:
        longest_s = float(self.drafts.level_ns.max()) / 1e9
        return 0 <= self.drafts.silent_s < max(_SILENT_S, _SILENT_LEVELS * longest_s)

    def wait_until_ready(self) -> None:
        """Wait for the first start.

        Raises:
            UnsupportedError: it has died, or takes too long.
        """
        while not self.drafts.level_ns[0]:
            assert self._process is not None
            code, seconds = self._process.poll(), time.monotonic() - self._started_s
            if code is not None or seconds > _START_S:
                ended = f"ended with code {code}" if code is not None else f"took over {_START_S:.0f} s"
                raise UnsupportedError(
                    f"drafter.placement='process': the drafter's process {ended} before it could "
                    "draft; why is in the log above. Mend that, or set drafter.placement to inline."
                )
            time.sleep(0.01)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Have it run levels that mean nothing meanwhile; there must be no requests.

        Raises:
            UnsupportedError: it does not begin, or end.
        """
        self._rehearse(True)
        try:
            yield
        finally:
            self._rehearse(False)

    def _rehearse(self, wanted: bool) -> None:
        self.truth.rehearses, begin_s = wanted, time.monotonic()
        while self.drafts.rehearses != wanted:
            if time.monotonic() - begin_s > _REHEARSAL_S:
                raise UnsupportedError(
                    "drafter.placement='process': the drafter's process does not answer while steps "
                    "are timed; why is in the log above. Mend that, or set drafter.placement to inline."
                )
            time.sleep(1e-4)

    def watch(self) -> None:
        """Start it again if it has died; to be called at every step."""
        now_s = time.monotonic()
        if self._process is None:
            if now_s >= self._due_s:
                self.num_restarts += 1
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        if now_s - self._started_s > _HEALTHY_S:
            self._backoff_s = _FIRST_BACKOFF_S
        logger.warning(
            "vllm_smart: the drafter's process ended with code %d; it is started again in %.0f s. "
            "Requests are decoded without drafts until it is back.",
            code,
            self._backoff_s,
        )
        self._process, self._due_s = None, now_s + self._backoff_s
        self.drafts.level_ns[0] = 0
        self._backoff_s = min(2 * self._backoff_s, _LAST_BACKOFF_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def choose_cores(cores: Sequence[int] | None, threads: int) -> list[int]:
    """Where the drafter runs: its cores, none for any.

    Args:
        cores: as set by the user.
        threads: that it computes with.

    Raises:
        ConfigError: the target needs them.
    """
    allowed, bound, num_target = _allowed_cores(), _bound_cores(), torch.get_num_threads()
    way_out = (
        f"Give the target fewer threads ({num_target} here) by OMP_NUM_THREADS or, for a server, "
        "VLLM_CPU_OMP_THREADS_BIND, or set drafter.placement to inline."
    )
    free = allowed - bound
    if cores is None:
        # Where the target's threads are bound to cores, the others are free; else any may be.
        num_free = len(free) if bound else len(allowed) - num_target
        if num_free < threads:
            raise ConfigError(
                f"drafter.placement='process': of {len(allowed)} cores, the target's {num_target} "
                f"threads leave {max(num_free, 0)}, and the drafter has {threads}. {way_out}"
            )
        return sorted(free)[-threads:] if bound else []
    missing = sorted(set(cores) - allowed)
    if missing:
        raise ConfigError(
            f"drafter.cores={list(cores)}: this process may not run on core {missing[0]}. "
            f"Choose among {sorted(allowed)}."
        )
    if not set(cores) <= free or len(allowed - set(cores)) < (0 if bound else num_target):
        raise ConfigError(
            f"drafter.cores={list(cores)} overlap the target's, which has {num_target} threads on "
            f"{sorted(bound or allowed)}. {way_out}"
        )
    return list(cores)


def _allowed_cores() -> set[int]:
    """Those of this process, and of the one that has bound it to some of its own."""
    return os.sched_getaffinity(0) | os.sched_getaffinity(os.getppid())


def _bound_cores() -> set[int]:
    """Those that vLLM has bound the target's threads to; none where it has not."""
    found: set[int] = set()
    for name in ("OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
        listed = os.environ.get(name, "").rpartition("proclist=")[2]
        found |= {int(core) for core in re.findall(r"\d+", listed)}
    return found
