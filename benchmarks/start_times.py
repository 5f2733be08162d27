"""How long the demonstration's server takes to be ready, beside plain vLLM with the same model.

    vllm-smart serve-demo --port 8000        # once, for the pair; then stop it
    python -m benchmarks.start_times --rounds 2

Each round starts both with caches that no process has filled (vLLM's compilations, cost tables), and
then with what these starts have left; the one with trees has first measured its costs while it was
idle. Our loops are compiled at installation, unless `--loops` says that they are to be compiled anew. A
server is ready when it says it is healthy.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from vllm_smart.bench.server_process import ServerError, ServerProcess
from vllm_smart.demo.size import load_sized
from vllm_smart.demo.start import ServeCommand, demo_folder, serve_command
from vllm_smart.demo_model.kept import kept_pair

_OURS = ("--speculative-config", "--additional-config")
_MOST_S = 900
MEASURED = "costs measured while idle"  # what a server with trees then logs
_ANY_PORT = 0  # names a folder of settings that no server has


def main() -> None:
    """Parse, start servers in turns, print seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_times")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--loops", action="store_true", help="compile our loops in first starts, too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for caches in ("empty", "filled"):
                for name in ("plain", "with trees"):
                    took = seconds_to_ready(
                        _command(name == "plain"),
                        Path(folder) / name.replace(" ", "-"),
                        args.loops,
                        until=MEASURED if (name, caches) == ("with trees", "empty") else None,
                    )
                    seconds.setdefault(f"{name}, {caches} caches", []).append(round(took, 1))
                    print(f"{name}, {caches} caches: {took:.1f} s", flush=True)
    result = {"seconds": seconds, "medians": {name: median(each) for name, each in seconds.items()}}
    result["load_1m"] = os.getloadavg()[0]
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def seconds_to_ready(
    command: ServeCommand, caches: Path, has_own_loops: bool, until: str | None = None
) -> float:
    """Start a server, wait until it is healthy, and stop it.

    Args:
        command: of `vllm serve`; another port is taken.
        caches: folder that vLLM, torch and we keep things in.
        has_own_loops: whether compiled loops are kept there, too.
        until: what its log is to say before it is stopped.

    Raises:
        ServerError: it ended, or took too long; with the end of its log.
    """
    environment = {**os.environ, **command.environment, "XDG_CACHE_HOME": str(caches)}
    environment |= {"VLLM_CACHE_ROOT": str(caches / "vllm")}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
    if has_own_loops:
        environment |= {"NUMBA_CACHE_DIR": str(caches / "numba")}
    _, _, model, *flags = _without(command.argv, "--port")
    start = time.perf_counter()
    with ServerProcess(model, flags, environment, caches / "log", _MOST_S):
        took = time.perf_counter() - start
        while until is not None and until not in (caches / "log").read_text(errors="replace"):
            if time.perf_counter() - start > _MOST_S:
                raise ServerError(f"the server's log did not say {until!r} within {_MOST_S} s.")
            time.sleep(1.0)
        return took


def _command(is_plain: bool) -> ServeCommand:
    sized = load_sized(demo_folder() / "size.json")
    if sized is None:
        raise SystemExit("There is no demonstration yet. Run `vllm-smart serve-demo` once.")
    pair = kept_pair(demo_folder(), sized.shape)
    command = serve_command(pair, sized.shape.dtype, _ANY_PORT, torch.cuda.is_available())
    return replace(command, argv=_without(command.argv, *_OURS)) if is_plain else command


def _without(argv: list[str], *flags: str) -> list[str]:
    """`argv` without some flags and their values."""
    dropped = {at + more for at, word in enumerate(argv) if word in flags for more in (0, 1)}
    return [word for at, word in enumerate(argv) if at not in dropped]


if __name__ == "__main__":
    main()
