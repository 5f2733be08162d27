"""The models that vLLM's own recipes serve with speculation, and what we serve of each.

From github.com/vllm-project/recipes at 8959cf6 (2026-08-21): the files under `models/` that pass a
speculative configuration, and one that does so in its text. Kinds of attention are those of vLLM 0.32's
classes and of the recipes' texts.
"""

from dataclasses import dataclass

OUR_METHODS = ("eagle", "eagle3", "draft_model", "mtp", "dflash", "dspark")
# Kind of attention -> the shape of our drafts on CPUs; None: refused.
SHAPES = {
    "full": "trees",
    "windows": "trees",
    "windows, read by the drafter, too": "chains",  # it has no cache of its own for branches
    "windows and sinks": "trees",
    "windows, sinks and narrower values": None,  # which vLLM has kernels for on GPUs alone
    "relative, with short convolutions": None,  # likewise
    "MLA": "chains",
    "narrow MLA": None,  # latents of 256 numbers: vLLM's kernel without AMX knows 512 alone
    "gated delta rules": "chains in bfloat16",
    "sparse": None,
    "Mamba2": "chains",
    "recurrent": None,  # of other kinds
}


@dataclass(frozen=True)
class Recipe:
    """A model and how its recipe drafts for it.

    Attributes:
        models: names, all alike.
        methods: of their drafters.
        attention: a key of `SHAPES`.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    attention: str

    @property
    def shape(self) -> str | None:
        """Of our drafts on CPUs; None where the model is refused."""
        return SHAPES[self.attention]

    @property
    def is_covered(self) -> bool:
        """Whether we serve the pair: the attention, and a drafter of the recipe's kind."""
        return self.shape is not None and self.has_our_method

    @property
    def has_our_method(self) -> bool:
        """Whether we have a drafter of one of its methods."""
        return not set(self.methods).isdisjoint(OUR_METHODS)

    @property
    def missing(self) -> str:
        """What the pair needs that is not there, for people."""
        lacks = []
        if self.shape is None:
            lacks.append(
                "recurrent layers" if self.attention == "recurrent" else f"{self.attention} attention"
            )
        if not self.has_our_method:
            lacks.append("a drafter of method " + " or ".join(self.methods))
        return ", ".join(lacks)


RECIPES = (
    Recipe(("Llama-3.1-8B",), ("eagle3",), "full"),
    Recipe(("Mistral-Medium-3.5-128B",), ("eagle",), "full"),
    Recipe(("Qwen3-VL-235B-A22B",), ("eagle3",), "full"),
    Recipe(("gpt-oss-120b",), ("eagle3",), "windows and sinks"),
    Recipe(("GLM-4.5", "GLM-4.6", "GLM-4.7", "GLM-OCR"), ("mtp",), "full"),
    Recipe(("Hy3", "Hy3-preview"), ("mtp",), "full"),
    Recipe(("ERNIE-4.5-21B-A3B",), ("mtp",), "full"),
    Recipe(
        ("gemma-4-E2B", "gemma-4-E4B", "gemma-4-12B", "gemma-4-26B-A4B", "gemma-4-31B"),
        ("mtp",),
        "windows, read by the drafter, too",
    ),
    Recipe(("Step-3.5-Flash", "Step-3.7-Flash"), ("mtp",), "windows"),
    Recipe(("MiMo-V2.5", "MiMo-V2.5-Pro"), ("mtp",), "windows, sinks and narrower values"),
    Recipe(("Inkling", "Inkling-Small"), ("mtp",), "relative, with short convolutions"),
    Recipe(("Muse-Glimmer-30B",), ("dflash",), "windows"),
    Recipe(("Laguna-S-2.1", "Laguna-XS-2.1", "Laguna-XS.2"), ("dflash",), "windows and sinks"),
    Recipe(("Kimi-K2.5", "Kimi-K2.6", "Kimi-K2.7-Code"), ("eagle3",), "MLA"),
    Recipe(("Mistral-Small-4-119B",), ("eagle",), "narrow MLA"),
    Recipe(("MiniMax-M3",), ("eagle3",), "sparse"),
    Recipe(("DeepSeek-V3.2", "GLM-5", "GLM-5.1", "dots3-note"), ("mtp",), "sparse"),
    Recipe(
        ("DeepSeek-V4-Flash", "DeepSeek-V4-Pro", "GLM-5.2", "Macaron-V1-Coding-Venti"),
        ("mtp", "dspark"),
        "sparse",
    ),
    Recipe(
        (
            *("Qwen3-Next-80B-A3B", "Qwen3.5-2B", "Qwen3.5-4B", "Qwen3.5-9B", "Qwen3.5-27B"),
            *("Qwen3.5-35B-A3B", "Qwen3.5-122B-A10B", "Qwen3.5-397B-A17B", "Qwen3.6-27B"),
            *("Qwen3.6-35B-A3B", "Qwen3.8-27B", "Qwen3.8-2.4T-A95B"),
        ),
        ("mtp",),
        "gated delta rules",
    ),
    Recipe(("Intern-S2-Preview",), ("mtp",), "gated delta rules"),
    Recipe(("Ling-3.0-flash",), ("mtp",), "recurrent"),
    Recipe(("Nemotron-3-Super-120B-A12B", "Nemotron-3-Ultra-550B-A55B"), ("mtp",), "Mamba2"),
    Recipe(("Nemotron-3.5-Lightning-30B-A3B",), ("mtp", "dspark", "dflash"), "Mamba2"),
    Recipe(("Kimi-K3",), ("dspark",), "recurrent"),
)
