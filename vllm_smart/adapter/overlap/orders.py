"""What a drafter's process is told when it starts."""

import os
import pickle
from dataclasses import dataclass

from vllm.config import VllmConfig

from vllm_smart.overlap.drafts import DraftBoard
from vllm_smart.overlap.truth import TruthBoard


@dataclass(frozen=True)
class Orders:
    """Whose draft model it runs, and where it reads and writes."""

    vllm_config: VllmConfig  # the engine's, as it was before its model was loaded
    num_slots: int  # request-state slots
    max_len: int  # most tokens of a text
    children: int  # of each expanded node
    width: int  # most nodes of a request that one level expands
    most_blocks: int  # most expanded nodes of a tree
    least_prob: float  # that a text comes to a node, as the draft has it; others are not expanded
    vocab_size: int
    memory_bytes: int  # of its KV cache, at most
    truth_fd: int
    drafts_fd: int

    def truth(self) -> TruthBoard:
        """The worker's board."""
        return TruthBoard(self.num_slots, self.max_len, self.truth_fd)

    def drafts(self) -> DraftBoard:
        """The drafter's board."""
        return DraftBoard(
            self.num_slots, self.children, self.most_blocks, self.vocab_size, self.drafts_fd
        )

    def to_memory(self) -> int:
        """Write them into memory without a name; its file descriptor."""
        fd = os.memfd_create("vllm_smart_orders", os.MFD_CLOEXEC)
        with open(os.dup(fd), "wb") as file:
            pickle.dump(self, file)
        return fd

    @classmethod
    def from_memory(cls, fd: int) -> "Orders":
        """What `to_memory` has written, for any number of readers."""
        found = pickle.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        assert isinstance(found, cls)
        return found
