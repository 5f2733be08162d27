"""Structured output on trees: what a grammar allows after each node of a draft tree.

vLLM checks drafts against a request's grammar one after the other, as a chain, and makes a mask of each
place in it. Of trees (`TreeTokens`) the grammar is walked along each path, there and back. Nodes that
it forbids need not be taken out: the mask of their parent keeps the target from ever picking them.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_smart.seams.rebound import is_ours, marked
from vllm_smart.tree import TreeTokens

if TYPE_CHECKING:
    import torch
    from vllm.v1.request import Request
    from vllm.v1.structured_output import ConstraintBounds, StructuredOutputManager


def check_grammars_along_paths() -> None:
    """Extend vLLM's manager of grammars, in processes that have an engine core. Idempotent."""
    if "vllm.v1.engine.core" not in sys.modules:
        return
    from vllm.v1.structured_output import StructuredOutputManager as Manager

    if not is_ours(Manager.grammar_bitmask):
        Manager.validate_tokens = _keeping_trees(Manager.validate_tokens)
        Manager.grammar_bitmask = _with_masks_of_trees(Manager.grammar_bitmask)


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

        # Rows of places without a token are left open.
        drafts = {**scheduled_spec_decode_tokens, **{name: [-1] * len(trees[name]) for name in trees}}
        masks = stock(self, requests, structured_output_request_ids, drafts)
        row, most = 0, self.vllm_config.num_speculative_tokens
        for name in structured_output_request_ids:
            if name in trees:
                _Walk(self, requests[name], trees[name], row).fill()
            row += num_masks(len(drafts.get(name, ())), most)
        return masks

    return marked(grammar_bitmask)


class _Walk:
    """One request's grammar on its way through the tree, and back to where it was."""

    def __init__(
        self, manager: "StructuredOutputManager", request: "Request", tree: TreeTokens, first_row: int
    ) -> None:
        """Args:
        first_row: the root's, of the manager's masks; the row of place i is i + 1 further.
        """
        structured = request.structured_output_request
        assert structured is not None
        self._grammar: Any = structured.grammar
        self._bounds = functools.partial(manager._get_constraint_bounds, request)
        self._request, self._tree, self._first_row = request.request_id, tree, first_row
        self._children = tree.children()
        masks = manager._grammar_bitmask
        assert masks is not None
        self._masks: torch.Tensor = masks

    def fill(self) -> None:
        """Fill the rows of all nodes that the grammar allows."""
        self._visit(-1, [], self._bounds([]))

    def _visit(self, place: int, path: list[int], bounds: "ConstraintBounds") -> None:
        row = self._first_row + 1 + place
        # Before reasoning has ended, everything is allowed.
        is_bound = bounds.constraint_start <= len(path)
        if is_bound and not self._grammar.is_terminated():
            self._grammar.fill_bitmask(self._masks, row)
        else:
            self._masks[row] = -1
        for child in self._children[1 + place]:
            token = self._tree[child]
            further = [*path, token]
            bounds_of_child = self._bounds(further)
            is_read = bounds_of_child.grammar_start <= len(path)
            if is_read and not self._accepts(token):
                continue
            self._visit(child, further, bounds_of_child)
            if is_read:
                self._grammar.rollback(1)

    def _accepts(self, token: int) -> bool:
        grammar = self._grammar
        if grammar.is_terminated() or not grammar.validate_tokens([token]):
            return False
        accepted: bool = grammar.accept_tokens(self._request, [token])
        return accepted
