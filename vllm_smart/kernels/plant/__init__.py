"""The trees of the chosen candidates, written where the next step and the host find them.

A tree has room for a fixed number of nodes. Entries beyond it are inert: children of the root with
tokens that no sample equals, which see the root and themselves, at its position. So a step of a
captured size may run them all.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KeptTrees:
    """Trees by slot; entries beyond a tree are inert."""

    token: torch.Tensor  # [num_slots, max_nodes] int64
    parent: torch.Tensor  # [num_slots, max_nodes] int32
    depth: torch.Tensor  # [num_slots, max_nodes] int32
    mask: torch.Tensor  # [num_slots, max_nodes, words] int32, bits of each node and its ancestors
    value: torch.Tensor  # [num_slots, max_nodes] float32 what each is worth, 0 beyond a tree
