"""Structured output on trees: what a grammar allows after each node of a draft tree.

vLLM checks drafts against a request's grammar one after the other, as a chain, and makes a mask of each
place in it. Of trees (`TreeTokens`) the grammar is walked along each path, there and back. Nodes that
it forbids need not be taken out: the mask of their parent keeps the target from ever picking them.
Workers draft hardly any: `adapter.grammars`.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_smart.adapter.grammar_path import GrammarPath, managers
from vllm_smart.growth.request_terms import REASONING_KEY
from vllm_smart.seams.rebound import is_ours, marked
from vllm_smart.tree import TreeTokens

if TYPE_CHECKING:
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager


def check_grammars_along_paths() -> None:
    """Extend vLLM's manager of grammars, in processes that have an engine core. Idempotent."""
    if "vllm.v1.engine.core" not in sys.modules:
        return
    from vllm.v1.structured_output import StructuredOutputManager as Manager

    if not is_ours(Manager.grammar_bitmask):
        Manager.validate_tokens = _keeping_trees(Manager.validate_tokens)
        Manager.grammar_bitmask = _with_masks_of_trees(Manager.grammar_bitmask)
        Manager.grammar_init = _telling_workers(Manager.grammar_init)


def _telling_workers(stock: Callable[..., None]) -> Callable[..., None]:
    """Workers draft by grammars of their own: what these need is not among what vLLM hands them."""

    @functools.wraps(stock)
    def grammar_init(self: "StructuredOutputManager", request: "Request") -> None:
        stock(self, request)
        managers.setdefault(id(self.vllm_config), self)  # the core's comes before its worker's
        structured, params = request.structured_output_request, request.sampling_params
        if structured is None or params is None or self.reasoner_cls is None:
            return
        known = structured.reasoning_ended, structured.reasoning_parser_kwargs
        params.extra_args = {**(params.extra_args or {}), REASONING_KEY: known}

    return grammar_init


def _keeping_trees(stock: Callable[..., list[int]]) -> Callable[..., list[int]]:
    @functools.wraps(stock)
    def validate_tokens(
        self: "StructuredOutputManager", request: "Request", spec_tokens: list[int]
    ) -> list[int]:
        if isinstance(spec_tokens, TreeTokens):
            return spec_tokens
        return stock(self, request, spec_tokens)

    return validate_tokens


def _with_masks_of_trees(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def grammar_bitmask(
        self: "StructuredOutputManager",
        requests: Mapping[str, "Request"],
        structured_output_request_ids: Sequence[str],
        scheduled_spec_decode_tokens: Mapping[str, list[int]],
    ) -> Any:
        trees = {
            name: tokens
            for name in structured_output_request_ids
            if isinstance(tokens := scheduled_spec_decode_tokens.get(name), TreeTokens)
        }
        if not trees:
            return stock(self, requests, structured_output_request_ids, scheduled_spec_decode_tokens)
        from vllm_smart.seams.versions import num_masks

        most, drafts = self.vllm_config.num_speculative_tokens, scheduled_spec_decode_tokens
        sizes = [num_masks(len(drafts.get(name, ())), most) for name in structured_output_request_ids]
        # Rows of places without a token are left open.
        if len(trees) == len(sizes) and self._grammar_bitmask is not None:
            masks = self._grammar_bitmask.numpy()[: sum(sizes)]
            masks.fill(-1)
        else:  # vLLM makes room, at first, and goes row by row
            drafts = {**drafts, **{name: [-1] * len(trees[name]) for name in trees}}
            masks = stock(self, requests, structured_output_request_ids, drafts)
        row = 0
        for name, size in zip(structured_output_request_ids, sizes, strict=True):
            if name in trees:
                _fill(self, requests[name], trees[name], row)
            row += size
        return masks

    return marked(grammar_bitmask)


def _fill(
    manager: "StructuredOutputManager", request: "Request", tree: TreeTokens, first_row: int
) -> None:
    """Fill the masks of all nodes that the grammar allows.

    Args:
        first_row: the root's, of the manager's masks; the row of place i is i + 1 further.
    """
    assert manager._grammar_bitmask is not None
    masks, children = manager._grammar_bitmask.numpy(), tree.children()
    path = GrammarPath(manager, request)

    def visit(place: int) -> None:
        mask = masks[first_row + 1 + place]
        if not path.allowed(mask):
            mask[:] = -1
        for child in children[1 + place]:
            if path.advance(tree[child]):
                visit(child)
                path.back(1)

    visit(-1)
