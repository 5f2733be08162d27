"""The noise that the target is going to sample with, and what a draft says under it."""

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.sampler import Sampler

from vllm_smart.adapter.verifier import NUM_NATIVE_PROCESSORS
from vllm_smart.arrays import to_device
from vllm_smart.growth.inputs import RequestNoise
from vllm_smart.kernels.coupled_tokens import SamplingTerms
from vllm_smart.kernels.coupled_tokens.cpu import coupled_tokens
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise

logger = init_logger("vllm.smart")


class TargetNoise:
    """Ranks the draft's tokens as the target's sampler would, for requests that sample.

    Attributes:
        terms: of all request-state slots.
        is_coupled: [max_num_reqs] bool, by request-state slot: requests whose noise is known.
        draws_53_bits: of noise, instead of 32.
    """

    def __init__(self, sampler: Sampler) -> None:
        """Args:
        sampler: the target's, which knows the terms and seeds of all requests.
        """
        states = sampler.sampling_states
        self._sampler = sampler
        self.terms = SamplingTerms(
            temperature=states.temperature.np,
            seed=states.seeds.np,
            top_k=states.top_k.np,
            top_p=states.top_p.np,
            draws_53_bits=sampler.use_fp64_gumbel,
        )
        self.draws_53_bits = sampler.use_fp64_gumbel
        self.is_coupled = np.zeros(len(states.temperature.np), bool)

    def add_request(self, slot: int, params: SamplingParams | None) -> bool:
        """Note whether the noise of a request that was given `slot` is known, and return it."""
        self.is_coupled[slot] = params is not None and self._draws_noise(params)
        return bool(self.is_coupled[slot])

    def _draws_noise(self, params: SamplingParams) -> bool:
        """Whether a request samples, and by noise, which FlashInfer's top-k and top-p do without."""
        if params.temperature == 0:
            return False
        is_shaped = params.top_p < 1 or params.top_k > 0
        if not (self._sampler.use_flashinfer and is_shaped and params.seed is None):
            return True
        logger.info_once(
            "vllm_smart: FlashInfer samples requests with top-k or top-p and no seed; their candidates "
            "are not ranked with its noise, which nobody knows beforehand."
        )
        return False

    def of_requests(self, slots: np.ndarray) -> RequestNoise:
        """Of the requests in `slots`, [num_reqs], for the device."""
        return RequestNoise(self.terms.seed[slots], self.is_coupled[slots])

    def of_rows(self, slots: np.ndarray, position: np.ndarray, device: torch.device) -> DeviceNoise:
        """Of rows on the device; arguments as for `candidates_after`, of any requests."""
        row = np.arange(len(slots))
        parts = self.terms.seed[slots], position, self.is_coupled[slots].astype(np.int64)
        on_device = (to_device(part, device) for part in (*parts, np.zeros(1, np.int64), row))
        return DeviceNoise(*on_device, self.draws_53_bits)

    def candidates_after(
        self, logits: torch.Tensor, slots: np.ndarray, position: np.ndarray, children: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `children` likeliest samples of each row and their probabilities, on CPUs.

        Args:
            logits: [num_rows, vocab_size] of the draft.
            slots: [num_rows] request-state slots of coupled requests.
            position: [num_rows] int64 that the target samples at.
            children: at least 1.
        """
        logits = self._processed(logits, slots, position)
        return coupled_tokens(logits, slots, position, self.terms, children)

    def _processed(self, logits: torch.Tensor, slots: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """The draft's logits as the target's would be processed before they are divided by temperature.

        Penalties and bad words go by what was emitted, not by the path from the root: its few tokens
        are not worth a history for each row.
        """
        # Others may be dear, or keep a state.
        processors = self._sampler.logits_processors[:NUM_NATIVE_PROCESSORS]
        bias, penalties, bad_words = processors
        asks = bias.use_logit_bias[slots] | penalties.use_penalty[slots]
        rows = np.flatnonzero(asks | (bad_words.num_bad_words.np[slots] > 0))
        if not len(rows):
            return logits
        of_rows = torch.from_numpy(slots[rows])
        context = LogitsContext(
            expanded_idx_mapping=of_rows,
            idx_mapping=of_rows,
            idx_mapping_np=slots[rows],
            expanded_local_pos=torch.zeros_like(of_rows),
            input_ids=torch.zeros_like(of_rows),
            pos=torch.from_numpy(position[rows]),
            seq_lens_upper_bound_np=position[rows] + 1,
        )
        processed = logits[rows].float()
        for processor in processors:
            processed = processor.apply(processed, context)
        logits = logits.float()
        logits[rows] = processed
        return logits
