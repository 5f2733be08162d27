"""`vllm-smart top`, on what servers have exported."""

import http.server
import json
import re
import threading
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vllm_smart.cli import app
from vllm_smart.errors import SmartError
from vllm_smart.top.render import render
from vllm_smart.top.scrape import Engine, parse, scrape
from vllm_smart.top.view import view

RECORDED = (Path(__file__).parent / "recorded.txt").read_text()  # of a real server
ENGINE = Engine("here", "demo", "0")


def sample(name: str, value: float, **labels: str) -> str:
    every = {"model_name": "demo", "engine": "0", **labels}
    pairs = ",".join(f'{name}="{value}"' for name, value in every.items())
    return f"{name}{{{pairs}}} {value}\n"


def of(text: str):
    return parse(text, "here")[ENGINE]


@pytest.fixture
def address():
    """Of a server that answers with what is recorded, a little more each time."""
    steps = iter(range(1000, 2000))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/metrics"
            self.send_response(200 if found else 404)
            self.end_headers()
            text = re.sub(r"(steps_total\{batch=\"1\".*) .*", rf"\1 {next(steps)}", RECORDED)
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_view_divides_what_belongs_together():
    text = sample("vllm_smart:plain_seconds_total", 30, batch="2")
    text += sample("vllm_smart:step_seconds_total", 20, batch="2")
    text += sample("vllm_smart:steps_total", 10, batch="2")
    text += sample("vllm_smart:step_requests_total", 25, batch="2")
    text += sample("vllm_smart:chosen_nodes_total", 100, batch="2")
    text += sample("vllm_smart:trees_total", 5)
    text += sample("vllm_smart:draft_nodes_total", 40, depth="1", source="model")
    text += sample("vllm_smart:draft_nodes_total", 10, depth="1", source="ngram")
    text += sample("vllm_smart:accepted_nodes_total", 10, depth="1", source="model")
    text += sample("vllm_smart:expected_nodes_total", 8, depth="1", source="model")
    text += sample("vllm_smart:steps_without_drafting_total", 4, reason="plain_is_faster")
    seen = view(of(text))
    assert (seen.speedup, seen.saved_s) == (1.5, 10)
    assert seen.acceptance_length == 3
    assert (seen.rest_share, seen.rests) == (0.4, {"plain_is_faster": 4})
    (row,) = seen.batches
    assert (row.batch, row.nodes, row.speedup, row.depth) == ("2", 4, 1.5, None)
    (depth,) = seen.depths
    assert (depth.verified, depth.rate, depth.calibration) == (50, 0.2, 1.25)
    assert [source.what for source in seen.sources] == ["model", "ngram"]


def test_now_is_what_has_come_since_and_gauges_are_as_they_are():
    before = sample("vllm_smart:steps_total", 10, batch="1") + sample("vllm_smart:drafter_runs", 1)
    after = sample("vllm_smart:steps_total", 14, batch="1") + sample("vllm_smart:drafter_runs", 1)
    seen = view(of(after).since(of(before)))
    assert (seen.steps, seen.drafter_runs) == (4, True)
    assert view(of(after).since(None)).steps == 14


def test_a_server_that_has_restarted_counts_anew():
    before, after = (of(sample("vllm_smart:steps_total", n, batch="1")) for n in (10, 3))
    assert view(after.since(before)).steps == 3


def test_without_a_step_there_are_no_ratios():
    seen = view(of(sample("vllm_smart:steps_total", 0, batch="1")))
    assert seen.speedup is seen.rest_share is seen.acceptance_length is None
    assert "-" in shown(of(sample("vllm_smart:steps_total", 0, batch="1")))


def test_replicas_under_ray_are_told_apart():
    names = {"ReplicaId": "a", "WorkerId": "1", "Component": "core_worker"}
    text = sample("ray_vllm_smart_steps_total", 3, batch="1", **names)
    text += sample("ray_vllm_smart_steps_total", 4, batch="1", **{**names, "ReplicaId": "b"})
    found = parse(text, "here")
    assert {engine.replica: view(samples).steps for engine, samples in found.items()} == {
        "a": 3,
        "b": 4,
    }


def shown(samples) -> str:
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(ENGINE, view(samples), view(samples)), highlight=False)
    return console.export_text()


def test_a_person_sees_what_a_real_server_has_done():
    text = shown(of(RECORDED))
    for words in ("speed-up over plain decoding", "policy smart", "depth 1", "The drafter runs"):
        assert words in text
    speedup = view(of(RECORDED)).speedup
    assert f"{speedup:.2f}x" in text


def test_the_command_shows_an_interval_and_speaks_json(address):
    once = CliRunner().invoke(app, ["top", address, "--once", "--every", "1"])
    assert once.exit_code == 0, once.output
    assert re.search(r"steps +1 +\d+", once.output)
    (engine,) = json.loads(CliRunner().invoke(app, ["top", address, "--json"]).output)
    assert engine["model_name"] == "demo"
    assert engine["speedup"] == pytest.approx(view(of(RECORDED)).speedup)


def test_what_does_not_answer_or_has_no_trees_is_named(address, monkeypatch):
    with pytest.raises(SmartError, match=r"127\.0\.0\.1:1/metrics does not answer"):
        scrape("http://127.0.0.1:1")
    with pytest.raises(SmartError, match="404"):
        scrape(f"http://{address}/elsewhere")
    monkeypatch.setattr("vllm_smart.top.scrape.parse", lambda text, url: {})
    with pytest.raises(SmartError, match="metrics: true"):
        scrape(address)
