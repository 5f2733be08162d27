"""Costs of a model on a device that nobody has timed: an estimate by what moves and what is multiplied.

A forward takes as long as its weights take to be read, or its rows to be multiplied, whichever is
longer; then what ranks exchange; then what starting its kernels takes. The shares of a device's rates
that are reached, and the latencies, are assumptions. They are no measurement of anything.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_smart.errors import ConfigError, first_fault
from vllm_smart.profiling import CostSamples, CostTable, token_counts

# Assumed: of the device's rates, and of a forward beyond them.
_MEMORY_SHARE, _COMPUTE_SHARE, _LINK_SHARE = 0.8, 0.6, 0.7
_STEP_MS = 1.0  # scheduling and sampling
_LAYER_MS = 0.005  # kernels of a layer
_EXCHANGE_MS = 0.012  # latency of one all-reduce
_BYTES = 2  # of a bfloat16
_MEMORY_USED = 0.9  # as vLLM's gpu_memory_utilization
_DRAFT_VOCABULARY = 32_000  # of an EAGLE-3 head
_LONG = 4096  # context that is priced


class _Device(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tflops: float
    memory_tb_s: float
    memory_gb: float
    link_gb_s: float


class _Model(BaseModel):
    """What of a Hugging Face config.json matters here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = Field(ge=1)

    @property
    def kv_width(self) -> int:
        """Numbers of a key or a value in a layer."""
        return (self.num_key_value_heads or self.num_attention_heads) * self._head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of a layer."""
        heads = self.num_attention_heads * self._head_dim
        return self.hidden_size * (2 * heads + 2 * self.kv_width + 3 * self.intermediate_size)

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Estimate:
    """Of a model and its EAGLE-3 head, which is taken for a layer of the model's."""

    table: CostTable
    num_kv_tokens: int  # that fit beside the weights


def estimate(gpu: str, model: Path, num_ranks: int, most_tokens: int) -> Estimate:
    """Costs by roofline.

    Args:
        gpu: a device of devices.yaml.
        model: its config.json, or the folder of it.
        num_ranks: of tensor parallelism.
        most_tokens: of a step.

    Raises:
        ConfigError: the device is not known, or the model is not understood or does not fit.
    """
    if gpu not in _devices():
        raise ConfigError(
            f"--gpu {gpu!r}: is not known. Known: {', '.join(_devices())}; of others measure a table "
            "with `vllm-smart profile` and pass --table."
        )
    on, of = _devices()[gpu], _read(model)
    weights = of.num_hidden_layers * of.layer_weights + 2 * of.vocab_size * of.hidden_size
    left = on.memory_gb * 1e9 * _MEMORY_USED * num_ranks - weights * _BYTES
    per_token = 2 * of.num_hidden_layers * of.kv_width * _BYTES
    if left < per_token:
        raise ConfigError(
            f"--tp {num_ranks}: the weights take {weights * _BYTES / 1e9:.0f} GB, which do not fit "
            f"{num_ranks} x {gpu}. Raise --tp."
        )
    ranks = _Ranks(on, num_ranks)
    head = of.vocab_size * of.hidden_size
    draft_head = min(of.vocab_size, _DRAFT_VOCABULARY) * of.hidden_size
    # An EAGLE-3 head reads its token's embedding beside the hidden state, and three of the target's.
    drafter = of.layer_weights + 4 * of.hidden_size**2
    layers = of.num_hidden_layers

    def verify(rows: int) -> float:
        work = layers * of.layer_weights + head
        return _STEP_MS + ranks.forward_ms(rows, work, layers, of.hidden_size)

    sizes = token_counts(most_tokens)
    small = [size for size in sizes if size <= 512]
    samples = CostSamples(
        verify=tuple((size, verify(size)) for size in sizes),
        most_tokens=most_tokens,
        draft=tuple(
            (size, ranks.forward_ms(size, drafter + draft_head, 1, of.hidden_size)) for size in small
        ),
        read=tuple((size, ranks.forward_ms(size, drafter, 1, of.hidden_size)) for size in sizes),
        context=(
            (1, 1, 0, verify(1)),
            (1, 1, _LONG, verify(1) + ranks.read_ms(_LONG * per_token)),
        ),
    )
    return Estimate(CostTable(samples), int(left / per_token))


@dataclass(frozen=True)
class _Ranks:
    device: _Device
    num: int

    def read_ms(self, num_bytes: float) -> float:
        """Of memory, shared out over ranks."""
        return num_bytes / self.num / (self.device.memory_tb_s * 1e12 * _MEMORY_SHARE) * 1e3

    def forward_ms(self, rows: int, weights: int, layers: int, hidden_size: int) -> float:
        compute_ms = 2e3 * weights * rows / self.num / (self.device.tflops * 1e12 * _COMPUTE_SHARE)
        ms = max(self.read_ms(weights * _BYTES), compute_ms) + _LAYER_MS * layers
        if self.num > 1:
            # A ring sends and receives nearly twice the rows, half of the rate each way.
            sent = 2 * (self.num - 1) / self.num * rows * hidden_size * _BYTES
            link_ms = 2e3 * sent / (self.device.link_gb_s * 1e9 * _LINK_SHARE)
            ms += 2 * layers * (_EXCHANGE_MS + link_ms)
        return ms


@cache
def _devices() -> dict[str, _Device]:
    content = yaml.safe_load(Path(__file__).with_name("devices.yaml").read_text(encoding="utf-8"))
    return {name: _Device.model_validate(values) for name, values in content.items()}


def _read(model: Path) -> _Model:
    path = model.expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise ConfigError(f"--model {path}: cannot be read ({reason}). Give a config.json.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--model {path}: is not a model's config.json. Give one.")
    content = content.get("text_config", content)
    for key in ("num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank"):
        if content.get(key):
            raise ConfigError(
                f"--model {path}: has {key}, which the estimate does not know. Measure a table with "
                "`vllm-smart profile` and pass --table."
            )
    try:
        return _Model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            f"--model {path}: {first_fault(error)}. Give a decoder's config.json."
        ) from error
