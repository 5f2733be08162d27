"""A small part of the campaign of tool calls, which `python -m tests.tool_calls` runs as a whole."""

import json
import subprocess
import sys

import pytest

from tests.e2e import scenarios
from tests.e2e.conftest import ROOT
from tests.tool_calls.calls import complaints
from tests.tool_calls.schemas import schemas

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
NUM_CALLS = 60


def test_calls_are_valid_and_those_of_plain_decoding(tmp_path):
    out = tmp_path / "calls.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.tool_calls", "--calls", str(NUM_CALLS), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, (process.stdout + process.stderr)[-6000:]
    counted = json.loads(out.read_text())
    assert counted["calls"] == NUM_CALLS
    assert counted["invalid"] == counted["differ"] == counted["lost"] == 0
    assert counted["bound"] - counted["cut off"] > NUM_CALLS // 2
    trees = counted["with trees"]
    assert trees["accepted_nodes"] > 100
    # But for trees that have grown before a grammar was compiled, on a busy machine.
    blind = sum(trees["trees_without_grammar_by_reason"].values())
    forbidden = trees["grammar_nodes_by_verdict"]["forbidden"]
    assert forbidden <= blind * scenarios.FIXED_TREE["num_nodes"]


def test_a_call_that_breaks_its_schema_is_noticed():
    tools = schemas(50)
    assert len(tools) == 50
    assert len({json.dumps(schema, sort_keys=True) for schema in tools.values()}) > 45
    schema = {"type": "object", "properties": {"limit": {"enum": [1]}}, "required": ["limit"]}
    bound = {"params": {"structured_outputs": {"json": json.dumps(schema)}}}
    texts = ('{"limit": 1}', '{"limit": 2}', '{"limit": 1', '{"limit"')
    ends = (["stop", None], ["stop", None], ["stop", None], ["length", None])
    found = complaints(bound, schema, {"text": texts, "ends": ends})
    assert len(found) == 2
    assert "'{\"limit\": 2}'" in found[0]
    assert complaints({"params": {}}, schema, {"text": texts, "ends": ends}) == []
