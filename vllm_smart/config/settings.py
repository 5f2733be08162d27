"""What may be set: frozen models with bounds, and how settings depend on one another."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vllm_smart.errors import ConfigError

MAX_NODE_BUDGET = 1024
MAX_CHILDREN = 16
DEFAULT_BUDGET = 16  # of a tree without a drafter or with the target's own, where nobody says otherwise
METHODS_OF_BLOCKS = ("dflash", "dspark")  # whose drafters draft all levels in one forward
METHODS_OF_MODELS = ("eagle", "eagle3", "draft_model", "mtp", *METHODS_OF_BLOCKS)

_PAPER_KNOWS_NO_NGRAMS = (
    "policy.name='paper' knows no n-grams: its rule is about one drafter's tree. "
    "Use policy smart, or set a drafter and remove the ngram block."
)
_Method = Literal["auto", "eagle", "eagle3", "draft_model", "mtp", "dflash", "dspark", "ngram"]
_OptionalPath = Annotated[Path | None, Field(strict=False)]


@dataclass(frozen=True)
class GrowthLimits:
    """How far a request's candidate tree may grow."""

    node_budget: int  # most draft nodes kept, root excluded; 0 = never draft
    depth: int  # most levels below the root
    width: int  # most nodes expanded per level
    children: int  # candidates taken from each expanded node


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_OF_PROCESS = ("cores", "threads", "memory_gib", "max_wait_ms")


class DrafterConfig(_Settings):
    """Who guesses: a cheap model, loaded by one of vLLM's own speculative methods, or n-grams alone."""

    method: _Method = Field(
        default="auto",
        description="vLLM's name of the method; auto: the drafter that is served, or brought by the "
        "target (mtp), or n-grams.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Checkpoint folder, hub id, or demo:NAME; n-grams have none, mtp takes the "
        "target's own unless it is a Gemma 4, which has an assistant.",
    )
    coupled_sampling: bool = Field(
        default=True,
        description="Rank a sampled request's candidates with the noise that the target will draw.",
    )
    knows_grammars: bool = Field(
        default=True,
        description="Draft only what a request's grammar allows, and what it forces without a drafter.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed through to vLLM's speculative config, e.g. draft_tensor_parallel_size.",
    )
    placement: Literal["inline", "process", "auto"] = Field(
        default="inline",
        description="In the target's steps, or in a process that drafts while the target verifies; "
        "auto: where it is faster by measured costs.",
    )
    cores: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1, description="Cores of that process; null: any that is free."
    )
    threads: int | None = Field(
        default=None, ge=1, description="Its threads; null: one for each of its cores."
    )
    memory_gib: float = Field(default=1.0, gt=0.0, description="Most of its KV cache.")
    max_wait_ms: float | None = Field(
        default=None,
        ge=0.0,
        description="Most that a step waits for what is not drafted yet; null: as long as it pays.",
    )

    @property
    def is_model(self) -> bool:
        """Whether a model guesses, or n-grams alone."""
        return self.method in METHODS_OF_MODELS

    @property
    def num_threads(self) -> int:
        """Of the drafter, in a process of its own."""
        return self.threads or len(self.cores or (0,))

    @property
    def drafts_blocks(self) -> bool:
        """Whether one forward of the drafter drafts all levels."""
        return self.method in METHODS_OF_BLOCKS


class SharedNgramsConfig(_Settings):
    """Finished responses as text to look up: what they say may be told from what is guessed by them."""

    scope: Literal["off", "tenant", "engine"] = Field(
        default="off",
        description="Who may find a response: nobody, requests of the same cache_salt, or all.",
    )
    max_mb: float = Field(default=64.0, gt=0.0, description="Megabytes of memory; the oldest go.")
    path: _OptionalPath = Field(
        default=None, description="File that keeps them across restarts, for scope engine alone."
    )

    @field_validator("scope", mode="before")
    @classmethod
    def _off_is_a_name(cls, scope: Any) -> Any:
        return "off" if scope is False else scope  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _keeps_no_tenants(self) -> "SharedNgramsConfig":
        if self.path is not None and self.scope != "engine":
            raise ValueError(
                f"ngram.shared.path={str(self.path)!r} is for scope engine, and the scope is "
                f"{self.scope!r}: responses of tenants are not written to disk. Set it to null."
            )
        return self


class NgramConfig(_Settings):
    """Candidates that repeat what came after the latest tokens where they stood before."""

    max_nodes: int = Field(default=32, ge=1, le=256, description="Most of them in a tree.")
    max_depth: int = Field(default=16, ge=1, le=64, description="Most levels of them below the root.")
    max_match: int = Field(default=32, ge=1, le=128, description="Tokens up to which matches count.")
    min_match: int = Field(default=1, ge=1, le=128, description="Shorter matches do not count.")
    datastore: _OptionalPath = Field(
        default=None,
        description="Text to look up beside requests' own: a file of `vllm-smart datastore build`.",
    )
    shared: SharedNgramsConfig = SharedNgramsConfig()


class TreeConfig(_Settings):
    """The largest tree that a request may grow."""

    node_budget: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NODE_BUDGET,
        description="Most draft nodes kept, root excluded; null takes num_speculative_tokens.",
    )
    depth: int = Field(default=6, ge=1, le=64, description="Most levels below the root.")
    width: int = Field(default=8, ge=1, le=64, description="Most nodes expanded per level.")
    children: int = Field(
        default=4, ge=1, le=MAX_CHILDREN, description="Candidates taken from each expanded node."
    )
    shape: Literal["auto", "tree", "chain"] = Field(
        default="auto",
        description="Whether a node may have several children; auto: where the model allows it.",
    )


class TpotObjective(_Settings):
    """A target for the time per output token; requests behind it get more of a step."""

    tpot_ms: float = Field(gt=0.0, description="Milliseconds per token after the first.")


class SmartPolicyConfig(_Settings):
    """Keep the prefix of all candidates, best first, that emits most tokens per millisecond."""

    name: Literal["smart"] = "smart"
    objective: Literal["throughput", "latency"] | TpotObjective = Field(
        default="throughput",
        description="Whose tokens count more: nobody's, those of requests that accept less, or "
        "those of requests that are behind a target of milliseconds per token.",
    )
    horizon: Literal["per_step", "long_run"] = Field(
        default="per_step",
        description="What is maximised: tokens / time of each step, or of all steps together.",
    )
    share: Literal["best", "equal"] = Field(
        default="best",
        description="The step's best nodes whosever they are, or as many for each request.",
    )
    depth_rule: bool = Field(
        default=True, description="Draft a level only if it pays; false drafts tree.depth levels."
    )
    min_gain: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description="Relative improvement that a further draft level must promise.",
    )
    may_turn_off: bool = Field(
        default=True, description="Run no drafter at all while plain decoding is faster."
    )
    probe_every: int = Field(
        default=64, ge=2, description="Steps without drafting until a few requests draft, to see."
    )
    beside_prompts: Literal["weigh", "draft"] = Field(
        default="weigh",
        description="Whether to draft while requests wait for their first token. weigh: if what "
        "drafts gain outweighs what those lose; a millisecond of each counts alike. Nor in a step that "
        "computes prompts, unless most do, or nobody waits and the prompts are short. What the drafter "
        "puts off reading of a prompt it reads later, at most the last 64 tokens or so. draft: as if "
        "nobody waited.",
    )


class PaperPolicyConfig(_Settings):
    """SMART's rule as published (arXiv 2604.09731), for comparison."""

    name: Literal["paper"] = "paper"
    alpha: float = Field(default=0.8, gt=0.0, le=1.0, description="Damping of the benefit.")
    device_budget: int | None = Field(
        default=None,
        ge=1,
        description="Draft nodes per step, split equally over the batch; null: only node_budget.",
    )


class SssdPolicyConfig(_Settings):
    """SSSD's rule (arXiv 2411.05894): what the device computes for free, shared equally."""

    name: Literal["sssd"] = "sssd"
    device_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens computed while the weights are read; null: by measured step times.",
    )


class FirstDropPolicyConfig(_Settings):
    """Stop at the first node that lowers the rate, as best-first research code does."""

    name: Literal["first_drop"] = "first_drop"


class FixedTreePolicyConfig(_Settings):
    """EAGLE-2's tree: always the best `num_nodes` candidates, whatever they cost."""

    name: Literal["fixed_tree"] = "fixed_tree"
    num_nodes: int = Field(default=60, ge=1, le=MAX_NODE_BUDGET, description="Draft nodes per request.")
    depth: int = Field(default=7, ge=1, le=64, description="Levels drafted.")
    width: int = Field(default=10, ge=1, le=64, description="Nodes expanded per level.")
    children: int = Field(default=10, ge=1, le=MAX_CHILDREN, description="Candidates of each.")


class ChainPolicyConfig(_Settings):
    """A chain of fixed length: what vLLM does by itself."""

    name: Literal["chain"] = "chain"
    num_tokens: int = Field(default=5, ge=1, le=64, description="Draft tokens per request.")


class OffPolicyConfig(_Settings):
    """Load the drafter but never draft: plain decoding."""

    name: Literal["off"] = "off"


PolicyConfig = (
    SmartPolicyConfig
    | PaperPolicyConfig
    | SssdPolicyConfig
    | FirstDropPolicyConfig
    | FixedTreePolicyConfig
    | ChainPolicyConfig
    | OffPolicyConfig
)
POLICIES: dict[str, type[_Settings]] = {
    policy.model_fields["name"].default: policy for policy in get_args(PolicyConfig)
}


class AcceptanceConfig(_Settings):
    """How draft probabilities become acceptance probabilities."""

    calibrate: bool = Field(default=True, description="Learn online; false takes them as they are.")
    prior_weight: float = Field(
        default=20.0,
        gt=0.0,
        description="Observations that the prior is worth, per depth and rank.",
    )
    window: int = Field(default=2000, ge=10, description="Observations remembered, per depth and rank.")
    per_request: bool = Field(
        default=True, description="Learn for each request how far it is from the others."
    )
    state: _OptionalPath = Field(
        default=None, description="File that keeps what was learnt across restarts; null: nothing."
    )
    shared_dir: _OptionalPath = Field(
        default=None, description="Folder where replicas keep what they learn; new ones start from all."
    )

    @property
    def is_kept(self) -> bool:
        """Whether what was learnt outlives the engine."""
        return self.state is not None or self.shared_dir is not None

    @model_validator(mode="after")
    def _is_kept_in_one_place(self) -> "AcceptanceConfig":
        if self.state is not None and self.shared_dir is not None:
            raise ValueError(
                f"acceptance.state={str(self.state)!r} and acceptance.shared_dir="
                f"{str(self.shared_dir)!r} cannot both be kept. Set one of them to null."
            )
        return self


class CostTableConfig(_Settings):
    """Where measured step costs come from."""

    path: _OptionalPath = Field(default=None, description="Use this table, whatever it was made for.")
    cache_dir: _OptionalPath = Field(
        default=None, description="Folder of measured tables; null: $XDG_CACHE_HOME/vllm_smart."
    )
    shared_dir: _OptionalPath = Field(
        default=None, description="Folder of tables that other machines measure and read, too."
    )
    ray: str | None = Field(
        default=None,
        min_length=1,
        description="Address of a Ray cluster whose engines share tables; auto: the one around it.",
    )
    correct: bool = Field(
        default=True, description="Correct costs by the times of real steps; false trusts the table."
    )
    measure: Literal["auto", "start", "always", "never"] = Field(
        default="auto",
        description="If no table fits: auto guesses from a few timings at start and measures while the "
        "engine is idle, start measures before it is ready. always: as start, at every start.",
    )
    repeats: int = Field(
        default=9, ge=1, le=1000, description="Timings per point; the lower quartile counts."
    )
    budget_s: float = Field(
        default=20.0, gt=0.0, description="Seconds of steps to spend on timing, about."
    )


class TraceConfig(_Settings):
    """Recording every decision and its outcome, for `vllm-smart replay`."""

    path: _OptionalPath = Field(default=None, description="File to write; null: nothing is traced.")
    max_mb: float = Field(default=256.0, gt=0.0, description="Most megabytes written.")


class PageConfig(_Settings):
    """What is shown at /smart, if the server has this page (`VLLM_PLUGINS=vllm_smart`)."""

    texts: bool = Field(
        default=False,
        description="Show which tokens were drafted; they are text of whoever asked last.",
    )


class SmartConfig(_Settings):
    """All settings of the plugin."""

    drafter: DrafterConfig = DrafterConfig()
    ngram: NgramConfig | None = Field(
        default=None, description="N-grams beside a drafter; null: none, but with method ngram."
    )
    tree: TreeConfig = TreeConfig()
    policy: PolicyConfig = Field(default=SmartPolicyConfig(), discriminator="name")
    acceptance: AcceptanceConfig = AcceptanceConfig()
    cost_table: CostTableConfig = CostTableConfig()
    trace: TraceConfig = TraceConfig()
    page: PageConfig = PageConfig()
    hot_reload: bool = Field(default=True, description="Take over edits of the YAML while serving.")
    metrics: bool = Field(default=True, description="Count what trees do, on vLLM's /metrics.")

    @model_validator(mode="after")
    def _drafts_by_a_model_or_by_ngrams(self) -> "SmartConfig":
        method, model = self.drafter.method, self.drafter.model
        if not self.drafter.is_model and model is not None:
            raise ValueError(
                f"drafter.model={model!r} is not read with method {method!r}. Remove it, or set "
                f"drafter.method to one of {', '.join(METHODS_OF_MODELS)}, and keep n-grams by an "
                "ngram block."
            )
        if self.drafter.is_model and method != "mtp" and model is None:
            raise ValueError(
                f"drafter.model is required and missing: method {method!r} needs a checkpoint."
            )
        if self.drafter.placement == "process" and self.not_beside is not None:
            raise ValueError(
                f"drafter.placement='process' does not work with {self.not_beside} yet. "
                "Set drafter.placement to inline."
            )
        if self.drafter.placement == "inline":
            self._check_inline()
        ngram = self.ngrams
        if ngram is not None and ngram.min_match > ngram.max_match:
            raise ValueError(
                f"ngram.min_match={ngram.min_match} exceeds ngram.max_match={ngram.max_match}."
            )
        if ngram is not None and self.policy.name == "paper":
            raise ValueError(_PAPER_KNOWS_NO_NGRAMS)
        return self

    @property
    def not_beside(self) -> str | None:
        """What of these settings a drafter in a process of its own cannot be combined with."""
        for value, what in (
            (self.drafter.method != "draft_model", f"drafter.method={self.drafter.method!r}"),
            (self.ngram is not None, "an ngram block"),
            (self.trace.path is not None, "trace.path"),
            (self.tree.shape == "chain", "tree.shape='chain'"),
        ):
            if value:
                return what
        return None

    def _check_inline(self) -> None:
        """Nothing is set that a drafter without a process of its own does not read."""
        fields = DrafterConfig.model_fields
        for name in _OF_PROCESS:
            value = getattr(self.drafter, name)
            if value != fields[name].default:
                raise ValueError(
                    f"drafter.{name}={value} is not read with drafter.placement 'inline'. "
                    "Remove it, or set drafter.placement to process or auto."
                )

    @property
    def ngrams(self) -> NgramConfig | None:
        """The n-grams in use; None where there are none."""
        if self.ngram is None and self.drafter.method == "ngram":
            return NgramConfig()
        return self.ngram

    @property
    def drafters(self) -> str:
        """Who names candidates: the drafter's method, "ngram", or both with a plus."""
        method = self.drafter.method
        return method if method == "ngram" or self.ngrams is None else f"{method}+ngram"

    @field_validator("policy", mode="before")
    @classmethod
    def _off_is_a_name(cls, policy: Any) -> Any:
        # YAML reads a bare `off` as false.
        if isinstance(policy, Mapping) and policy.get("name") is False:
            return {**policy, "name": "off"}
        return policy

    def resolve_drafter(self, method: str, model: str | None) -> "SmartConfig":
        """These settings with drafter.method auto decided.

        Args:
            method: what it stands for.
            model: the drafter's checkpoint, None without one or with the target's own.

        Raises:
            ConfigError: the policy knows no n-grams.
        """
        drafter = self.drafter.model_copy(update={"method": method, "model": model})
        resolved = self.model_copy(update={"drafter": drafter})
        if resolved.ngrams is not None and self.policy.name == "paper":
            raise ConfigError(_PAPER_KNOWS_NO_NGRAMS)
        return resolved

    def with_drafter_of(self, started: "SmartConfig") -> "SmartConfig":
        """These settings in an engine that was started with others, whose drafter is decided."""
        found = self
        if self.drafter.method == "auto":
            found = self.resolve_drafter(started.drafter.method, started.drafter.model)
        placement = started.drafter.placement
        if self.drafter.placement == "auto" and placement != "auto":
            found = found.with_placement(placement)
        return found

    def resolve_node_budget(self, num_speculative_tokens: int | None) -> "SmartConfig":
        """These settings with `tree.node_budget` filled in from the command line.

        Args:
            num_speculative_tokens: the command line's value, None if absent.

        Raises:
            ConfigError: neither is given, or they contradict each other or the policy.
        """
        budget = self.tree.node_budget
        if num_speculative_tokens is not None:
            if budget is not None and budget > num_speculative_tokens:
                raise ConfigError(
                    f"tree.node_budget={budget} exceeds num_speculative_tokens="
                    f"{num_speculative_tokens} of the command line, for which vLLM reserves memory. "
                    "Raise num_speculative_tokens, or lower tree.node_budget."
                )
            budget = budget or num_speculative_tokens
        if budget is None and self.drafter.model is None:
            budget = DEFAULT_BUDGET
        if budget is None:
            raise ConfigError(
                "The size of the largest tree is not set: pass num_speculative_tokens in "
                "--speculative-config, or set tree.node_budget in the vllm_smart YAML."
            )
        if not 1 <= budget <= MAX_NODE_BUDGET:
            raise ConfigError(f"num_speculative_tokens={budget}: must be from 1 to {MAX_NODE_BUDGET}.")
        self._check_policy_fits(budget)
        self._check_policy_may_branch()
        return self.model_copy(update={"tree": self.tree.model_copy(update={"node_budget": budget})})

    def for_heads(self, num_heads: int) -> "SmartConfig":
        """These settings for a drafter of several heads: vLLM takes multiples of so many draft tokens.

        Raises:
            ConfigError: the policy then exceeds `tree.node_budget`.
        """
        budget = self.tree.node_budget
        if num_heads < 2 or budget is None or budget <= num_heads:
            return self
        budget -= budget % num_heads
        self._check_policy_fits(budget)
        return self.model_copy(update={"tree": self.tree.model_copy(update={"node_budget": budget})})

    def resolve_shape(self, why_only_chains: str | None) -> "SmartConfig":
        """These settings with `tree.shape` decided.

        Args:
            why_only_chains: what trees cannot work with; None where they can.

        Raises:
            ConfigError: trees are asked for where drafts must be chains.
        """
        shape = self.tree.shape
        if why_only_chains is not None and shape == "tree":
            raise ConfigError(
                f"tree.shape='tree': draft trees do not work with {why_only_chains}. Set it to auto."
            )
        if shape == "auto":
            shape = "tree" if why_only_chains is None else "chain"
        resolved = self._with_shape(shape)
        resolved._check_policy_may_branch(why_only_chains)
        return resolved

    def with_placement(self, placement: Literal["inline", "process"]) -> "SmartConfig":
        """These settings with `drafter.placement` decided; inline, without those of a process."""
        fields = DrafterConfig.model_fields
        of_process = {name: fields[name].default for name in _OF_PROCESS}
        update = {"placement": placement, **(of_process if placement == "inline" else {})}
        return self.model_copy(update={"drafter": self.drafter.model_copy(update=update)})

    def with_shape_of(self, started: "SmartConfig") -> "SmartConfig":
        """These settings in an engine that was started with others, whose shape is decided.

        Raises:
            ConfigError: trees are asked for where the engine runs chains.
        """
        if started.tree.shape == "chain" and self.tree.shape == "tree":
            raise ConfigError(
                "tree.shape='tree' cannot take effect without a restart: the engine runs chains. "
                "Restart, or undo the edit."
            )
        resolved = self._with_shape(started.tree.shape) if self.tree.shape == "auto" else self
        resolved._check_policy_may_branch()
        return resolved

    def _with_shape(self, shape: str) -> "SmartConfig":
        return self.model_copy(update={"tree": self.tree.model_copy(update={"shape": shape})})

    def _check_policy_may_branch(self, why_only_chains: str | None = None) -> None:
        if isinstance(self.policy, FixedTreePolicyConfig) and self.tree.shape == "chain":
            why = f": trees do not work with {why_only_chains}" if why_only_chains is not None else ""
            raise ConfigError(
                f"policy.name='fixed_tree' branches, and drafts are chains here{why}. "
                "Set policy.name to smart or chain."
            )

    def _check_policy_fits(self, node_budget: int) -> None:
        policy = self.policy
        if isinstance(policy, FixedTreePolicyConfig):
            name, needed = "policy.num_nodes", policy.num_nodes
        elif isinstance(policy, ChainPolicyConfig):
            name, needed = "policy.num_tokens", policy.num_tokens
        else:
            return
        if needed > node_budget:
            raise ConfigError(
                f"{name}={needed} exceeds tree.node_budget={node_budget} (which is "
                "num_speculative_tokens unless the YAML sets it). Raise the budget, or lower "
                f"{name}."
            )

    @property
    def growth(self) -> GrowthLimits:
        """The growth limits in effect under the policy and the shape.

        Raises:
            ConfigError: `tree.node_budget` is not known yet; see `resolve_node_budget`.
        """
        limits = self._limits_of_policy
        if self.tree.shape == "chain" and limits.node_budget > 0:
            return replace(limits, width=1, children=1)
        return limits

    @property
    def _limits_of_policy(self) -> GrowthLimits:
        policy, tree = self.policy, self.tree
        if isinstance(policy, OffPolicyConfig):
            return GrowthLimits(node_budget=0, depth=0, width=0, children=0)
        if isinstance(policy, ChainPolicyConfig):
            return GrowthLimits(policy.num_tokens, depth=policy.num_tokens, width=1, children=1)
        if isinstance(policy, FixedTreePolicyConfig):
            return GrowthLimits(policy.num_nodes, policy.depth, policy.width, policy.children)
        if tree.node_budget is None:
            raise ConfigError("tree.node_budget is not set: call resolve_node_budget() first.")
        if isinstance(policy, SssdPolicyConfig):
            return GrowthLimits(tree.node_budget, depth=6, width=tree.width, children=5)
        return GrowthLimits(tree.node_budget, tree.depth, tree.width, tree.children)
