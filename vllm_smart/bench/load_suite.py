"""Reading a suite, and saying in the user's terms what is wrong with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vllm_smart.bench.suite import Suite
from vllm_smart.errors import ConfigError


def load_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        ConfigError: naming the file, the dotted key, the value and what is allowed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: must be a mapping of settings, got {content!r}.")
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        messages = [_message(detail["loc"], detail) for detail in error.errors(include_url=False)]
        raise ConfigError(f"{path}: {' '.join(messages)}") from error


def _message(loc: tuple[int | str, ...], detail: Mapping[str, Any]) -> str:
    """One validation error in the user's terms."""
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    if not loc:  # a check of settings against one another, which names them itself
        return f"{text}."
    key = ".".join(map(str, loc))
    if detail["type"] == "missing":
        return f"{key} is required and missing."
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a setting."
    return f"{key}={detail['input']!r}: {text}."
