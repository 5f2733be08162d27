"""Embeddings of images on their way from the target's step to a head."""

from types import SimpleNamespace

import pytest
import torch

from vllm_smart.adapter.drafter.media_rows import apart, with_media

WIDTH = 4
HIDDEN = torch.arange(15.0).view(5, 3)
EMBEDDINGS = [torch.full((1, WIDTH), 7.0), torch.full((2, WIDTH), 8.0)]
HAS_ONE = torch.tensor([False, True, False, True, True])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_picked_have_their_own_embedding(dtype):
    rows = with_media(HIDDEN.to(dtype), (EMBEDDINGS, HAS_ONE), WIDTH)
    assert rows.dtype == dtype
    hidden, media = apart(rows[[4, 2, 1]], HIDDEN.shape[1])
    assert torch.equal(hidden, HIDDEN[[4, 2, 1]].to(dtype))
    (embeddings,), has_one = media
    assert has_one.tolist() == [True, False, True]
    assert embeddings.tolist() == [[8.0] * WIDTH, [7.0] * WIDTH]


@pytest.mark.parametrize("media", [([], torch.zeros(5, dtype=torch.bool)), (EMBEDDINGS, HAS_ONE)])
def test_rows_of_text_alone_have_none(media):
    hidden, none = apart(with_media(HIDDEN, media, WIDTH)[[0, 2]], HIDDEN.shape[1])
    assert torch.equal(hidden, HIDDEN[[0, 2]])
    assert none is None


@pytest.mark.parametrize("has_media", [False, True])
def test_several_heads_are_given_embeddings_and_those_of_the_rows_before_are_forgotten(has_media):
    """vLLM's model of several heads reads embeddings alone where it can take images."""
    from vllm_smart.adapter.drafter.heads_speculator import TreeHeadsSpeculator

    def embed(tokens, multimodal_embeddings, is_multimodal):
        embedded = tokens[:, None].expand(-1, 3).float().clone()
        if is_multimodal is not None:
            embedded[is_multimodal] = torch.cat(multimodal_embeddings)
        return embedded

    seen = {}
    host = SimpleNamespace(
        head=0,
        hidden_size=3,
        hidden_states=torch.zeros(8, 3),
        inputs_embeds=torch.full((8, 3), -1.0),
        input_buffers=SimpleNamespace(input_ids=torch.arange(8)),
        model=SimpleNamespace(embed_input_ids=embed),
    )

    def run(num_rows, *_):
        seen["embeddings"] = host.inputs_embeds[:num_rows].clone()
        return host.hidden_states, host.hidden_states

    host._run_model = run
    hidden = torch.ones(2, 3)
    if has_media:
        hidden = with_media(hidden, ([torch.full((1, 3), 9.0)], torch.tensor([False, True])), 3)
    TreeHeadsSpeculator.forward_rows(host, 2, hidden, None, None, None)
    assert seen["embeddings"].tolist() == [[0.0] * 3, [9.0 if has_media else 1.0] * 3]
    assert host.hidden_states[:2].tolist() == [[1.0] * 3] * 2
