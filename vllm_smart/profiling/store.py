"""A cost table as text: JSON with what it was measured for."""

import json
import os
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_smart.errors import CostTableError, first_fault
from vllm_smart.profiling.cost_table import CostSamples, CostTable
from vllm_smart.profiling.key import TableKey

SCHEMA: Final = 4


class _StoredTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[4]
    created: str  # ISO 8601, UTC
    key: TableKey
    samples: CostSamples


def default_folder() -> Path:
    """The folder of measured tables in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "vllm_smart"


def to_text(table: CostTable, key: TableKey) -> str:
    """`table` with what it was measured for, and now as the time of that."""
    stored = _StoredTable(
        schema_version=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        key=key,
        samples=table.samples,
    )
    return stored.model_dump_json(indent=1)


def from_text(text: str, where: object, key: TableKey | None = None) -> CostTable:
    """The table that `text` has.

    Args:
        text: as `to_text` made it.
        where: it was found, for messages.
        key: what it must have been measured for; None accepts any.

    Raises:
        CostTableError: it is not a table, of another schema, or for another key.
    """
    stored = _parsed(text, where)
    if key is not None and stored.key != key:
        wanted, found = key.model_dump(), stored.key.model_dump()
        differs = [
            f"{name} {found[name]!r}, not {wanted[name]!r}"
            for name in wanted
            if found[name] != wanted[name]
        ]
        raise CostTableError(
            f"cost table {where} was measured for {'; '.join(differs)}. "
            "Delete it, or let vllm_smart measure (cost_table.measure: auto)."
        )
    return CostTable(stored.samples)


def load(path: Path) -> CostTable:
    """The table at `path`, whatever it was measured for.

    Raises:
        CostTableError: it is missing, not a table, or of another schema.
    """
    return CostTable(_parsed(_read(path), path).samples)


def load_key(path: Path) -> TableKey:
    """What the table at `path` was measured for.

    Raises:
        CostTableError: as for `load`.
    """
    return _parsed(_read(path), path).key


def load_like(path: Path) -> list[tuple[TableKey, CostTable]]:
    """The table at `path` first, then those in its folder of the same engine with other threads."""
    key = load_key(path)
    found = [(key, load(path))]
    for other in sorted(path.expanduser().parent.glob("*.json")):
        with suppress(CostTableError):
            if (of := load_key(other)) != key and of.is_like(key):
                found.append((of, load(other)))
    return found


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise CostTableError(f"cost table {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CostTableError(f"cost table {path} is not JSON ({error}). Delete it.") from error


def _parsed(text: str, where: object) -> _StoredTable:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CostTableError(f"cost table {where} is not JSON ({error}). Delete it.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version == 3:
        content = _from_schema_3(content)
    elif version != SCHEMA:
        raise CostTableError(
            f"cost table {where} has schema_version {version!r}; this vllm_smart reads {SCHEMA}. "
            "Delete it: a new one is measured at the next start."
        )
    try:
        return _StoredTable.model_validate(content)
    except ValidationError as error:
        raise CostTableError(
            f"cost table {where} is damaged: {first_fault(error)}. Delete it."
        ) from error


def _from_schema_3(content: dict[str, Any]) -> dict[str, Any]:
    """The same measurements, to be looked at or named by path: its key had models by their paths."""
    key = content.get("key")
    if isinstance(key, dict):
        key = {name: value for name, value in key.items() if name != "vllm_smart_version"}
        key |= {"nodes": 1, "cost_version": 1}
    return {**content, "schema_version": SCHEMA, "key": key}
