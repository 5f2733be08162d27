"""Which compiled loops engines need before they are ready: writes `kernels/cpu/loops.json` anew.

    python -m tests.e2e.record_loops

Starts an engine of each kind with an empty cache, one after the other: ten minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numba.core import event

from tests.e2e import scenarios
from vllm_smart.files import write_atomically
from vllm_smart.kernels.cpu.loops import LOOPS, Loop

METHODS = ("eagle", "eagle3", "draft_model", "ngram", "eagle3+ngram")
DTYPES = {"16-bit": "bfloat16", "32-bit": "float32"}
# Entries of their own kind, which `compile_all` knows by the dtype.
ENTRIES = {"vllm_smart.kernels.tree_attention.cpu.attend", "vllm_smart.kernels.kv_compaction.cpu"}


class _Listener(event.Listener):
    """Hears of functions that Python called; what they call in turn is compiled with them."""

    def __init__(self) -> None:
        self.loops: list[Loop] = []
        self._depth = 0

    def on_start(self, event: Any) -> None:
        if self._depth == 0:
            self.loops.append(Loop.of(event.data["dispatcher"], event.data["args"]))
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1


@contextmanager
def recorded() -> Iterator[list[Loop]]:
    """The loops that are compiled in this process meanwhile, none of them ahead."""
    from vllm_smart.entry import install

    before, listener = install.start_compiling, _Listener()
    install.start_compiling = lambda *_: None
    with event.install_listener("numba:compile", listener):
        yield listener.loops
    install.start_compiling = before


def job(method: str, dtype: str) -> dict:
    """Of the driver: an engine that is started and asked nothing."""
    base = {"model": str(scenarios.demo_model_paths()["target"]), "dtype": dtype}
    engine = {**base, **scenarios.TIGHT, "enforce_eager": True, "seed": 0}
    settings = scenarios.with_trees(method, {"name": "smart"})
    settings["additional_config"]["smart"]["cost_table"] = {"path": "costs.json"}
    files = {"costs.json": json.dumps(scenarios.costs())}
    return {"engine": {**engine, **settings}, "runs": [], "files": files, "loops": "loops.json"}


def main() -> None:
    engines: dict[Loop, list[str]] = {}
    for method in METHODS:
        for size, dtype in DTYPES.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder)
                (path / "job.json").write_text(json.dumps(job(method, dtype)))
                env = {**os.environ, "NUMBA_CACHE_DIR": str(path / "numba"), "XDG_CACHE_HOME": folder}
                command = [sys.executable, "-m", "tests.e2e.driver"]
                subprocess.run(
                    [*command, str(path / "job.json"), str(path / "result.json")], env=env, check=True
                )
                found = [Loop.parse(each) for each in json.loads((path / "loops.json").read_text())]
            loops = [loop for loop in found if loop.module not in ENTRIES]
            print(f"{method} {size}: {len(loops)} loops", flush=True)
            for loop in loops:
                engines.setdefault(loop, []).append(f"{method} {size}")
    rows = [json.dumps({**asdict(loop), "engines": names}) for loop, names in engines.items()]
    write_atomically(LOOPS, "[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
