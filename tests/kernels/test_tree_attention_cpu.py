from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from tests.kernels.paged_trees import Case, Shape, random_case
from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.cpu import stock
from vllm_smart.kernels.cpu.compiled import compile_entry
from vllm_smart.kernels.tree_attention import PLAIN, LayerRules, pack_mask
from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention, TreeAttentionLayer
from vllm_smart.kernels.tree_attention.reference import tree_attention as tree_attention_reference

# Both sides sum in float32 but in another order; outputs are averages of values around 1.
FLOAT32_TOLERANCE = 1e-5
# The sums agree as above and are then rounded: they may fall to neighbouring values, one unit in
# the last place apart, which is 2**-7 (bfloat16) or 2**-10 (float16) of the value.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}

# vLLM's kernels for AMX, and so ours, round weights before they meet values: by 2**-9 at most, each.
AMX_TOLERANCE = 2**-8

# Scores in the thousands are themselves rounded to 2**-12: so far apart may weights be.
LARGE_SCORE_TOLERANCE = 2**-10

CONTEXTS = [0, 1, 127, 128, 1000]
ROWS = [33, 61, 1, 17, 5]


@pytest.fixture(scope="module")
def attention() -> CpuTreeAttention:
    return CpuTreeAttention()


def check(
    attention: CpuTreeAttention,
    case: Case,
    rules: LayerRules = PLAIN,
    tolerance: float = FLOAT32_TOLERANCE,
) -> torch.Tensor:
    expected, output = case.poisoned_output(), case.poisoned_output()
    tree_attention_reference(case.query, case.kv_cache, expected, case.batch, case.scale, rules)
    layer = TreeAttentionLayer(case.query, case.kv_cache, output, case.scale, rules)
    attention.plan(case.batch).run(layer, case.query, output)
    if stock.isa(output.dtype, output.shape[2]) == "amx":
        tolerance = max(tolerance, AMX_TOLERANCE)
    torch.testing.assert_close(
        output,
        expected,
        atol=tolerance,
        rtol=tolerance + ROUNDING[output.dtype],
        equal_nan=True,
    )
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_size", "block_size"),
    [
        (3, 3, 32, 32),
        (9, 3, 64, 128),
        (8, 1, 96, 64),
        (16, 2, 128, 128),
        (2, 1, 256, 256),
        (6, 2, 80, 64),
        (2, 1, 512, 32),
        (2, 1, 32, 160),
    ],
)
def test_a_ragged_batch_matches_the_reference(
    attention, dtype, num_heads, num_kv_heads, head_size, block_size
):
    shape = Shape(num_heads, num_kv_heads, head_size, block_size, dtype)
    output = check(attention, random_case(shape, CONTEXTS, ROWS))
    assert not output.isnan().any()


@pytest.mark.parametrize("earlier", [1, 31, 64, 100, 140])
def test_a_draft_level_sees_its_ancestors_among_earlier_slots(attention, earlier):
    check(attention, random_case(Shape(), CONTEXTS, ROWS, earlier))


@pytest.mark.parametrize("rows", range(1, 62, 6))
def test_every_number_of_rows_fills_its_register_tiles(attention, rows):
    check(attention, random_case(Shape(num_heads=2), [45], [rows], seed=rows))


SLOPES = 2.0 ** -torch.arange(1.0, 7.0)
RULES = {
    "sharp cap": LayerRules(softcap=0.5),
    "soft cap": LayerRules(softcap=30.0),
    "biases": LayerRules(alibi_slopes=SLOPES),
    "window of one": LayerRules(window=1),
    "window": LayerRules(window=37),
    "wide window": LayerRules(window=500),
    "chunks": LayerRules(chunk=32),
    "sinks": LayerRules(sinks=torch.linspace(-3.0, 9.0, 6)),
    "all": LayerRules(5.0, SLOPES, window=50, sinks=torch.linspace(-3.0, 9.0, 6)),
}


@pytest.mark.parametrize("earlier", [0, 31])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_what_is_special_about_a_layer_matches_the_reference(attention, rules, earlier):
    check(attention, random_case(Shape(), CONTEXTS, ROWS, earlier), rules)


@pytest.mark.parametrize("window", [16, 100, 300])
def test_rows_of_one_tree_may_begin_in_other_tiles(attention, monkeypatch, window):
    monkeypatch.setattr(stock, "key_tile", lambda head_size, isa: 64)
    check(attention, random_case(Shape(), CONTEXTS, ROWS), LayerRules(window=window))


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_without_it_the_output_is_another(attention, rules):
    """A control."""
    case = random_case(Shape(), CONTEXTS, ROWS)
    assert not torch.allclose(check(attention, case, rules), check(attention, case), rtol=1e-3)


def test_a_window_goes_by_depth(attention):
    """A node whose siblings fill the slots before it sees as far back as they do."""
    visible = np.eye(8, dtype=bool)
    visible[:, 0] = True
    case = random_case(Shape(), [40], [8])
    batch = replace(case.batch, ancestor_mask=pack_mask(visible))
    assert batch.positions().tolist() == [40] + [41] * 7
    check(attention, replace(case, batch=batch), LayerRules(window=5))


def test_large_scores_do_not_overflow(attention):
    case = random_case(Shape(), CONTEXTS, ROWS)
    check(attention, replace(case, scale=100.0), tolerance=LARGE_SCORE_TOLERANCE)


def test_rows_of_requests_not_listed_are_left_alone(attention):
    case = random_case(Shape(), CONTEXTS, ROWS)
    case = replace(case, batch=replace(case.batch, requests=np.array([3, 1])))
    output = check(attention, case)  # equal_nan: both leave the poison where it was
    rows = case.batch.query_start_loc
    assert output[rows[0] : rows[1]].isnan().all()
    assert output[rows[2] : rows[3]].isnan().all()
    assert output[rows[4] :].isnan().all()


def test_a_request_without_rows_is_no_work(attention):
    assert check(attention, random_case(Shape(), [5, 9, 3], [3, 0, 1])).shape[0] == 4


def test_no_request_is_no_work(attention):
    case = random_case(Shape(), [5], [3])
    case = replace(case, batch=replace(case.batch, requests=np.array([], dtype=np.int64)))
    assert check(attention, case).isnan().all()


def test_mask_bits_beyond_the_tail_mean_nothing(attention):
    case = random_case(Shape(), [37, 0], [9, 70])
    visible = np.random.default_rng(0).random((79, 128)) < 0.5
    visible[np.arange(79), np.concatenate([np.arange(9), np.arange(70)])] = True
    batch = replace(case.batch, ancestor_mask=pack_mask(visible))
    assert not check(attention, replace(case, batch=batch)).isnan().any()


def test_strided_tensors_give_the_same_output(attention):
    shape = Shape()
    case = random_case(shape, CONTEXTS, ROWS)
    expected = check(attention, case)
    packed = torch.cat([case.query, case.query], dim=1)[:, : shape.num_heads]
    caches = torch.stack([case.kv_cache, case.kv_cache], dim=1)[:, 1]
    output = torch.cat([expected, expected], dim=1)[:, : shape.num_heads].fill_(float("nan"))
    plan, layer = attention.plan(case.batch), TreeAttentionLayer(packed, caches, output, case.scale)
    plan.run(layer, packed, output)
    assert torch.equal(output, expected)
    elsewhere = case.poisoned_output()
    plan.run(layer, case.query, elsewhere)
    assert torch.equal(elsewhere, expected)


def test_layers_of_one_plan_have_their_own_caches_scales_and_rules(attention):
    case = random_case(Shape(), CONTEXTS, ROWS)
    plan = attention.plan(case.batch)
    for kv_cache, scale, rules in [
        (case.kv_cache, case.scale, PLAIN),
        (case.kv_cache * 2, case.scale, PLAIN),
        (case.kv_cache, 2 * case.scale, PLAIN),
        *((case.kv_cache, case.scale, rules) for rules in (*RULES.values(), PLAIN)),
    ]:
        other, output = replace(case, kv_cache=kv_cache, scale=scale), case.poisoned_output()
        layer = TreeAttentionLayer(case.query, kv_cache, output, scale, rules)
        plan.run(layer, case.query, output)
        assert torch.equal(output, check(attention, other, rules))


def test_scratch_that_moves_between_two_layers_is_found_by_both(attention):
    small, large = random_case(Shape(), CONTEXTS, ROWS), random_case(Shape(), [4000], [70])
    first, output = CpuTreeAttention(num_threads=1), small.poisoned_output()
    plan, layer = first.plan(small.batch), TreeAttentionLayer(small.query, small.kv_cache, output, 0.1)
    plan.run(layer, small.query, output)
    expected, before = output.clone(), first.scratch_address
    check(first, large)
    assert first.scratch_address != before
    plan.run(layer, small.query, output.fill_(float("nan")))
    assert torch.equal(output, expected)


def test_one_plan_serves_layers_of_different_shape(attention):
    case = random_case(Shape(), CONTEXTS, ROWS)
    plan = attention.plan(case.batch)
    for num_kv_heads, head_size in [(2, 64), (6, 32), (2, 64)]:
        other = random_case(Shape(6, num_kv_heads, head_size), CONTEXTS, ROWS)
        output = other.poisoned_output()
        layer = TreeAttentionLayer(other.query, other.kv_cache, output, other.scale)
        plan.run(layer, other.query, output)
        assert torch.equal(output, check(attention, other))


@pytest.mark.parametrize("rows", [[1], [7], [61], ROWS[:1] * 3])
def test_the_number_of_threads_changes_nothing(rows):
    case = random_case(Shape(num_kv_heads=1), [300] * len(rows), rows)
    outputs = [check(CpuTreeAttention(num_threads), case) for num_threads in (1, 2, 3)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_no_thread_is_started_beside_those_of_torch(attention):
    case = random_case(Shape(), [300] * 8, [5] * 8)
    torch.ones(512, 512) @ torch.ones(512, 512)  # starts torch's own
    before = len(list(Path("/proc/self/task").iterdir()))
    check(attention, case)
    assert len(list(Path("/proc/self/task").iterdir())) == before


def test_it_compiles_without_a_usable_cache(monkeypatch):
    compile_function = numba.cfunc

    def without_locator(signature, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_function(signature)

    monkeypatch.setattr(numba, "cfunc", without_locator)

    def increment(args):
        args[0] += 1

    argument = np.array([41])
    compile_entry(increment)(argument.ctypes.data)
    assert argument[0] == 42


@pytest.mark.parametrize(
    "shape",
    [Shape(head_size=72), Shape(head_size=528), Shape(block_size=16), Shape(dtype=torch.float64)],
    ids=["head_size", "large_head_size", "block_size", "dtype"],
)
def test_what_has_no_kernel_is_refused(attention, shape):
    case = random_case(shape, [5], [3])
    with pytest.raises(UnsupportedError, match="tree attention on CPU"):
        check(attention, case)


def test_mixed_dtypes_are_refused():
    case = random_case(Shape(), [5], [3])
    with pytest.raises(UnsupportedError, match="one dtype"):
        TreeAttentionLayer(case.query, case.kv_cache.bfloat16(), case.poisoned_output(), case.scale)
