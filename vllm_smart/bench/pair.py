"""The models that a suite runs."""

from pathlib import Path

from vllm_smart.bench.suite import InflatedPair, Suite
from vllm_smart.demo_model import demo_model_paths


def pair_folders(suite: Suite, cache: Path) -> dict[str, Path]:
    """Folders of the target and its drafters by vLLM's name of the method.

    An inflated pair is built at its first use and kept in `cache`.
    """
    folders = demo_model_paths()
    if isinstance(suite.pair, InflatedPair):
        from vllm_smart.demo_model.kept import PairShape, kept_pair

        folders = kept_pair(cache, PairShape(**suite.pair.inflate.model_dump()))
    return {"draft_model" if kind == "draft" else kind: path for kind, path in folders.items()}
