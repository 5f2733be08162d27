"""How long a second replica takes to be ready, which finds the first one's cost table.

    python -m benchmarks.second_replica --rounds 3
    python -m benchmarks.second_replica --rounds 1 --pair FOLDER --compiled

Servers of a pair, the shipped one by default, one after the other. The first measures its costs while
it is idle and leaves them in a shared folder. Then plain vLLM, vLLM's own chains by the same drafter,
and a replica that finds the table start in turns, with what vLLM keeps between starts, but without a
table of their own. A server is ready when it says it is healthy.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.start_times import MEASURED, seconds_to_ready
from vllm_smart.demo.start import ServeCommand
from vllm_smart.demo_model import demo_model_paths

_FOUND = "/shared/"  # in the line that says which table is reused
_PLAIN, _CHAINS, _REPLICA = "plain vLLM", "vLLM's chains", "second replica"


def main() -> None:
    """Parse, start servers in turns, print seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second_replica")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", type=Path, help="with folders `target` and `eagle3`")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compiled", action="store_true", help="not eager")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pair = demo_model_paths() if args.pair is None else {k: args.pair / k for k in ("target", "eagle3")}
    seconds: dict[str, list[float]] = {name: [] for name in (_PLAIN, _CHAINS, _REPLICA)}
    with tempfile.TemporaryDirectory() as folder:
        caches, tables = Path(folder) / "caches", Path(folder) / "shared"
        commands = {name: _command(pair, args, name, tables) for name in seconds}
        took = seconds_to_ready(commands[_REPLICA], caches, has_own_loops=False, until=MEASURED)
        print(f"the first replica: {took:.1f} s", flush=True)
        for name in (_PLAIN, _CHAINS):  # so that everybody finds what vLLM keeps
            seconds_to_ready(commands[name], caches, has_own_loops=False)
        for _ in range(args.rounds):
            for name, command in commands.items():
                shutil.rmtree(caches / "vllm_smart", ignore_errors=True)
                took = seconds_to_ready(command, caches, has_own_loops=False)
                if name == _REPLICA and _FOUND not in _reused((caches / "log").read_text()):
                    raise SystemExit(f"The second replica has not found the table: see {caches}/log.")
                seconds[name].append(round(took, 2))
                print(f"{name}: {took:.2f} s", flush=True)
    medians = {name: median(each) for name, each in seconds.items()}
    result = {"seconds": seconds, "medians": medians, "load_1m": os.getloadavg()[0]}
    print(json.dumps(result, indent=1))
    for other in (_PLAIN, _CHAINS):
        print(f"{_REPLICA}: {medians[_REPLICA] - medians[other]:+.2f} s beside {other}")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def _command(pair: dict[str, Path], args: argparse.Namespace, name: str, tables: Path) -> ServeCommand:
    vllm = str(Path(sys.executable).with_name("vllm"))
    argv = [vllm, "serve", str(pair["target"]), "--served-model-name", "demo", "--dtype", args.dtype]
    argv += ["--max-model-len", "1024", "--max-num-seqs", "8", "--gpu-memory-utilization", "0.3"]
    argv += [] if args.compiled else ["--enforce-eager"]
    drafter = {"method": "eagle3", "model": str(pair["eagle3"])}
    if name == _CHAINS:
        argv += ["--speculative-config", json.dumps({**drafter, "num_speculative_tokens": 3})]
    elif name == _REPLICA:
        smart = {"drafter": drafter, "cost_table": {"shared_dir": str(tables)}}
        spec = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 32, "smart": smart}
        argv += ["--speculative-config", json.dumps(spec)]
    return ServeCommand(argv, {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")})


def _reused(log: str) -> str:
    return "".join(line for line in log.splitlines() if "cost table" in line and "reused" in line)


if __name__ == "__main__":
    main()
