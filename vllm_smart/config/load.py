"""Reading settings, and saying in the user's terms what is wrong with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vllm_smart.config.settings import POLICIES, SmartConfig
from vllm_smart.errors import ConfigError


def load_config(source: str | Path | Mapping[str, Any]) -> SmartConfig:
    """Read settings from a YAML file or an inline mapping.

    A relative `drafter.model` or `cost_table.path` that exists beside the YAML is resolved
    against its folder; other names (hub ids, demo:NAME) are left alone.

    Raises:
        ConfigError: naming the dotted key, the value and what is allowed.
    """
    if isinstance(source, Mapping):
        return _checked(source)
    path = Path(source).expanduser()
    try:
        return _checked(_beside(path, _read_yaml(path)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error.__cause__


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot be read ({reason}). Give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}") from error
    if content is None:
        raise ConfigError(
            "is empty. It needs at least a drafter.method: auto takes what the target brings, eagle, "
            "eagle3 and draft_model also need a drafter.model."
        )
    if not isinstance(content, dict):
        raise ConfigError(f"must be a mapping of settings, got {content!r}.")
    return content


def _beside(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the relative paths that exist in the YAML's folder made absolute.

    Links stay: a mounted ConfigMap's point to another folder after each edit.
    """
    resolved = dict(content)
    for section, key in (("drafter", "model"), ("cost_table", "path"), ("ngram", "datastore")):
        settings = content.get(section)
        if not isinstance(settings, dict) or not isinstance(settings.get(key), str):
            continue
        candidate = path.parent / settings[key]
        if settings[key] and candidate.exists():
            resolved[section] = {**settings, key: str(candidate.absolute())}
    return resolved


def _checked(content: Mapping[str, Any]) -> SmartConfig:
    try:
        return SmartConfig.model_validate(dict(content))
    except ValidationError as error:
        messages = map(_message, error.errors(include_url=False))
        raise ConfigError(" ".join(messages)) from error


def _message(detail: ErrorDetails) -> str:
    """One validation error in the user's terms."""
    loc = [str(part) for part in detail["loc"]]
    if detail["type"] == "value_error":  # how settings depend on one another
        return detail["msg"].removeprefix("Value error, ")
    section: Any = SmartConfig
    if loc[0] == "policy" and len(loc) > 1:
        section = POLICIES[loc.pop(1)]  # the name, by which the policies are told apart
    elif len(loc) > 1:
        annotation = SmartConfig.model_fields[loc[0]].annotation
        section = next((part for part in get_args(annotation) if part is not type(None)), annotation)
    key = ".".join(loc)
    if detail["type"] == "missing":
        return f"{key} is required and missing."
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a setting. Known here: {', '.join(section.model_fields)}."
    if detail["type"] == "union_tag_not_found":
        return f"{key}.name is required and missing. Allowed: {', '.join(POLICIES)}."
    if detail["type"] == "union_tag_invalid":
        return f"{key}.name={detail['ctx']['tag']!r} is no policy. Allowed: {', '.join(POLICIES)}."
    return f"{key}={detail['input']!r}: {detail['msg'].removeprefix('Input ')}."
