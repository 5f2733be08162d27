"""What a GPU can tell in minutes: is it right, what do the kernels cost, is it faster.

    python -m benchmarks.on_gpu --out OUT [--seconds 540] [--only kernels exactness bench ...]

Each part is a process of its own with a log and a time limit, so that one that hangs costs no more than
its share. Parts that measure run alone. OUT/summary.md says how each has ended, and fills as they end;
whatever a part has written before its time was up stays in OUT.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SHOWN_LINES = 12  # of a part's log, in the summary
_SECONDS_TO_END = 15.0  # between asking a part to end and ending it
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5")


@dataclass(frozen=True)
class Part:
    """A command that tells something."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    measures: bool  # whether nothing else may run beside it


def parts(out: Path) -> list[Part]:
    """All of them, what is asked first before the rest; `out` takes what they write."""
    suite = str(Path(__file__).parent / "suites" / "gpu-first.yaml")
    bench = (sys.executable, "-m", "vllm_smart.cli", "bench", suite, "--out", str(out / "gpu-first"))
    timings = (sys.executable, "-m", "benchmarks.triton_kernels", "--out", str(out / "kernels.json"))
    timings += ("--contexts", "512", "4096", "--requests", "1", "16", "64")
    exactness = (sys.executable, "-m", "benchmarks.exactness", "--out", str(out / "exactness"))
    kernels = "(_gpu or _reference or test_device) and not _cpu and not stock_bits"
    around_kernels = ["tests/unit/step", "tests/unit/growth", "tests/unit/test_device_arrays.py"]
    on_device = "device or cuda or graphs or growth or allocation"
    return [
        Part(
            "kernels",
            (*_PYTEST, "tests/kernels", "-k", kernels),
            240,
            False,
        ),
        Part("adapter", (*_PYTEST, "tests/adapter", *around_kernels, "-k", on_device), 240, False),
        Part("engine", (*_PYTEST, "tests/e2e/test_cuda_path.py"), 300, False),
        Part("exactness", (*exactness, "pair bfloat16", "pair float16"), 240, False),
        Part("timings", timings, 90, True),
        Part("bench", bench, 420, True),
    ]


@dataclass
class Ended:
    """How a part has ended."""

    part: Part
    seconds: float
    status: str


class Running:
    """A part that runs; its output goes to `log`."""

    def __init__(self, part: Part, log: Path, deadline_s: float) -> None:
        """Start it; at `deadline_s` of the monotonic clock all parts end."""
        self.part, self._begin_s = part, time.monotonic()
        self._end_s = min(self._begin_s + part.limit_s, deadline_s)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                part.command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> Ended:
        """Until it ends, or is ended for want of time: asked first, that it may write its report."""
        status = "out of time"
        try:
            code = self._process.wait(max(0.0, self._end_s - time.monotonic()))
            status = "passed" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        return Ended(self.part, time.monotonic() - self._begin_s, status)

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


def run(chosen: Iterable[Part], out: Path, seconds: float) -> list[Ended]:
    """Run parts for at most `seconds`, those that do not measure side by side."""
    out.mkdir(parents=True, exist_ok=True)
    deadline_s, ended = time.monotonic() + seconds - _SECONDS_TO_END, []
    chosen = list(chosen)
    groups = [[part for part in chosen if not part.measures]]
    groups += [[part] for part in chosen if part.measures]
    for group in groups:
        running = [Running(part, out / f"{part.name}.log", deadline_s) for part in group]
        for each in running:
            ended.append(each.wait())
            (out / "summary.md").write_text(summary(ended, out))
    return ended


def summary(ended: list[Ended], out: Path) -> str:
    """A table of how parts have ended, and the last lines of each."""
    lines = ["| part | status | seconds |", "|---|---|---|"]
    lines += [f"| {each.part.name} | {each.status} | {each.seconds:.0f} |" for each in ended]
    for each in ended:
        text = (out / f"{each.part.name}.log").read_text(encoding="utf-8", errors="replace")
        lines += ["", f"## {each.part.name}", "", "```", *text.splitlines()[-_SHOWN_LINES:], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
    parser.add_argument("--only", nargs="+", help="names of parts; all if left out")
    args = parser.parse_args()
    known = parts(args.out)
    unknown = set(args.only or ()) - {part.name for part in known}
    if unknown:
        names = ", ".join(part.name for part in known)
        sys.exit(f"--only: there is no part {sorted(unknown)[0]!r}. There are: {names}.")
    os.environ["VLLM_SMART_TRY_CUDA"] = "1"
    ended = run((p for p in known if not args.only or p.name in args.only), args.out, args.seconds)
    print((args.out / "summary.md").read_text())
    sys.exit(any(each.status != "passed" for each in ended))


if __name__ == "__main__":
    main()
