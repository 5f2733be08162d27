"""N-grams of vLLM's requests: their tokens where Model Runner V2 keeps them, and other texts."""

import atexit

import numpy as np
import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.arrays import HostCopy
from vllm_smart.config import NgramConfig, SmartConfig
from vllm_smart.errors import ConfigError, SmartError
from vllm_smart.growth.host_history import HostHistory
from vllm_smart.growth.ngrams import Ngrams
from vllm_smart.growth.shared_responses import EVERYBODY, SharedResponses
from vllm_smart.proposer.datastore import Datastore
from vllm_smart.proposer.shared_ring import SharedRing
from vllm_smart.proposer.token_file import vocabulary_hash
from vllm_smart.seams.host import runs_on_triton

logger = init_logger("vllm.smart")

# Of a model's configuration: what stands for images, videos and sounds in its prompts.
_PLACEHOLDERS = tuple(
    f"{kind}_token_{name}"
    for kind in ("image", "video", "audio", "vision_start", "vision_end")
    for name in ("id", "index")
)


def make_ngrams(
    vllm_config: VllmConfig, config: SmartConfig, req_states: RequestState
) -> Ngrams | None:
    """The n-grams that `config` asks for; None for none.

    Raises:
        DatastoreError: a file is missing, damaged, or of another tokenizer.
    """
    if config.ngrams is None:
        return None
    history = HostHistory(req_states.all_token_ids.gpu, copies=runs_on_triton())
    model = vllm_config.model_config
    barriers = _placeholders(model)
    datastore = open_datastore(config.ngrams, model, barriers)
    others = [datastore] if datastore is not None else []
    is_first = vllm_config.parallel_config.rank == 0
    shared = _shared(config.ngrams, model, history.tokens, barriers, is_first)
    return Ngrams(config.ngrams, history, barriers, others, shared)


def open_datastore(
    config: NgramConfig, model: ModelConfig, barriers: list[int] | None = None
) -> Datastore | None:
    """The datastore that `config` names; None for none.

    Raises:
        ConfigError: the engine has no tokenizer to compare its own with.
        DatastoreError: the file is missing, damaged, or of another tokenizer.
    """
    if config.datastore is None:
        return None
    path = config.datastore.expanduser()
    vocabulary = _vocabulary(model, f"ngram.datastore={str(path)!r}")
    datastore = Datastore.open(path, vocabulary, model.get_vocab_size(), barriers or [])
    logger.info("vllm_smart: n-grams are looked up in %s, too: %d tokens.", path, len(datastore.text))
    return datastore


def _shared(
    config: NgramConfig,
    model: ModelConfig,
    history: np.ndarray,
    barriers: list[int],
    is_first: bool,
) -> SharedResponses | None:
    if config.shared.scope == "off":
        return None
    ring = SharedRing(config.shared.max_mb, barriers)
    path = config.shared.path
    if path is not None:
        path = path.expanduser()
        vocabulary = _vocabulary(model, f"ngram.shared.path={str(path)!r}")
        ring.load(path, EVERYBODY, vocabulary)

        def save() -> None:
            try:
                ring.save(path, EVERYBODY, vocabulary)
            except SmartError as error:
                logger.warning("vllm_smart: %s", error)

        if is_first:
            atexit.register(save)
    return SharedResponses(ring, config.shared.scope, history)


def _vocabulary(model: ModelConfig, setting: str) -> str:
    if model.skip_tokenizer_init:
        raise ConfigError(
            f"{setting} has tokens, and --skip-tokenizer-init leaves nothing to compare them with. "
            "Remove the flag, or set it to null."
        )
    return vocabulary_hash(cached_tokenizer_from_config(model).get_vocab())


def _placeholders(model: ModelConfig) -> list[int]:
    """Tokens of a prompt that stand for something else than text."""
    found = (getattr(model.hf_config, name, None) for name in _PLACEHOLDERS)
    return sorted({token for token in found if isinstance(token, int)})


def is_sampled(temperature: torch.Tensor, slots: np.ndarray) -> np.ndarray:
    """[num_reqs] bool: which requests draw at a temperature, those in `slots`.

    Args:
        temperature: [max_num_reqs] float32 by request-state slot.
    """
    (of_all,) = HostCopy(temperature).wait()
    drawn: np.ndarray = of_all[slots] > 0
    return drawn
