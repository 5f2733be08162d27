"""Speculation without a drafter: where vLLM would look up n-grams of its own, ours grow trees."""

import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.drafter.host_drafting import HostDrafting
from vllm_smart.adapter.drafter.host_growth import HostGrowth
from vllm_smart.adapter.drafter.request_ends import RequestEnds
from vllm_smart.adapter.drafter.who_drafts import WhoDrafts
from vllm_smart.adapter.drafter.without_model import SpeculatorWithoutModel
from vllm_smart.config import SmartConfig


class NgramSpeculator(SpeculatorWithoutModel):
    """Its trees repeat what the requests' own texts have said before."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: SmartConfig,
        device: torch.device,
        req_states: RequestState,
    ) -> None:
        super().__init__(vllm_config, config, device, req_states)
        ends = RequestEnds(req_states, vllm_config.model_config.max_model_len)
        who, growth = WhoDrafts(self.runtime, None), HostGrowth(None, self.runtime, ends)
        self._drafting = HostDrafting(self.runtime, None, who, growth)
