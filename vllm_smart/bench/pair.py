"""The models that a suite runs."""

from pathlib import Path

from vllm_smart.bench.suite import InflatedPair, OwnPair, Suite
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.errors import ConfigError


def tokenizer_of(suite: Suite) -> Path:
    """The target's file tokenizer.json.

    Raises:
        ConfigError: it has none.
    """
    target: Path = demo_model_paths()["target"]
    if isinstance(suite.pair, OwnPair):
        target = suite.pair.target.expanduser()
    path = target / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"pair.target={target}: has no tokenizer.json. Give a checkpoint's folder.")
    return path


def pair_folders(suite: Suite, cache: Path) -> dict[str, Path]:
    """Folders of the target and its drafters by vLLM's name of the method, of those that have one.

    An inflated pair is built at its first use and kept in `cache`.
    """
    if isinstance(suite.pair, OwnPair):
        own = ("target", suite.pair.target), *suite.pair.folders.items()
        return {kind: path.expanduser().resolve() for kind, path in own}
    folders = demo_model_paths()
    if isinstance(suite.pair, InflatedPair):
        from vllm_smart.demo_model.kept import PairShape, kept_pair

        folders = kept_pair(cache, PairShape(**suite.pair.inflate.model_dump()))
    return {"draft_model" if kind == "draft" else kind: path for kind, path in folders.items()}
