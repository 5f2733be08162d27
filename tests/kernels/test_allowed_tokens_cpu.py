"""Masks of allowed tokens, beside sets of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.kernels.allowed_tokens.cpu import RowMasks, count_forbidden, sole_token
from vllm_smart.kernels.allowed_tokens.logits import masked


def mask_of(tokens, num_words: int) -> np.ndarray:
    bits = np.zeros(32 * num_words, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 95, 200])
def test_what_is_not_allowed_is_ruled_out_and_the_rest_is_as_it_was(vocab_size, dtype):
    rng, num_words = np.random.default_rng(vocab_size), -(-min(vocab_size, 96) // 32)
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = np.array([0, 2, 4])
    allowed = [rng.random(32 * num_words) < share for share in (0.0, 0.5, 1.0)]
    masks = np.stack([mask_of(np.flatnonzero(each), num_words) for each in allowed])
    before = logits.float().clone()
    # Rows 1 to 4 alone: what callers do who compute a part of the logits at a time.
    left = masked(logits[1:].clone(), RowMasks(rows, masks), first=1)
    for row in range(1, 5):
        keeps = np.ones(vocab_size, bool)
        if row in rows:
            known = allowed[rows.tolist().index(row)][:vocab_size]
            keeps = np.concatenate((known, np.zeros(vocab_size - len(known), bool)))
        assert (left[row - 1][keeps] == before[row][keeps]).all()
        assert (left[row - 1][~keeps] == -torch.inf).all()


def test_rows_without_masks_are_handed_back_untouched():
    logits = torch.zeros(2, 40, dtype=torch.bfloat16)
    assert masked(logits, RowMasks(np.array([7]), mask_of([1], 2)[None])) is logits
    assert masked(logits, None) is logits


@given(st.sets(st.integers(0, 95), max_size=3))
def test_one_token_is_told_from_none_and_from_several(tokens):
    (expected,) = tokens if len(tokens) == 1 else (-1,)
    assert sole_token(mask_of(tokens, 3)) == expected


def test_a_draft_is_forbidden_by_its_parent_or_with_it():
    token, parent = np.array([-1, 5, 40, 7, 9, 33]), np.array([-1, 0, 0, 1, 2, 4], np.int32)
    masks = np.stack([mask_of(each, 2) for each in ([5], [7], [9], [], [33], [])])
    is_draft = np.ones(6, bool)
    assert count_forbidden(token, parent, is_draft, masks) == 3  # 40, and what comes after it
    masks.flags.writeable = False
    is_draft[5] = False
    assert count_forbidden(token, parent, is_draft, masks) == 2


def test_a_token_beyond_the_mask_is_forbidden():
    tokens = np.array([-1, 64]), np.array([-1, 0], np.int32), np.ones(2, bool)
    assert count_forbidden(*tokens, np.full((2, 2), -1, np.int32)) == 1
