"""What a report says of a trace and of a cost table."""

import os

import pytest

from tests.unit.table_keys import other_key, save
from tests.unit.trace.hand_made import decision, drafted, header, outcome, trace, verified, written
from vllm_smart.bench.document import Image, Paragraph, Table
from vllm_smart.bench.trace_parts import (
    acceptance_by_depth_and_rank,
    cost_parts,
    cost_table_of,
    trace_parts,
)
from vllm_smart.profiling import CostSamples, CostTable

TAKEN = [decision(0, drafted()), outcome(0, verified("a", (1,), (1,), 40))]  # nodes 1 and 4


def test_candidates_are_judged_where_their_parent_was_accepted():
    counts = acceptance_by_depth_and_rank(trace(*TAKEN))
    assert counts == {(1, 0): (1, 1), (1, 1): (0, 1), (2, 0): (0, 1), (2, 1): (1, 1)}


def test_children_of_a_rejected_node_are_not_judged():
    rejected = trace(decision(0, drafted()), outcome(0, verified("a", (1,), (), 99)))
    assert acceptance_by_depth_and_rank(rejected) == {(1, 0): (0, 1), (1, 1): (0, 1)}


def test_the_latest_table_of_the_drafter_is_found_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    table = CostTable(CostSamples(verify=((1, 10.0), (64, 20.0)), draft=((1, 1.0), (64, 2.0))))
    old = save(table, other_key(drafter="eagle3:old"), tmp_path)
    new = save(table, other_key(drafter="eagle3:new"), tmp_path)
    save(table, other_key(drafter="draft_model:other"), tmp_path)
    os.utime(old, (1, 1))
    assert cost_table_of(tmp_path, "eagle3") == new
    assert cost_table_of(tmp_path, "eagle") is None
    parts = list(cost_parts(new, tmp_path, "eagle3", max_batch_size=4))
    (image,) = [part for part in parts if isinstance(part, Image)]
    assert image.path.read_bytes().startswith(b"\x89PNG")


def test_a_trace_becomes_tables_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    records = [header()]
    for step in range(0, 60, 2):  # not one after another, so that no step tells of the one before
        records += [decision(step, drafted()), outcome(step, verified("a", (1,), (1,), 40))]
    written(tmp_path / "trace.jsonl", *records)
    parts = list(trace_parts(tmp_path / "trace.jsonl", tmp_path, "eagle3"))
    (table,) = [part for part in parts if isinstance(part, Table)]
    assert table.rows[0] == ["depth 1", "1.00 (30)", "0.00 (30)", "-", "-"]
    assert table.rows[1] == ["depth 2", "0.00 (30)", "1.00 (30)", "-", "-"]
    assert any("error of 120 path" in part.text for part in parts if isinstance(part, Paragraph))
    (image,) = [part for part in parts if isinstance(part, Image)]
    assert image.path.read_bytes().startswith(b"\x89PNG")
