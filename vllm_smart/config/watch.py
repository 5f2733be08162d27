"""Noticing that the YAML was edited, and telling what of it may change while the engine runs."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vllm_smart.config.load import load_config
from vllm_smart.config.settings import SmartConfig
from vllm_smart.errors import ConfigError

_LOOK_EVERY_S = 1.0
_RELOADABLE = ("tree", "policy", "acceptance")

# What tells one version of a file from another: inode (editors replace files), time, size.
_Version = tuple[int, int, int]


class ConfigWatch:
    """Looks at a YAML file now and then. A file that is missing for a while is no edit."""

    def __init__(self, path: Path, loaded: SmartConfig | None = None) -> None:
        """Args:
        path: the YAML.
        loaded: what was read from it before, node budget not resolved; equal settings are not
            news. Without it the first `poll` returns what the file says by then: it may have
            changed while the engine started.
        """
        self.path = path.expanduser()
        self._loaded = loaded
        self._version: _Version | None = None
        self._next_look_s = float("-inf")

    def poll(self, now_s: float) -> SmartConfig | ConfigError | None:
        """Look at the file, at most once a second.

        Args:
            now_s: a clock that never goes back.

        Returns:
            New settings, node budget not resolved; or why an edit cannot be read, once per edit,
            whereupon the settings in effect should stay; or None where nothing is new.
        """
        if now_s < self._next_look_s:
            return None
        self._next_look_s = now_s + _LOOK_EVERY_S
        version = self._look()
        if version is None or version == self._version:
            return None
        # Noted before reading: a write in between is then seen at the next look.
        self._version = version
        try:
            config = load_config(self.path)
        except ConfigError as error:
            return error
        if config == self._loaded:
            return None
        self._loaded = config
        return config

    def _look(self) -> _Version | None:
        """The file's present version, None while there is none."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def changed_sections(old: SmartConfig, new: SmartConfig) -> list[str]:
    """The top-level settings that differ, e.g. ["tree", "policy"]."""
    return [name for name in SmartConfig.model_fields if getattr(old, name) != getattr(new, name)]


def reloadable(started: SmartConfig, new: SmartConfig) -> SmartConfig:
    """Settings to go on with, if the engine can take them without a restart.

    Args:
        started: what the engine was started with, node budget resolved: its memory was laid out
            for that, whatever was reloaded since.
        new: as loaded.

    Returns:
        `new`, with what it leaves open taken from `started`: the drafter, node budget and shape.

    Raises:
        ConfigError: naming a setting that needs a restart.
    """
    new = new.with_drafter_of(started)
    for section in changed_sections(started, new):
        if section not in _RELOADABLE:
            setting, before, after = _first_difference(
                section, getattr(started, section), getattr(new, section)
            )
            raise ConfigError(
                f"{setting}={after!r} cannot take effect without a restart (it was {before!r}). "
                "Restart, or undo the edit."
            )
    largest, wanted = started.tree.node_budget, new.tree.node_budget
    if largest is not None and wanted is not None and wanted > largest:
        raise ConfigError(
            f"tree.node_budget={wanted} exceeds the {largest} that the engine was started with, for "
            "which it reserves memory. Restart, or lower tree.node_budget."
        )
    resolved = new.with_shape_of(started).resolve_node_budget(largest)
    needed, reserved = resolved.growth.node_budget, started.growth.node_budget
    if needed > reserved:
        raise ConfigError(
            f"policy.name={resolved.policy.name!r} may grow trees of {needed} nodes; the engine was "
            f"started with policy {started.policy.name!r} and reserves memory for {reserved}. "
            "Restart, or lower tree.node_budget or the policy's number of nodes."
        )
    return resolved


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The dotted name of the first setting that differs, its old and its new value."""
    if isinstance(old, BaseModel) and type(old) is type(new):
        for field in type(old).model_fields:
            if getattr(old, field) != getattr(new, field):
                return _first_difference(f"{name}.{field}", getattr(old, field), getattr(new, field))
    return name, old, new
