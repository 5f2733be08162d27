"""The command that serves the demonstration, and what may be in its way."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from vllm_smart.config import load_config
from vllm_smart.demo.start import check_disk, check_port, serve_command, trace_path
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.errors import ConfigError


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Serving the shipped pair without a GPU, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    (tmp_path / "vllm").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return serve_command(demo_model_paths(), "float32", 8123, on_gpu=False, further=["--host", "::1"])


def test_it_names_settings_that_are_valid_and_trace_to_where_the_demo_looks(command):
    value = command.argv[command.argv.index("--additional-config") + 1]
    settings = load_config(Path(json.loads(value)["smart"]["config"])).resolve_node_budget(32)
    assert Path(settings.drafter.model) == demo_model_paths()["eagle3"]
    assert settings.trace.path == trace_path(8123)
    assert command.environment == {"VLLM_CPU_KVCACHE_SPACE": "1"}


def test_what_is_printed_can_be_pasted_and_the_users_arguments_come_last(command):
    assert str(command).startswith("VLLM_CPU_KVCACHE_SPACE=1 vllm serve ")
    assert str(command).endswith("--host ::1")


def test_without_vllm_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"no vllm command beside .*pip install"):
        serve_command(demo_model_paths(), "float32", 8123, on_gpu=False)


def test_a_port_in_use_is_refused_with_another_one():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} .*--port {port + 1}`"):
            check_port(port)
    check_port(port)


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_disk(tmp_path / "not" / "there", free // 2)
    with pytest.raises(ConfigError, match="Make room, or set XDG_CACHE_HOME"):
        check_disk(tmp_path / "not" / "there", free)
