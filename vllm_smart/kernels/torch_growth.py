"""Candidates of growing trees on the device: fixed shapes, no synchronisation, capturable.

The same candidates as `proposer.CandidatePool` keeps on the host, and the trees it would select. Every
level has room for all of its rows; rows that a request does not expand hold candidates of
probability 0. Levels are told by a tensor, so one captured graph serves all of them.
"""

from dataclasses import dataclass, replace

import torch

from vllm_smart.kernels.torch_select import Selection, best_first

MASK_WORD_BITS = 32
ROOT = -1  # the parent of the first level's candidates
NO_SOURCE = -1  # of columns that hold no candidate


@dataclass(frozen=True)
class Frontier:
    """The nodes to expand next, [num_reqs, rows] each, best first."""

    candidate: torch.Tensor  # int64, column of the candidate; ROOT for roots
    path_prob: torch.Tensor  # float32, 0 where there is none to expand: its children are ruled out


@dataclass(frozen=True)
class DeviceTrees:
    """Trees as the target verifies them, roots first.

    Entries beyond `num_nodes` are inert: children of the root with tokens that no sample equals, which
    see the root and themselves, at its position. So a step of a captured size may run them all.
    """

    token: torch.Tensor  # [num_reqs, max_nodes] int64, -1 at roots and beyond
    parent: torch.Tensor  # [num_reqs, max_nodes] int32, -1 at roots
    depth: torch.Tensor  # [num_reqs, max_nodes] int32
    rank: torch.Tensor  # [num_reqs, max_nodes] int32, 0 = the draft's top choice among siblings
    path_prob: torch.Tensor  # [num_reqs, max_nodes] float32
    draft_prob: torch.Tensor  # [num_reqs, max_nodes] float32, given the parent
    num_nodes: torch.Tensor  # [num_reqs] int32, root included


@dataclass(frozen=True)
class DeviceCandidates:
    """All candidates of a batch by column: level by level, row by row of the level before.

    The first level has one row; its other columns are never used. What a column's depth and rank are
    stands in columns of their own, so that readers need not know how they are laid out.
    """

    num_levels: int  # below the root, at least 1
    width: int  # rows per request of a level
    children: int  # candidates of each row
    token: torch.Tensor  # [num_reqs, num_levels * width * children] int64
    parent: torch.Tensor  # int64 columns, ROOT on the first level
    depth: torch.Tensor  # int32
    rank: torch.Tensor  # int32 among siblings
    source: torch.Tensor  # int32, NO_SOURCE where there is no candidate
    path_prob: torch.Tensor  # float32, 0 where there is no candidate
    draft_prob: torch.Tensor  # float32, given the parent

    @classmethod
    def room(
        cls, max_num_reqs: int, num_levels: int, width: int, children: int, device: torch.device
    ) -> "DeviceCandidates":
        """Room for any batch; `of_first` are those of one, which `begin` makes ready for a step.

        Args:
            max_num_reqs: most requests of a batch, those of padding included.
            num_levels: below the root.
            width: rows per request of a level.
            children: candidates of each row.
            device: where all of it lies.
        """
        shape = max_num_reqs, num_levels * width * children

        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        column = torch.arange(shape[1], dtype=torch.int32, device=device)
        return cls(
            *(num_levels, width, children),
            token=zeros(torch.int64),
            parent=zeros(torch.int64),
            depth=(column // (width * children) + 1).repeat(max_num_reqs, 1),
            rank=(column % children).repeat(max_num_reqs, 1),
            source=zeros(torch.int32) + NO_SOURCE,
            path_prob=zeros(torch.float32),
            draft_prob=zeros(torch.float32),
        )

    def of_first(self, num_reqs: int) -> "DeviceCandidates":
        """The same room, of the first requests alone."""
        columns = {name: tensor[:num_reqs] for name, tensor in self.columns.items()}
        return replace(self, **columns)

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """What is known of each candidate, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    @property
    def level_columns(self) -> int:
        """Columns of each level."""
        return self.width * self.children

    def begin(self, grows: torch.Tensor) -> Frontier:
        """Forget the candidates of the step before; the roots are to be expanded.

        Args:
            grows: [num_reqs] bool, requests that draft in this step.
        """
        self.path_prob.zero_()
        self.draft_prob.zero_()
        self.source.fill_(NO_SOURCE)
        return Frontier(torch.full_like(self.parent[:, :1], ROOT), grows.float().unsqueeze(1))

    def add_level(
        self,
        level: torch.Tensor,
        frontier: Frontier,
        token: torch.Tensor,
        draft_prob: torch.Tensor,
        accept_prob: torch.Tensor,
    ) -> None:
        """Add the candidate children of the nodes expanded.

        Args:
            level: [1] int64, counted from 0, the roots' children.
            frontier: the nodes expanded, of the roots or of the level before.
            token: [num_reqs, rows, children] distinct within a row, the draft's top choice first.
            draft_prob: [num_reqs, rows, children] float32, what the draft says, given the parent.
            accept_prob: [num_reqs, rows, children] float32, given the parent; 0 rules out.
        """
        path_prob = frontier.path_prob.unsqueeze(2) * accept_prob
        parent = frontier.candidate.unsqueeze(2).expand_as(token)
        is_node = (frontier.path_prob > 0).unsqueeze(2).expand_as(token)
        source = torch.where(is_node, 0, NO_SOURCE).to(self.source.dtype)
        for columns, values in (
            (self.source, source),
            (self.path_prob, path_prob),
            (self.draft_prob, draft_prob),
            (self.token, token),
            (self.parent, parent),
        ):
            # The roots have fewer children than a level has room for.
            own = self._by_level(columns)[:, :, : values.shape[1] * self.children]
            own.index_copy_(1, level, values.flatten(1).unsqueeze(1))

    def frontier(self, level: torch.Tensor) -> Frontier:
        """The best candidates of `level` [1], `width` of each request; ties go to the lower column."""
        prob = self._by_level(self.path_prob).index_select(1, level).squeeze(1)
        place, prob = best_first(prob, self.width)
        return Frontier(place + level * self.level_columns, prob)

    def _by_level(self, columns: torch.Tensor) -> torch.Tensor:
        return columns.view(len(columns), self.num_levels, self.level_columns)

    def off_chain(self) -> torch.Tensor:
        """[num_reqs] float32 path_prob of the best candidate that makes a tree of its chain, or 0."""
        order, prob = best_first(self.path_prob, self.path_prob.shape[1])
        place = torch.arange(order.shape[1], device=order.device)
        # The first one off the chain is the likeliest of them: probabilities never increase.
        is_chain = self.depth.gather(1, order) == place + 1
        return prob.masked_fill(is_chain, 0.0).amax(dim=1)

    def trees(self, selection: Selection, max_nodes: int) -> DeviceTrees:
        """The trees of the candidates selected, parents by their place in the tree.

        Args:
            selection: of `path_prob`.
            max_nodes: room for nodes of each, roots included; at least as much as the selection has.
        """
        order, num_draft = selection.order, selection.num_draft_nodes
        num_reqs, budget = order.shape
        node = torch.arange(budget + 1, device=order.device)
        # Where a candidate's column stands in its tree; candidates left out are nobody's parents.
        place = torch.zeros_like(self.parent).scatter_(1, order, node[1:].expand(num_reqs, -1))
        parent = self.parent.gather(1, order)
        parent = torch.where(parent == ROOT, 0, place.gather(1, parent.clamp(min=0)))
        chosen = node[1:] <= num_draft.unsqueeze(1)

        def filled(nodes: torch.Tensor, root: float, inert: float = 0) -> torch.Tensor:
            """[num_reqs, max_nodes]: roots, nodes chosen of [num_reqs, budget], inert ones."""
            nodes = torch.nn.functional.pad(torch.where(chosen, nodes, inert), (1, 0), value=root)
            return torch.nn.functional.pad(nodes, (0, max_nodes - nodes.shape[1]), value=inert)

        return DeviceTrees(
            token=filled(self.token.gather(1, order), -1, inert=-1),
            parent=filled(parent, ROOT).int(),
            depth=filled(self.depth.gather(1, order), 0).int(),
            rank=filled(self.rank.gather(1, order), 0).int(),
            path_prob=filled(selection.path_prob, 1.0),
            draft_prob=filled(self.draft_prob.gather(1, order), 1.0),
            num_nodes=num_draft + 1,
        )


def settle(
    num_rejected: torch.Tensor,
    temperature_of: torch.Tensor,
    req: torch.Tensor,
    slot: torch.Tensor,
    emits: torch.Tensor,
    end: torch.Tensor,
    useful_depth: torch.Tensor,
    prefix_end: torch.Tensor,
    temperature: torch.Tensor,
    reads_bonus: bool,
    max_len: int,
) -> None:
    """Complete what the host has said of requests that draft, as if nothing would be rejected.

    Args:
        num_rejected: [num_reqs of the step] int32 nodes that the walk did not take.
        temperature_of: [max_num_reqs] float32 by slot.
        req: [num_reqs] int64 batch indices.
        slot: [num_reqs] int64 request-state slots.
        emits: [num_reqs] int64, 1 if a request has a root.
        end: [num_reqs] int64, changed: position after the last one that stands.
        useful_depth: [num_reqs] int64, changed: deeper nodes are wasted.
        prefix_end: [num_reqs] int64, written: position after the last one that the drafter has read.
        temperature: [num_reqs] float32, written.
        reads_bonus: whether the drafter reads the bonus token, too.
        max_len: no position reaches it.
    """
    rejected = num_rejected[req]
    end.sub_(rejected)
    useful_depth.add_(rejected)
    torch.add(end, emits, alpha=int(reads_bonus), out=prefix_end)
    prefix_end.clamp_(max=max_len)
    torch.index_select(temperature_of, 0, slot, out=temperature)


def ancestor_masks(parent: torch.Tensor, depth: int) -> torch.Tensor:
    """[num_reqs, max_nodes, words] int32 bits of each node and its ancestors.

    Pointer doubling, as in `tree.ancestor_masks`.

    Args:
        parent: [num_reqs, max_nodes] of `DeviceTrees`.
        depth: most edges between a node and its root.
    """
    above = parent.long().clamp(min=0)
    num_reqs, max_nodes = above.shape
    words = -(-max_nodes // MASK_WORD_BITS)
    node = torch.arange(max_nodes, device=parent.device)
    word = torch.arange(words, device=parent.device)
    bit = torch.ones_like(node, dtype=torch.int32) << (node % MASK_WORD_BITS).int()
    own = torch.where(node.unsqueeze(1) // MASK_WORD_BITS == word, bit.unsqueeze(1), 0)
    mask = (own | own[:1]).expand(num_reqs, -1, -1)  # the root is everybody's ancestor
    for _ in range(depth.bit_length()):
        mask = mask | mask.gather(1, above.unsqueeze(2).expand(-1, -1, words))
        above = above.gather(1, above)
    return mask
