"""Draft tokens in vLLM's flat list that know whose children they are."""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload


class TreeTokens(list[int]):
    """A request's draft tokens, best first, as vLLM hands them from the worker to the scheduler.

    A list like any other to all who do not know it. Its first part is a tree, too.
    """

    def __init__(self, tokens: Iterable[int] = (), parents: Sequence[int] = ()) -> None:
        """Args:
        tokens: the tree's nodes but for the root.
        parents: [len(tokens)] place in the list of each one's parent, which comes before it; -1: the
            root.
        """
        super().__init__(tokens)
        self.parents = parents

    @overload
    def __getitem__(self, at: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        is_first_part = isinstance(at, slice) and at.start in (None, 0) and at.step in (None, 1)
        return TreeTokens(found, self.parents[: len(found)]) if is_first_part else found

    def __reduce__(self) -> tuple[Any, ...]:
        return TreeTokens, (list(self), list(self.parents))

    def children(self) -> list[list[int]]:
        """[1 + len(self)] places of the children of each, the root's first; as far as tokens are known.

        vLLM fills places that it has scheduled without tokens for them by -1: nothing comes after one.
        """
        found: list[list[int]] = [[] for _ in range(1 + len(self))]
        for place, (token, parent) in enumerate(zip(self, self.parents, strict=False)):
            if token < 0:
                break
            found[1 + parent].append(place)
        return found
