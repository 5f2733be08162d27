"""What grammars allow after each node of a tree, beside what vLLM makes of each path as a chain."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_smart.demo_model import demo_model_paths
from vllm_smart.tree import TreeTokens

pytestmark = pytest.mark.vllm
MOST = 24
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["self", "other", "None"]}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def make():
    """Function from a reasoner (or None) to a manager of grammars and a maker of requests."""
    import vllm.v1.engine.core  # noqa: F401
    from transformers import AutoTokenizer
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
    from vllm.v1.structured_output.request import StructuredOutputRequest

    from vllm_smart.entry.grammar import check_grammars_along_paths

    check_grammars_along_paths()
    check_grammars_along_paths()
    tokenizer = AutoTokenizer.from_pretrained(demo_model_paths()["target"])
    config = SimpleNamespace(
        num_speculative_tokens=MOST,
        speculative_config=SimpleNamespace(num_speculative_tokens=MOST),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        model_config=SimpleNamespace(is_diffusion=False, hf_config=SimpleNamespace(model_type="llama")),
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
    )
    backend = XgrammarBackend(config, tokenizer=tokenizer, vocab_size=len(tokenizer))

    def of(reasoner=None):
        manager = object.__new__(StructuredOutputManager)
        manager.__dict__.update(
            vllm_config=config,
            backend=backend,
            reasoner_cls=None if reasoner is None else (lambda tokenizer: reasoner),
            tokenizer=tokenizer,
            enable_in_reasoning=False,
            fill_bitmask_parallel_threshold=99,
            _grammar_bitmask=None,
            _full_mask=torch.tensor(-1, dtype=torch.int32),
        )

        def request(read: str):
            params = StructuredOutputsParams(json=json.dumps(SCHEMA))
            structured = StructuredOutputRequest(params=params)
            grammar = backend.compile_grammar(*structured.structured_output_key)
            assert grammar.accept_tokens("r", tokenizer.encode(read, add_special_tokens=False))
            structured.grammar = grammar
            return SimpleNamespace(
                request_id="r",
                structured_output_request=structured,
                use_structured_output=True,
                prompt_token_ids=[1, 2, 3],
                all_token_ids=[1, 2, 3],
            )

        return manager, request

    of.tokenizer = tokenizer
    return of


def random_tree(rng, manager, request, size: int, stray: float, extra=()) -> TreeTokens:
    """A tree of tokens that the grammar mostly allows; siblings differ."""
    tokens, parents = list(extra[:1]), [-1] * len(extra[:1])
    vocab = len(manager.tokenizer)
    while len(tokens) < size:
        parent = int(rng.integers(-1, len(tokens)))
        above = path_of(tokens, parents, parent)
        if rng.random() < stray or len(manager.validate_tokens(request, above)) < len(above):
            token = int(rng.choice(extra)) if extra and rng.random() < 0.5 else int(rng.integers(vocab))
        else:
            mask = chain_mask(manager, request, above)
            allowed = np.flatnonzero(mask)
            token = int(rng.choice(allowed)) if len(allowed) else int(rng.integers(vocab))
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    return TreeTokens(tokens, parents)


def path_of(tokens, parents, place) -> list[int]:
    path = []
    while place >= 0:
        path.insert(0, tokens[place])
        place = parents[place]
    return path


def bits(row: np.ndarray, vocab: int) -> np.ndarray:
    return np.unpackbits(row.view(np.uint8), bitorder="little")[:vocab].astype(bool)


def chain_mask(manager, request, path: list[int]) -> np.ndarray:
    """[vocab] bool: what may follow `path`, by vLLM's own walk of a chain."""
    assert len(manager.validate_tokens(request, path)) == len(path)
    rows = manager.grammar_bitmask({"r": request}, ["r"], {"r": list(path)})
    return bits(rows[len(path)].copy(), len(manager.tokenizer))


@pytest.mark.parametrize("read", ["", '{"name": "', '{"name": "self", "count": 1'])
@pytest.mark.parametrize("seed", range(4))
def test_each_node_is_masked_as_the_chain_that_leads_to_it(make, read, seed):
    manager, new_request = make()
    request, beside = new_request(read), new_request("")
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, manager, request, 16, stray=0.2)
    assert manager.validate_tokens(request, tree) is tree
    before = request.structured_output_request.grammar.num_processed_tokens
    masks = manager.grammar_bitmask(
        {"beside": beside, "r": request, "plain": beside}, ["beside", "r", "plain"], {"r": tree}
    ).copy()
    assert request.structured_output_request.grammar.num_processed_tokens == before
    num_forbidden = 0
    from vllm_smart.seams.versions import num_masks

    first = num_masks(0, MOST)
    for place in range(-1, len(tree)):
        path = path_of(tree, tree.parents, place)
        if len(manager.validate_tokens(request, path)) < len(path):
            num_forbidden += 1
            token, parent = tree[place], tree.parents[place]
            above = path_of(tree, tree.parents, parent)
            if len(manager.validate_tokens(request, above)) == len(above):
                row = bits(masks[first + 1 + parent], len(manager.tokenizer))
                assert not row[token], "the target must not be able to pick it"
            continue
        row = bits(masks[first + 1 + place], len(manager.tokenizer))
        np.testing.assert_array_equal(row, chain_mask(manager, request, path))
    assert num_forbidden > 0
    last = masks[first + num_masks(len(tree), MOST)]
    np.testing.assert_array_equal(bits(masks[0], 64), bits(last, 64))


class Reasoner:
    """Reasoning ends with token 7."""

    def is_reasoning_end(self, tokens) -> bool:
        return 7 in tokens

    def is_reasoning_end_streaming(self, tokens, delta) -> bool:
        return 7 in delta


@pytest.mark.parametrize("seed", range(4))
def test_a_grammar_begins_on_each_path_where_reasoning_ends_there(make, seed):
    manager, new_request = make(Reasoner())
    request = new_request("")
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, manager, request, 20, stray=0.4, extra=[7, 7, 8])
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": tree}).copy()
    bound = 0
    for place in range(-1, len(tree)):
        path = path_of(tree, tree.parents, place)
        if len(manager.validate_tokens(request, path)) < len(path):
            continue
        row = bits(masks[1 + place], len(manager.tokenizer))
        np.testing.assert_array_equal(row, chain_mask(manager, request, path))
        bound += 7 in path
        assert row.all() == (7 not in path)
    assert bound > 0


def test_masks_in_the_order_of_the_list_would_be_others(make):
    """The control: what vLLM makes of the same tokens as a chain."""
    manager, new_request = make()
    request = new_request('{"name": "')
    tokens = [make.tokenizer.encode(text, add_special_tokens=False)[0] for text in ("s", "o", "e")]
    tree = TreeTokens(tokens, [-1, -1, 0])
    by_tree = manager.grammar_bitmask({"r": request}, ["r"], {"r": tree}).copy()
    as_chain = manager.grammar_bitmask({"r": request}, ["r"], {"r": list(tree)}).copy()
    assert manager.validate_tokens(request, list(tree)) != tokens
    assert (by_tree != as_chain).any()


def test_places_without_a_token_are_open_and_end_the_tree(make):
    manager, new_request = make()
    request = new_request('{"name": "')
    tree = TreeTokens([5, 6], [-1, 0])
    tree.extend([-1, -1])
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": tree}).copy()
    assert (masks[3:5] == -1).all()
    assert (masks[0] != -1).any()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_of_an_earlier_step_is_left_in_the_masks(make, seed):
    rng = np.random.default_rng(seed)
    masks = []
    for is_first in (True, False):
        manager, new_request = make()
        request, before = new_request('{"name": "'), new_request("")
        if is_first:
            trees = [random_tree(rng, manager, request, size, stray=0.5) for size in (9, 5)]
        else:  # then vLLM's rows are there already
            manager.grammar_bitmask({"b": before, "r": before}, ["b", "r"], {"b": trees[0]})
            manager.grammar_bitmask({"b": before}, ["b"], {"b": trees[0]})
        of_both = {"r": request, "s": request}
        tokens = dict(zip(of_both, trees, strict=True))
        masks.append(manager.grammar_bitmask(of_both, ["r", "s"], tokens).copy())
    np.testing.assert_array_equal(*masks)
