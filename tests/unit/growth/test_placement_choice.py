"""Where a drafter should run, by what was measured."""

import dataclasses

import pytest

from tests.unit.table_keys import other_key
from vllm_smart.growth.placement_choice import PlacementCosts, choose_placement
from vllm_smart.profiling import CostSamples, CostTable, TableKey

STEP_MS, MAX_BATCH = 50.0, 2
VERIFY = ((1, STEP_MS), (8, 51.0), (32, 60.0), (256, 300.0))


def inline(level_ms: float, step_ms: float = STEP_MS, **samples: object) -> CostTable:
    verify = tuple((size, ms * step_ms / STEP_MS) for size, ms in VERIFY)
    levels = ((1, level_ms), (16, 1.3 * level_ms), (64, 3 * level_ms))
    return CostTable(CostSamples(verify=verify, draft=levels, read=levels, **samples))


def beside(level_ms: float, slowdown: float = 1.0, **samples: object) -> CostTable:
    slowed = ((1, STEP_MS * slowdown), (8, 51.0 * slowdown), (256, 300.0 * slowdown))
    costs = inline(level_ms, slowed=slowed, **samples).samples
    return CostTable(costs.model_copy(update={"beside": True}))


# Levels that are dear inline, and soon done beside the target.
PAYS = PlacementCosts(inline(8.0), beside(8.0))


def test_a_process_is_chosen_where_levels_are_dear_and_the_target_is_hardly_slowed():
    placement, why = choose_placement(PAYS, max_batch_size=MAX_BATCH)
    assert placement == "process"
    assert "at 1, " in why
    assert "at 2 requests" in why
    assert "slows the target by 0%" in why
    assert why.endswith("What its cores would give the target was not measured")


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        (PlacementCosts(inline(8.0), beside(8.0, slowdown=1.5)), "slows the target by 50%"),
        (PlacementCosts(inline(0.5), beside(0.5)), "1.01 at 2 requests"),
        (PlacementCosts(inline(8.0, noise=0.4), beside(8.0)), "1.40 is what it takes"),
        (PlacementCosts(inline(8.0), beside(8.0, noise=0.4)), "1.40 is what it takes"),
    ],
    ids=["the target is slowed", "levels are cheap", "noise inline", "noise beside"],
)
def test_a_process_is_not_chosen_where_it_does_not_pay(costs, said):
    placement, why = choose_placement(costs, max_batch_size=MAX_BATCH)
    assert placement == "inline"
    assert said in why


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inline": None}, "costs of an inline drafter were not measured"),
        ({"beside": None}, "costs of a target that its drafter drafts beside were not"),
        ({"inline": None, "beside": None}, "an inline drafter and of a target that"),
        # As a table of an engine that was timed while it was idle, or of another version.
        ({"beside": inline(8.0)}, "costs of a target that its drafter drafts beside were not"),
    ],
)
def test_the_drafter_stays_inline_where_facts_are_missing(changes, said):
    placement, why = choose_placement(dataclasses.replace(PAYS, **changes), max_batch_size=MAX_BATCH)
    assert placement == "inline"
    assert said in why
    assert "vllm-smart profile" in why


@pytest.mark.parametrize(
    ("step_ms", "advice"), [(STEP_MS / 1.5, "; give the target these threads"), (STEP_MS, "")]
)
def test_what_the_drafters_cores_are_worth_to_the_target_is_said(step_ms, advice):
    more = inline(8.0, step_ms)
    costs = dataclasses.replace(PAYS, more_threads=more)
    placement, why = choose_placement(costs, max_batch_size=MAX_BATCH)
    assert placement == "process"  # the target's threads are the user's
    assert why.rpartition(" times as fast")[2] == advice


def test_tables_of_one_engine_are_told_apart_by_their_threads():
    key = other_key(device="CPU (2 threads)", drafter="draft_model:x")
    of_beside = TableKey.drafter_beside(key.drafter, 2)
    keys = {
        "inline": key,
        "beside": key.model_copy(update={"drafter": of_beside}),
        "more": key.model_copy(update={"device": "CPU (4 threads)"}),
        "other": key.model_copy(update={"device": "CPU (3 threads)"}),
    }
    tables = {name: inline(1.0) for name in keys}
    for first in ("inline", "beside"):
        named = [first, *(name for name in keys if name != first)]
        found = PlacementCosts.among([(keys[name], tables[name]) for name in named])
        assert found.inline is tables["inline"]
        assert found.beside is tables["beside"]
        assert found.more_threads is tables["more"]
    assert all(each.is_like(key) for each in keys.values())
    assert not other_key(device="CPU (2 threads)", drafter="draft_model:y").is_like(key)
    alone = PlacementCosts.among([(key, tables["inline"]), (keys["more"], tables["more"])])
    assert (alone.beside, alone.more_threads) == (None, None)
