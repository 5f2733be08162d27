"""Growing trees: the candidates of a batch, level by level, and the nodes that a level expands.

Hosts keep candidates in a `proposer.CandidatePool`, over which the loops in `cpu` run. Devices keep
the same candidates in `device.DeviceCandidates`, of fixed shapes, so that one captured graph serves
all levels. A level on a device is: `expand_level` says which nodes are run and what they see, the
drafter's forward follows, and `add_children` adds what it says.
"""

from vllm_smart.kernels.grow.cpu import CONFIDENCE_EDGES, NUM_CONFIDENCES

ROOT = -1  # the parent of a device's candidates on the first level
NO_SOURCE = -1  # of columns that hold no candidate

__all__ = ["CONFIDENCE_EDGES", "NO_SOURCE", "NUM_CONFIDENCES", "ROOT"]
