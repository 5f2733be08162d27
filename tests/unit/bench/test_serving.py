"""Online serving: what is reported, what a server that does not start says, and that it is ended."""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.bench.synthetic import mixed_outcome
from vllm_smart.bench import server_process, serving
from vllm_smart.bench.document import to_markdown
from vllm_smart.bench.server_process import ServerError, ServerProcess
from vllm_smart.bench.serving_parts import serving_parts
from vllm_smart.bench.serving_records import Latencies, ServingRecord

SERVING = {"arms": ["plain", "smart"], "rates": [2.0], "repeats": 3, "num_prompts": 8}


def _record(arm: str, repeat: int, tpot_ms: float) -> ServingRecord:
    around = Latencies(p50=tpot_ms, p90=2 * tpot_ms, p99=3 * tpot_ms)
    return ServingRecord(
        drafter="eagle3",
        workload="code",
        arm=arm,
        rate=2.0,
        repeat=repeat,
        started_at="2026-01-01T00:00:00+00:00",
        load_1m=0.0,
        completed=8,
        duration_s=4.0,
        tokens_per_s=100.0,
        ttft_ms=around,
        tpot_ms=around,
        itl_ms=around,
    )


def _report(*records: ServingRecord) -> str:
    found = mixed_outcome(serving=SERVING)
    found.serving.extend(records)
    return to_markdown(list(serving_parts(found)))


def test_percentiles_are_medians_over_rounds_beside_plain():
    records = [_record("plain", i, tpot) for i, tpot in enumerate((10, 12, 50))]
    records += [_record("smart", i, tpot) for i, tpot in enumerate((5, 6, 40))]
    text = _report(*records)
    assert "| smart | 100.0 | 6.0 / 12.0 / 18.0 | 6.0 / 12.0 / 18.0 | 6.0 / 12.0 / 18.0 |" in text
    times = " | ".join(["0.500 [0.500, 0.800]"] * 6)
    assert f"| smart | 1.000 [1.000, 1.000] | {times} |" in text
    assert "INCOMPLETE" not in text


def test_where_requests_are_known_percentiles_are_of_all_of_them():
    """By rounds the medians' ratios are 2 and 0.5; all requests together are a tie at the median."""
    plain, smart = ((10.0, 10.0), (20.0, 40.0)), ((20.0, 20.0), (10.0, 20.0))
    records = []
    for arm, rounds in (("plain", plain), ("smart", smart)):
        for repeat, times in enumerate(rounds):
            record = _record(arm, repeat, 1.0)
            records.append(record.model_copy(update={"first_token_ms": times, "per_token_ms": times}))
    row = next(line for line in _report(*records).splitlines() if "smart | 1.000" in line)
    median_and_more = [cell.split()[0] for cell in row.split("|")[3:6]]
    assert median_and_more == ["1.333", "0.588", "0.508"]


def test_what_was_not_measured_is_said():
    text = _report(_record("smart", 0, 5.0))
    assert "INCOMPLETE: 1 of 6 serving runs" in text
    assert "| plain | - |" in text
    assert f"| smart | {' | '.join('-' * 7)} |" in text  # no plain run to compare with


def test_servers_are_asked_by_turns_while_all_are_alive(tmp_path, monkeypatch):
    events: list[str] = []
    loads: list[tuple[float, float]] = []

    @contextmanager
    def server(suite, arm, *args):
        events.append(f"+{arm.label}")
        yield arm.label
        events.append(f"-{arm.label}")

    def measured(suite, server, place, *args):
        assert server == place.arm
        events.append(server)
        loads.append((place.rate, place.burstiness))
        return _record(server, place.repeat, 5.0)

    monkeypatch.setattr(serving, "_server", server)
    monkeypatch.setattr(serving, "_measured", measured)
    suite = mixed_outcome(serving={**SERVING, "rates": [2.0, 1.0], "burstiness": [1.0, 0.2]}).suite
    records = list(serving.serve_arms(suite, {}, tmp_path, 1, lambda line: None))
    assert len(records) == 2 * 2 * 2 * 3
    assert loads[::2] == [(1.0, 1.0), (1.0, 0.2), (2.0, 1.0), (2.0, 0.2)] * 3
    assert events[:2] == ["+plain", "+smart"]
    assert sorted(events[-2:]) == ["-plain", "-smart"]
    turns = [set(events[i : i + 2]) for i in range(2, len(events) - 2, 2)]
    assert turns == [{"plain", "smart"}] * 12


def _server(tmp_path: Path, script: str, timeout_s: float) -> ServerProcess:
    server = ServerProcess("model", [], {}, tmp_path / "log", timeout_s)
    server._command = [sys.executable, "-c", script, str(server._port)]
    return server


HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_lives_as_long_as_its_context(tmp_path):
    with _server(tmp_path, HEALTHY, timeout_s=30) as server:
        assert server._process.poll() is None
    assert server._process.poll() is not None


def test_a_server_that_ends_at_once_is_quoted(tmp_path):
    with (
        pytest.raises(ServerError, match="no such model"),
        _server(tmp_path, "import sys; sys.exit('no such model')", timeout_s=30),
    ):
        pass


def test_a_server_that_never_becomes_healthy_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(server_process, "_POLL_S", 0.05)
    server = _server(tmp_path, "import time; time.sleep(60)", timeout_s=0.5)
    begin = time.monotonic()
    with pytest.raises(ServerError, match="start_timeout_s"), server:
        pass
    assert server._process.poll() is not None
    assert time.monotonic() - begin < 20
