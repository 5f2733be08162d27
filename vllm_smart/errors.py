"""Errors that a user can act on: each message names the setting, its value and the way out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SmartError(Exception):
    """Base of all errors that vllm_smart raises on purpose."""


class ConfigError(SmartError):
    """A setting is missing, unknown, of the wrong type or out of bounds."""


class UnsupportedError(SmartError):
    """A feature, model or vLLM version that draft trees cannot serve correctly."""


class CostTableError(SmartError):
    """A cost table is missing, unreadable, or was measured for something else."""


class TraceError(SmartError):
    """A trace is missing, not a trace, damaged, or lacks what is asked of it."""


class ServerError(SmartError):
    """A server cannot be reached, or refuses what it is asked."""


class TruncatedError(SmartError):
    """A stream ended early, and cannot be gone on with exactly."""


class DatastoreError(SmartError):
    """A datastore, or a text to build one from, is missing, damaged or of another tokenizer."""


def first_fault(error: "ValidationError") -> str:
    """What pydantic found first: where, if it says so, and what is wrong there."""
    first = error.errors(include_url=False)[0]
    where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
