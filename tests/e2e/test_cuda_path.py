"""What runs on GPUs - vLLM's kernels for them, its attention, ours - on one, or else interpreted.

Without a GPU the plain engine is vLLM's CPU build with its own kernels: both must draw the same
tokens.
"""

import pytest
import torch

from tests.e2e.scenarios import (
    AHEAD_CHECKS,
    AHEAD_CONTROLS,
    COUPLED_RUN,
    GRAPH_CONTROLS,
    NGRAM_CONTROLS,
    REPEATING,
    RESTS,
    TINY_CONTROLS,
    TINY_RUNS,
)

pytest.importorskip("triton")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def tokens(run: dict) -> list[list[int]]:
    return [completion["token_ids"] for request in run["outputs"] for completion in request]


@pytest.fixture(scope="module")
def plain(run_engine):
    return run_engine("plain-tiny")


@pytest.fixture(scope="module")
def on_device(run_engine):
    return run_engine("device eagle3")


@pytest.fixture(scope="module")
def ahead(run_engine):
    return run_engine("device-async eagle3")


@pytest.fixture(scope="module")
def on_graphs(run_engine):
    return run_engine("device-graphs eagle3")


def test_target_and_drafter_attend_through_what_gpus_use(on_device):
    assert on_device["greedy"]["attention_backends"] == ["TritonTreeAttentionBackend"]


@pytest.mark.parametrize("name", TINY_RUNS)
def test_tokens_are_those_of_plain_vllm(plain, on_device, name):
    assert tokens(on_device[name]) == tokens(plain[name])


def test_trees_branch_and_their_side_branches_are_accepted(on_device):
    greedy = on_device["greedy"]
    assert greedy["num_branching_steps"] > 3
    assert greedy["num_moved"] > 3
    assert greedy["accepted_by_rank"].keys() > {"0"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with what runs on CPUs")
@pytest.mark.parametrize("name", ["greedy", COUPLED_RUN, RESTS])
def test_trees_are_those_that_the_host_grows(run_engine, on_graphs, name):
    """Drafter bugs leave the text right: reading, levels and choice must be those of CPUs."""
    on_host = run_engine("tree-tiny eagle3")[name]
    for counter in ("accepted_by_rank", "num_trees", "num_moved"):
        assert on_graphs[name][counter] == on_host[counter]


def test_padding_of_drafts_changes_nothing(on_device):
    """As graphs pad them, which a run without them has none of."""
    padded, greedy = on_device["drafts padded"], on_device["greedy"]
    for name in ("outputs", "accepted_by_rank", "num_trees", "num_moved"):
        assert padded[name] == greedy[name]


def test_no_step_waits_for_the_device(plain, on_device):
    """Walk, compaction and growth are queued without a look at what only the device knows."""
    queued, greedy = on_device["no waiting"], on_device["greedy"]
    assert tokens(queued) == tokens(plain["greedy"])
    assert queued["accepted_by_rank"] == greedy["accepted_by_rank"]


def test_choosing_by_costs_on_the_device_changes_no_token(plain, run_engine):
    runs = run_engine("device-smart draft_model")
    assert tokens(runs["greedy"]) == tokens(plain["greedy"])
    assert tokens(runs["no waiting"]) == tokens(plain["repetition"])
    greedy = runs["greedy"]
    assert greedy["num_accepted"] > 0
    # Trees of several depths: the depth rule is asked.
    assert greedy["smart_counters"]["draft_nodes_by_depth"]["2"] > 0
    if not torch.cuda.is_available():
        assert greedy["replays"]["choose_best"] > 3


@pytest.mark.parametrize("method", ["ngram", "eagle3+ngram"])
class TestNgrams:
    """Looked up on the host, in a copy of what the device knows."""

    def test_tokens_are_those_of_plain_vllm(self, plain, run_engine, method):
        runs = run_engine(f"device-ngrams {method}")
        for name in ("repetition", REPEATING):
            assert tokens(runs[name]) == tokens(plain[name])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="compares with what runs on CPUs")
    def test_trees_are_those_of_cpus(self, run_engine, method):
        on_device = run_engine(f"device-ngrams {method}")[REPEATING]
        on_host = run_engine(f"host-ngrams {method}")[REPEATING]
        assert on_host["num_accepted"] > 3
        for counter in ("accepted_by_source", "accepted_by_rank", "num_trees", "num_moved"):
            assert on_device[counter] == on_host[counter]

    def test_a_copy_that_lags_is_worth_less(self, run_engine, method):
        runs = run_engine(f"device-ngrams {method}")
        lagging = runs[NGRAM_CONTROLS[0]]["accepted_by_source"]
        assert lagging.get("1", 0) < runs[REPEATING]["accepted_by_source"]["1"]


class TestScheduledAhead:
    """Steps are queued before it is known what the one before has brought."""

    @pytest.mark.parametrize("name", [*TINY_RUNS, RESTS, *AHEAD_CHECKS, "fixed greedy"])
    def test_tokens_are_those_of_plain_vllm(self, plain, ahead, name):
        assert ahead[name]["runs_ahead"]
        assert tokens(ahead[name]) == tokens(plain.get(name, plain["greedy"]))

    def test_drafts_are_accepted(self, ahead):
        for name in (*TINY_RUNS, "fixed greedy"):
            assert ahead[name]["num_accepted"] > 3
        assert ahead["greedy"]["num_moved"] > 0

    @pytest.mark.parametrize("control", AHEAD_CONTROLS)
    def test_a_broken_part_changes_the_text(self, plain, ahead, control):
        assert tokens(ahead[control]) != tokens(plain["greedy"])


@pytest.mark.parametrize("control", TINY_CONTROLS)
def test_a_broken_part_changes_the_text(plain, on_device, control):
    assert tokens(on_device[control]) != tokens(plain["greedy"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="real graphs have a test of their own")
class TestSimulatedGraphs:
    """Captured once and replayed with other trees; see `triton_on_cpu.graphs`."""

    @pytest.mark.parametrize("name", [*TINY_RUNS, RESTS])
    def test_tokens_are_those_of_plain_vllm(self, plain, on_graphs, name):
        assert tokens(on_graphs[name]) == tokens(plain.get(name, plain["greedy"]))

    def test_trees_and_plain_steps_are_replayed(self, on_graphs):
        replays = on_graphs[RESTS]["replays"]
        assert replays["trees"] > 3
        assert replays["plain"] > 3

    def test_growth_is_replayed(self, on_graphs):
        replays = on_graphs["greedy"]["replays"]
        assert replays["roots"] == replays["choose_all"] > 3
        assert replays["level"] > replays["roots"]

    def test_trees_grow_as_without_graphs(self, on_device, on_graphs):
        for name in ("accepted_by_rank", "num_moved"):
            assert on_graphs["greedy"][name] == on_device["greedy"][name]

    @pytest.mark.parametrize("control", GRAPH_CONTROLS)
    def test_a_broken_part_changes_the_text(self, plain, on_graphs, control):
        assert tokens(on_graphs[control]) != tokens(plain["greedy"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [*TINY_RUNS, RESTS])
def test_graphs_change_nothing_and_no_step_waits(plain, run_engine, name):
    """The engine runs under VLLM_GPU_SYNC_CHECK=error."""
    expected = plain.get(name, plain["greedy"])
    assert tokens(run_engine("gpu-graphs eagle3")[name]) == tokens(expected)
