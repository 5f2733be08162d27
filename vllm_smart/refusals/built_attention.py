"""The last defence: the attention that a model has really built, looked at before its first forward."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NoReturn

from vllm.config import VllmConfig

from vllm_smart.attention.backends import does_for_chains, sees_trees
from vllm_smart.errors import UnsupportedError
from vllm_smart.seams.host import runs_on_triton

if TYPE_CHECKING:
    from vllm.v1.worker.utils import AttentionGroup


def check_attention(
    vllm_config: VllmConfig,
    groups: "Iterable[AttentionGroup]",
    has_trees: bool,
    of_blocks: Collection[str] = (),
) -> None:
    """Refuse layers that drafts do not fit into.

    A backend that wraps ours, as vLLM's for static sinks and shared caches do, inherits our methods but
    gives them something else.

    Args:
        groups: of the target and the drafter.
        has_trees: whether attention is ours; or else drafts are chains.
        of_blocks: layers of a block drafter, which see no trees.

    Raises:
        UnsupportedError: for the first of them.
    """
    for group in groups:
        if not has_trees or set(group.layer_names) <= set(of_blocks):
            if not does_for_chains(group.backend):
                _refuse_backend(group)
        else:
            _check_tree_attention(vllm_config, group)


def _refuse_backend(group: "AttentionGroup") -> NoReturn:
    raise UnsupportedError(
        f"vllm_smart does not support the attention backend {group.backend.get_name()!r} "
        f"({group.backend.__name__}) of {group.layer_names[0]}. "
        "Serve the model without speculation: remove --speculative-config."
    )


def _check_tree_attention(vllm_config: VllmConfig, group: "AttentionGroup") -> None:
    layers = vllm_config.compilation_config.static_forward_context
    max_model_len = vllm_config.model_config.max_model_len
    if not sees_trees(group.backend):
        _refuse_backend(group)
    if not runs_on_triton():  # ours for CPUs knows all of these
        return
    for name in group.layer_names:
        impl, window = layers[name].impl, layers[name].sliding_window
        for what, value in (
            ("a sliding window", window if window and window < max_model_len else None),
            ("ALiBi position biases", getattr(impl, "alibi_slopes", None)),
            ("attention sinks", getattr(impl, "sinks", None)),
        ):
            if value is not None:
                raise UnsupportedError(
                    f"vllm_smart does not support {what}, which {name} has. "
                    "Serve the model without speculation: remove --speculative-config."
                )
