"""How long the demonstration's server takes to be ready, beside plain vLLM with the same model.

    vllm-smart serve-demo --port 8000        # once, for the pair; then stop it
    python -m benchmarks.start_times --rounds 2

Each round starts both with caches that no process has filled (compiled loops, vLLM's compilations,
cost tables), and then with what these starts have left. A server is ready when it says it is healthy.
"""

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

import torch

from vllm_smart.demo.size import load_sized
from vllm_smart.demo.start import ServeCommand, demo_folder, serve_command
from vllm_smart.demo_model.kept import kept_pair

_OURS = ("--speculative-config", "--additional-config")
_MOST_S = 900


def main() -> None:
    """Parse, start servers in turns, print seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_times")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for caches in ("empty", "filled"):
                for name in ("plain", "with trees"):
                    took = seconds_to_ready(
                        _command(name == "plain"), Path(folder) / name.replace(" ", "-")
                    )
                    seconds.setdefault(f"{name}, {caches} caches", []).append(round(took, 1))
                    print(f"{name}, {caches} caches: {took:.1f} s", flush=True)
    result = {"seconds": seconds, "medians": {name: median(each) for name, each in seconds.items()}}
    result["load_1m"] = os.getloadavg()[0]
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def seconds_to_ready(command: ServeCommand, caches: Path) -> float:
    """Start a server, wait until it is healthy, and stop it.

    Args:
        caches: folder that vLLM, torch, numba and we keep things in.

    Raises:
        RuntimeError: it ended, or took too long; with the end of its log.
    """
    caches.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **command.environment, "XDG_CACHE_HOME": str(caches)}
    environment |= {"NUMBA_CACHE_DIR": str(caches / "numba"), "VLLM_CACHE_ROOT": str(caches / "vllm")}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
    url = f"http://127.0.0.1:{command.argv[command.argv.index('--port') + 1]}/health"
    with (caches / "log").open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command.argv, env=environment, stdout=log, stderr=log)
        try:
            while time.perf_counter() - start < _MOST_S and process.poll() is None:
                try:
                    urllib.request.urlopen(url, timeout=5)
                    return time.perf_counter() - start
                except OSError:
                    time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(60)
    raise RuntimeError((caches / "log").read_text()[-3000:])


def _command(is_plain: bool) -> ServeCommand:
    sized = load_sized(demo_folder() / "size.json")
    if sized is None:
        raise SystemExit("There is no demonstration yet. Run `vllm-smart serve-demo` once.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = kept_pair(demo_folder(), sized.shape)
    dtype, on_gpu = sized.shape.dtype, torch.cuda.is_available()
    command = serve_command(pair, dtype, port, on_gpu, ("--host", "127.0.0.1"))
    if not is_plain:
        return command
    argv = list(command.argv)
    for flag in _OURS:
        at = argv.index(flag)
        del argv[at : at + 2]
    return ServeCommand(argv, command.environment)


if __name__ == "__main__":
    main()
