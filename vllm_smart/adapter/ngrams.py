"""N-grams of vLLM's requests: their tokens where Model Runner V2 keeps them."""

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.config import SmartConfig
from vllm_smart.growth.ngrams import Ngrams

# Of a model's configuration: what stands for images, videos and sounds in its prompts.
_PLACEHOLDERS = tuple(
    f"{kind}_token_{name}"
    for kind in ("image", "video", "audio", "vision_start", "vision_end")
    for name in ("id", "index")
)


def make_ngrams(
    vllm_config: VllmConfig, config: SmartConfig, req_states: RequestState
) -> Ngrams | None:
    """The n-grams that `config` asks for; None for none."""
    if config.ngrams is None:
        return None
    # On CPUs the tokens of requests lie where the host can read them.
    history = req_states.all_token_ids.gpu.numpy()
    hf_config = vllm_config.model_config.hf_config
    barriers = sorted(
        {token for name in _PLACEHOLDERS if isinstance(token := getattr(hf_config, name, None), int)}
    )
    return Ngrams(config.ngrams, history, barriers)


def is_sampled(temperature: torch.Tensor, slots: np.ndarray) -> np.ndarray:
    """[num_reqs] bool: which requests draw at a temperature, those in `slots`.

    Args:
        temperature: [max_num_reqs] float32 by request-state slot, on the host.
    """
    drawn: np.ndarray = temperature.numpy()[slots] > 0
    return drawn
