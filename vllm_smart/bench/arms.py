"""What is compared: plain decoding, vLLM's own speculation, and our policies."""

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from vllm_smart.config import SmartConfig, load_config
from vllm_smart.errors import ConfigError

# What can change between two measurements of one engine: whole sections, and one setting of costs.
_SWITCHED = {"policy", "tree", "acceptance", "cost_table"}
_SWITCHED_COSTS = {"correct"}
# The drafter is the suite's, so that all arms draft with the same; how it is used may differ.
_OF_SUITE, _OF_PROCESS = "drafter", {"placement", "cores", "threads", "memory_gib", "max_wait_ms"}
_OF_DRAFTER = {"coupled_sampling", "knows_grammars", *_OF_PROCESS}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Arm(_Settings):
    batches: list[PositiveInt] | None = Field(
        default=None, description="Batch sizes it is measured at; null: all of the suite's."
    )

    def runs_at(self, batch_size: int) -> bool:
        """Whether it is measured at `batch_size`."""
        return self.batches is None or batch_size in self.batches


class PlainArm(_Arm):
    """Stock vLLM without speculation and without our plugin."""

    kind: Literal["plain"]

    @property
    def label(self) -> str:
        """Its name in reports."""
        return "plain"


class StockChainArm(_Arm):
    """vLLM's own speculation with a fixed K, without our plugin."""

    kind: Literal["stock_chain"]
    k: int = Field(ge=1, le=64, description="Draft tokens per request and step.")
    method: Literal["ngram"] | None = Field(default=None, description="null: the suite's drafter.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further settings of vLLM's speculative config, in an engine of its own.",
    )
    name: str | None = Field(default=None, min_length=1, description="null: made from method and K.")

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.name or f"{self.method or 'stock-chain'}-{self.k}"


class StockScheduleArm(_Arm):
    """vLLM's `num_speculative_tokens_per_batch_size`: K by the number of running requests."""

    kind: Literal["stock_schedule"]
    schedule: Literal["best"] | Annotated[dict[PositiveInt, int], Field(min_length=1)] = Field(
        default="best",
        description="K from a batch size on, by batch size; best: the fastest of this run's own "
        "stock chains (0 where plain decoding is faster), known after the first round.",
    )

    @property
    def label(self) -> str:
        """Its name in reports."""
        return "stock-schedule"


class SmartArm(BaseModel):
    """Our plugin under one policy; any other section of our YAML may be overridden in part."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Literal["smart"]
    method: Literal["ngram"] | None = Field(
        default=None, description="ngram: without a drafter; null: the suite's drafter."
    )
    policy: dict[str, Any] = Field(default_factory=lambda: {"name": "smart"})
    name: str | None = Field(default=None, min_length=1, description="null: made from the policy.")
    ablation: str | None = Field(
        default=None, min_length=1, description="What `smart` has and this arm has not, in words."
    )
    batches: list[PositiveInt] | None = None
    threads: PositiveInt | None = Field(
        default=None, description="Of its own engine's parallel regions; null: as all others."
    )

    @field_validator("name", mode="before")
    @classmethod
    def _off_is_a_name(cls, name: Any) -> Any:
        return "off" if name is False else name  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _check_sections(self) -> "SmartArm":
        for section, settings in self.sections.items():
            if section not in SmartConfig.model_fields:
                raise ValueError(f"{section} is not a section that an arm can set.")
            if not isinstance(settings, dict):
                raise ValueError(f"{section}={settings!r}: must be a mapping of settings.")
            if section == _OF_SUITE and not settings.keys() <= _OF_DRAFTER:
                allowed = ", ".join(sorted(_OF_DRAFTER))
                raise ValueError(
                    f"of {section}, an arm can set {allowed} alone; the suite sets the rest."
                )
        return self

    @property
    def sections(self) -> dict[str, Any]:
        """What it overrides, by section, the policy apart."""
        return self.__pydantic_extra__ or {}

    @property
    def needs_own_engine(self) -> bool:
        """Whether it overrides something that cannot change in a living engine."""
        costs = set(self.sections.get("cost_table", {}))
        return not (self.method is None and self.threads is None) or not (
            self.sections.keys() <= _SWITCHED and costs <= _SWITCHED_COSTS
        )

    @property
    def policy_name(self) -> str:
        """Which policy decides."""
        name = self.policy.get("name", "smart")
        return "off" if name is False else str(name)

    @property
    def label(self) -> str:
        """Its name in reports."""
        if self.name is None and self.policy_name == "chain" and "num_tokens" in self.policy:
            return f"chain-{self.policy['num_tokens']}"
        if self.name is None and self.method is not None:
            return f"{self.policy_name}-{self.method}"
        return self.name or self.policy_name

    def runs_at(self, batch_size: int) -> bool:
        """Whether it is measured at `batch_size`."""
        return self.batches is None or batch_size in self.batches


StockArm = StockChainArm | StockScheduleArm
Arm = Annotated[PlainArm | StockChainArm | StockScheduleArm | SmartArm, Field(discriminator="kind")]


def is_stock_chain(arm: Arm) -> TypeGuard[StockChainArm]:
    """Whether it is vLLM's own chain of the suite's drafter, and nothing else but K is set."""
    return isinstance(arm, StockChainArm) and arm.method is None and not arm.options


def is_fixed_chain(arm: Arm) -> bool:
    """Whether it is a chain of the suite's drafter that a user could have had by tuning K by hand."""
    return is_stock_chain(arm) or (isinstance(arm, SmartArm) and arm.policy_name == "chain")


def is_ours(arm: Arm) -> bool:
    """Whether it is the product as users get it, which all others are compared with."""
    return isinstance(arm, SmartArm) and arm.policy_name == "smart" and arm.ablation is None


class SmartSettings(BaseModel):
    """What all smart arms share: the largest tree of the engine, and sections of our YAML."""

    model_config = ConfigDict(frozen=True, extra="allow")

    node_budget: int = Field(default=32, ge=1, description="num_speculative_tokens of our engine.")

    def content(self, arm: SmartArm, drafter: dict[str, Any]) -> dict[str, Any]:
        """Our settings as a user would write them: the shared sections, overridden by `arm`."""
        if arm.method is not None:
            drafter = {"method": arm.method}
        merged: dict[str, Any] = {"drafter": drafter, **(self.__pydantic_extra__ or {})}
        for section, settings in {**arm.sections, "policy": arm.policy}.items():
            merged[section] = {**merged.get(section, {}), **settings}
        return merged

    def switched(self, arm: SmartArm) -> dict[str, Any]:
        """All sections that change in a living engine, in full, so that none leaks to the next arm.

        Raises:
            ConfigError: they are no settings of ours, or need a larger `node_budget`.
        """
        placeholder = {"method": "draft_model", "model": "any"}  # not switched
        for section in self.__pydantic_extra__ or {}:
            if section in (_OF_SUITE, "policy"):
                raise ConfigError(f"smart.{section} is set by drafters and arms. Remove it.")
        config = load_config(self.content(arm, placeholder)).resolve_node_budget(self.node_budget)
        return config.model_dump(mode="json", include=_SWITCHED)
