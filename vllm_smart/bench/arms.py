"""What is compared: plain decoding, vLLM's own chains, and our policies."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vllm_smart.config import SmartConfig, load_config

# Sections of our settings that can change between two measurements of one engine.
_SWITCHED = {"policy", "tree", "acceptance"}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlainArm(_Settings):
    """Stock vLLM without speculation and without our plugin."""

    kind: Literal["plain"]

    @property
    def label(self) -> str:
        """Its name in reports."""
        return "plain"


class StockChainArm(_Settings):
    """vLLM's own speculation, without our plugin."""

    kind: Literal["stock_chain"]
    k: int = Field(ge=1, le=64, description="Draft tokens per request and step.")

    @property
    def label(self) -> str:
        """Its name in reports."""
        return f"stock-chain-{self.k}"


class SmartArm(_Settings):
    """Our plugin under one policy; other sections replace those of `Suite.smart`."""

    kind: Literal["smart"]
    policy: dict[str, Any]
    acceptance: dict[str, Any] = Field(default_factory=dict)
    tree: dict[str, Any] = Field(default_factory=dict)
    name: str | None = Field(default=None, min_length=1, description="null: made from the policy.")

    @field_validator("name", mode="before")
    @classmethod
    def _off_is_a_name(cls, name: Any) -> Any:
        return "off" if name is False else name  # YAML reads a bare `off` as false

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
        return self.name or self.policy_name


Arm = Annotated[PlainArm | StockChainArm | SmartArm, Field(discriminator="kind")]


def is_fixed_chain(arm: Arm) -> bool:
    """Whether a user could have had it by tuning K by hand."""
    return isinstance(arm, StockChainArm) or (isinstance(arm, SmartArm) and arm.policy_name == "chain")


class SmartSettings(_Settings):
    """What all smart arms share: the largest tree of the engine, and default sections."""

    node_budget: int = Field(default=32, ge=1, description="num_speculative_tokens of our engine.")
    tree: dict[str, Any] = Field(default_factory=dict)
    acceptance: dict[str, Any] = Field(default_factory=dict)
    cost_table: dict[str, Any] = Field(default_factory=dict)

    def sections(self, arm: SmartArm) -> dict[str, Any]:
        """All sections that may differ between arms, in full, so that none leaks into another.

        Raises:
            ConfigError: they are no settings of ours, or need a larger `node_budget`.
        """
        content = {
            "drafter": {"method": "eagle3", "model": "any"},  # not switched
            "policy": arm.policy,
            "tree": arm.tree or self.tree,
            "acceptance": arm.acceptance or self.acceptance,
            "cost_table": self.cost_table,
        }
        config: SmartConfig = load_config(content).resolve_node_budget(self.node_budget)
        return config.model_dump(mode="json", include=_SWITCHED)
