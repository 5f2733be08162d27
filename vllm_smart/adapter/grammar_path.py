"""vLLM's grammar of a request on its way along draft tokens, and back to where it was."""

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from vllm.v1.structured_output import ConstraintBounds, StructuredOutputManager


# Managers of engine cores by the id of their engine's configuration: a worker in the same process
# need not compile what its engine core has compiled.
managers: "WeakValueDictionary[int, StructuredOutputManager]" = WeakValueDictionary()


class GrammarPath:
    """Starts after a request's known tokens. Implements `proposer.Grammar`.

    Where reasoning has not ended, the grammar reads nothing and everything is allowed. Whether it has
    is looked up along each path, for the tokens of a path may end it.
    """

    def __init__(self, manager: "StructuredOutputManager", request: Any) -> None:
        """Args:
        manager: of grammars.
        request: vLLM's, or what its manager needs of one; its grammar is compiled.
        """
        self._manager, self._request = manager, request
        self._grammar: Any = request.structured_output_request.grammar
        self._path: list[int] = []
        self._was_read: list[bool] = []  # of each token of the path, by the grammar
        first = manager._get_constraint_bounds(request, [])
        # Of each part of the path, the empty one first: from where on the grammar counts, and what it
        # allows next, as far as it was asked.
        self._bounds = [first]
        self._masks: list[npt.NDArray[np.int32] | None] = [None]
        # Where all is constrained from the root on, no token of a path can begin or end that.
        self._is_bound = first.constraint_start == 0

    def _bounds_after(self, token: int) -> "ConstraintBounds":
        if self._is_bound:
            return self._bounds[0]
        return self._manager._get_constraint_bounds(self._request, [*self._path, token])

    @property
    def is_over(self) -> bool:
        """Whether the text that the grammar describes has ended."""
        over: bool = self._grammar.is_terminated()
        return over

    def allowed(self, mask: npt.NDArray[np.int32]) -> bool:
        """Write which tokens may come next into `mask` [num_words]; False where all may.

        Args:
            mask: stays as it is until the path has been left.
        """
        if self._bounds[-1].constraint_start > len(self._path) or self.is_over:
            return False
        self._grammar.fill_bitmask(torch.from_numpy(mask).unsqueeze(0), 0)
        self._masks[-1] = mask
        return True

    def advance(self, token: int) -> bool:
        """Go on with `token`; False, and stay, if the grammar forbids it."""
        bounds = self._bounds_after(token)
        is_read = bounds.grammar_start <= len(self._path)
        if is_read and not self._accepts(token):
            return False
        self._path.append(token)
        self._was_read.append(is_read)
        self._bounds.append(bounds)
        self._masks.append(None)
        return True

    def back(self, count: int) -> None:
        """Take the last `count` tokens back."""
        if not count:
            return
        if num_read := sum(self._was_read[-count:]):
            self._grammar.rollback(num_read)
        for of_tokens in (self._path, self._was_read, self._bounds, self._masks):
            del of_tokens[-count:]

    def _accepts(self, token: int) -> bool:
        grammar, mask = self._grammar, self._masks[-1]
        # Looked up or asked first: what is refused is an error to those who accept.
        if mask is not None:
            word = token >> 5
            if word >= len(mask) or not int(mask[word]) >> (token & 31) & 1:
                return False
        elif grammar.is_terminated() or not grammar.validate_tokens([token]):
            return False
        accepted: bool = grammar.accept_tokens(self._request.request_id, [token])
        return accepted
