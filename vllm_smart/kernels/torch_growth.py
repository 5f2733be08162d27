"""Candidates of growing trees on the device: fixed shapes, no synchronisation, capturable.

The same candidates as `proposer.CandidatePool` keeps on the host, and the trees it would select. Every
level has room for all of its rows; rows that a request does not expand hold candidates of
probability 0. So one captured graph per level serves whatever grows.
"""

from dataclasses import dataclass

import torch

from vllm_smart.kernels.torch_select import Selection, best_first

MASK_WORD_BITS = 32
ROOT = -1  # the parent of the first level's candidates


@dataclass(frozen=True)
class Frontier:
    """The nodes to expand next, [num_reqs, rows] each, best first."""

    candidate: torch.Tensor  # int64, column of the candidate; ROOT for roots
    path_prob: torch.Tensor  # float32, 0 where there is none to expand: its children are ruled out


@dataclass(frozen=True)
class DeviceTrees:
    """Trees as the target verifies them, roots first.

    Entries beyond `num_nodes` are inert: children of the root with tokens that no sample equals, which
    see the root and themselves. So a step of a captured size may run them all.
    """

    token: torch.Tensor  # [num_reqs, max_nodes] int64, -1 at roots and beyond
    parent: torch.Tensor  # [num_reqs, max_nodes] int32, -1 at roots
    depth: torch.Tensor  # [num_reqs, max_nodes] int32
    rank: torch.Tensor  # [num_reqs, max_nodes] int32, 0 = the draft's top choice among siblings
    path_prob: torch.Tensor  # [num_reqs, max_nodes] float32
    draft_prob: torch.Tensor  # [num_reqs, max_nodes] float32, given the parent
    ancestor_mask: torch.Tensor  # [num_reqs, max_nodes, words] int32, bit j % 32 of word j // 32
    num_nodes: torch.Tensor  # [num_reqs] int32, root included


class DeviceCandidates:
    """All candidates of a batch by column: the first level's, then those of each row of the next.

    Attributes:
        token, parent, path_prob, draft_prob: [num_reqs, num_columns] of the batch that grows.
        num_columns: candidates that a request has room for.
    """

    def __init__(
        self, max_num_reqs: int, depth: int, width: int, children: int, device: torch.device
    ) -> None:
        """Allocate; `begin` makes the buffers ready for a step.

        Args:
            max_num_reqs: most requests of a batch, those of padding included.
            depth: levels below the root, at least 1.
            width: rows per request of each level but the first, which has one.
            children: candidates of each row.
            device: where all of it lies.
        """
        self.depth, self.width, self.children = depth, width, children
        self.num_columns = children * (1 + (depth - 1) * width)
        shape = (max_num_reqs, self.num_columns)
        self._token = torch.zeros(shape, dtype=torch.int64, device=device)
        self._parent = torch.full(shape, ROOT, dtype=torch.int64, device=device)
        self._path_prob = torch.zeros(shape, dtype=torch.float32, device=device)
        self._draft_prob = torch.zeros(shape, dtype=torch.float32, device=device)
        self._level = torch.zeros(self.num_columns, dtype=torch.int32, device=device)
        for level in range(depth):
            self._level[self.columns(level)] = level + 1
        self._rank = torch.arange(self.num_columns, dtype=torch.int32, device=device) % children
        self._use(max_num_reqs)

    def _use(self, num_reqs: int) -> None:
        self.token, self.parent = self._token[:num_reqs], self._parent[:num_reqs]
        self.path_prob, self.draft_prob = self._path_prob[:num_reqs], self._draft_prob[:num_reqs]

    def begin(self, grows: torch.Tensor) -> Frontier:
        """Forget the candidates of the step before; the roots are to be expanded.

        Args:
            grows: [num_reqs] bool, requests that draft in this step.
        """
        self._use(len(grows))
        self.path_prob.zero_()
        self.draft_prob.zero_()
        return Frontier(torch.full_like(self.parent[:, :1], ROOT), grows.float().unsqueeze(1))

    def add_level(
        self,
        level: int,
        frontier: Frontier,
        token: torch.Tensor,
        draft_prob: torch.Tensor,
        accept_prob: torch.Tensor,
    ) -> None:
        """Add the candidate children of the nodes expanded.

        Args:
            level: counted from 0, the roots' children.
            frontier: the nodes expanded, of the roots or of the level before.
            token: [num_reqs, rows, children] distinct within a row, the draft's top choice first.
            draft_prob: [num_reqs, rows, children] float32, what the draft says, given the parent.
            accept_prob: [num_reqs, rows, children] float32, given the parent; 0 rules out.
        """
        columns = self.columns(level)
        self.path_prob[:, columns] = (frontier.path_prob.unsqueeze(2) * accept_prob).flatten(1)
        self.draft_prob[:, columns] = draft_prob.flatten(1)
        self.token[:, columns] = token.flatten(1)
        self.parent[:, columns] = frontier.candidate.repeat_interleave(self.children, dim=1)

    def frontier(self, level: int) -> Frontier:
        """The best candidates of `level`, `width` of each request; ties go to the lower column."""
        columns = self.columns(level)
        place, prob = best_first(self.path_prob[:, columns], self.width)
        short = self.width - place.shape[1]
        candidate = torch.nn.functional.pad(place + columns.start, (0, short), value=columns.start)
        return Frontier(candidate, torch.nn.functional.pad(prob, (0, short)))

    def off_chain(self) -> torch.Tensor:
        """[num_reqs] float32 path_prob of the best candidate that makes a tree of its chain, or 0."""
        order, prob = best_first(self.path_prob, self.num_columns)
        place = torch.arange(1, self.num_columns + 1, device=order.device)
        # The first one off the chain is the likeliest of them: probabilities never increase.
        return prob.masked_fill(self._level[order] == place, 0.0).amax(dim=1)

    def trees(self, selection: Selection) -> DeviceTrees:
        """The trees of the candidates selected, parents by their place in the tree.

        Args:
            selection: of `path_prob`.
        """
        order, num_draft = selection.order, selection.num_draft_nodes
        num_reqs, budget = order.shape
        node = torch.arange(budget + 1, device=order.device)
        # Where a candidate's column stands in its tree; candidates left out are nobody's parents.
        place = torch.zeros_like(self.parent).scatter_(1, order, node[1:].expand(num_reqs, -1))
        parent = self.parent.gather(1, order)
        parent = torch.where(parent == ROOT, 0, place.gather(1, parent.clamp(min=0)))
        chosen = node[1:] <= num_draft.unsqueeze(1)
        parent = _with_root(torch.where(chosen, parent, 0), ROOT)
        return DeviceTrees(
            token=_with_root(torch.where(chosen, self.token.gather(1, order), -1), -1),
            parent=parent.int(),
            depth=_with_root(self._level[order], 0),
            rank=_with_root(self._rank[order], 0),
            path_prob=_with_root(selection.path_prob, 1.0),
            draft_prob=_with_root(self.draft_prob.gather(1, order), 1.0),
            ancestor_mask=_ancestor_masks(parent.clamp(min=0), self.depth),
            num_nodes=num_draft + 1,
        )

    def columns(self, level: int) -> slice:
        """Of the candidates of `level`, counted from 0."""
        first = self.children * (1 + (level - 1) * self.width) if level else 0
        rows = self.width if level else 1
        return slice(first, first + rows * self.children)


def _with_root(nodes: torch.Tensor, root: float) -> torch.Tensor:
    return torch.nn.functional.pad(nodes, (1, 0), value=root)


def _ancestor_masks(above: torch.Tensor, depth: int) -> torch.Tensor:
    """[num_reqs, max_nodes, words] int32 bits of each node and its ancestors.

    Pointer doubling, as in `tree.ancestor_masks`.

    Args:
        above: [num_reqs, max_nodes] int64 parents; roots are their own.
        depth: most edges between a node and its root.
    """
    num_reqs, max_nodes = above.shape
    words = -(-max_nodes // MASK_WORD_BITS)
    node = torch.arange(max_nodes, device=above.device)
    word = torch.arange(words, device=above.device)
    bit = torch.ones_like(node, dtype=torch.int32) << (node % MASK_WORD_BITS).int()
    own = torch.where(node.unsqueeze(1) // MASK_WORD_BITS == word, bit.unsqueeze(1), 0)
    mask = (own | own[:1]).expand(num_reqs, -1, -1)  # the root is everybody's ancestor
    for _ in range(depth.bit_length()):
        mask = mask | mask.gather(1, above.unsqueeze(2).expand(-1, -1, words))
        above = above.gather(1, above)
    return mask
