"""Speculation whose drafter runs in a process of its own: this one has no draft model."""

import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.drafter.host_drafting import HostDrafting
from vllm_smart.adapter.drafter.request_ends import RequestEnds
from vllm_smart.adapter.drafter.who_drafts import WhoDrafts
from vllm_smart.adapter.drafter.without_model import SpeculatorWithoutModel
from vllm_smart.adapter.overlap.boards import Boards
from vllm_smart.adapter.overlap.orders import Orders
from vllm_smart.adapter.overlap.placed_growth import PlacedGrowth
from vllm_smart.adapter.overlap.remote_drafter import RemoteDrafter, choose_cores
from vllm_smart.config import SmartConfig
from vllm_smart.overlap.drafts import DraftBoard
from vllm_smart.overlap.grown_tree import FEWEST_CHILDREN, LEAST_PROB, MOST_BLOCKS
from vllm_smart.overlap.truth import TruthBoard


class RemoteSpeculator(SpeculatorWithoutModel):
    """Verifies what the drafter's process has grown."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: SmartConfig,
        device: torch.device,
        req_states: RequestState,
    ) -> None:
        """Starts the process.

        Raises:
            ConfigError: there are no cores for it.
        """
        super().__init__(vllm_config, config, device, req_states)
        self.drafter = _start(vllm_config, config)
        boards = Boards(self.drafter, self.runtime, req_states)
        self.runtime.boards = boards
        ends = RequestEnds(req_states, vllm_config.model_config.max_model_len)
        self.growth = PlacedGrowth(boards, self.runtime, ends, config.drafter.max_wait_ms)
        who = WhoDrafts(self.runtime, boards)
        self._drafting = HostDrafting(self.runtime, boards, who, self.growth)


def _start(vllm_config: VllmConfig, config: SmartConfig) -> RemoteDrafter:
    threads = config.drafter.num_threads
    cores = choose_cores(config.drafter.cores, threads)
    num_slots = vllm_config.scheduler_config.max_num_seqs
    max_len = vllm_config.model_config.max_model_len
    vocab_size, limits = vllm_config.model_config.get_vocab_size(), config.growth
    # An engine that is started with speculation off may be told to speculate later.
    children = max(limits.children or config.tree.children, FEWEST_CHILDREN)
    width = limits.width or config.tree.width
    truth = TruthBoard(num_slots, max_len)
    drafts = DraftBoard(num_slots, children, MOST_BLOCKS, vocab_size)
    orders = Orders(
        vllm_config=vllm_config,
        num_slots=num_slots,
        max_len=max_len,
        children=children,
        width=width,
        most_blocks=MOST_BLOCKS,
        least_prob=LEAST_PROB,
        vocab_size=vocab_size,
        memory_bytes=int(config.drafter.memory_gib * 2**30),
        truth_fd=truth.memory.fd,
        drafts_fd=drafts.memory.fd,
    )
    return RemoteDrafter(orders, (truth, drafts), cores, threads)
