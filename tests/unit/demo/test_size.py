"""The demonstration's pair is as large as the machine's memory is fast, within bounds."""

import pytest
import torch

from vllm_smart.demo.size import load_sized, products_ms, save_sized, suited

FAST_MS, SLOW_MS = 2.0, 200.0  # of one row times 64 matrices of 768 x 3072


def test_a_step_takes_about_as_long_as_wanted():
    sized = suited("bfloat16", one_row_ms=20.0, tree_rows_ms=25.0, step_ms=40.0)
    assert sized.step_ms == pytest.approx(40.0, rel=0.05)
    assert sized.tree_rows_cost == pytest.approx(1.25)


def test_bytes_per_second_are_those_of_the_matrices():
    sized = suited("float32", one_row_ms=1000.0, tree_rows_ms=1000.0, step_ms=1.0)
    assert sized.gb_per_s == pytest.approx(64 * 768 * 3072 * 4 / 1e9)


@pytest.mark.parametrize(("one_row_ms", "layers"), [(SLOW_MS, 24), (FAST_MS, 64)])
def test_the_pair_is_neither_a_toy_nor_does_it_fill_the_disk(one_row_ms, layers):
    sized = suited("bfloat16", one_row_ms, one_row_ms, step_ms=40.0)
    assert sized.shape.num_layers == layers
    assert sized.num_bytes < 1.3e9


def test_products_are_really_timed():
    with torch.inference_mode():
        one_row_ms, tree_rows_ms = products_ms(torch.float32, "cpu")
    assert one_row_ms > 0.1
    assert tree_rows_ms > 0.5 * one_row_ms


def test_a_choice_is_kept_and_what_is_no_choice_is_made_anew(tmp_path):
    path = tmp_path / "size.json"
    assert load_sized(path) is None
    sized = suited("bfloat16", 20.0, 25.0, step_ms=40.0)
    save_sized(path, sized)
    assert load_sized(path) == sized
    path.write_text('{"shape": {}}')
    assert load_sized(path) is None
