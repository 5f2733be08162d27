"""Ray listens on every interface of a machine: these tests run where there is none but loopback."""

import socket

import pytest


@pytest.fixture(scope="session")
def loopback_alone() -> None:
    """Skips where others could reach what a test starts."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed; see docs/ray.md")
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if others:
        pytest.skip(f"Ray would listen on {', '.join(others)}: run by the command in docs/ray.md")
