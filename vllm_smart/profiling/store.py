"""Cost tables on disk: one JSON file per key, written atomically."""

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_smart.errors import CostTableError
from vllm_smart.files import write_atomically
from vllm_smart.profiling.cost_table import CostSamples, CostTable
from vllm_smart.profiling.key import TableKey

SCHEMA: Final = 3


class _StoredTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[3]
    created: str  # ISO 8601, UTC
    key: TableKey
    samples: CostSamples


def default_folder() -> Path:
    """The folder of measured tables in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "vllm_smart"


def table_path(folder: Path, key: TableKey) -> Path:
    """Where `key`'s table lies in `folder`, whether or not it exists."""
    return folder.expanduser() / key.file_name


def save(table: CostTable, key: TableKey, folder: Path) -> Path:
    """Write `table` into `folder`, replacing what was measured for the same key before.

    Raises:
        OSError: the folder cannot be written.
    """
    stored = _StoredTable(
        schema_version=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        key=key,
        samples=table.samples,
    )
    path = table_path(folder, key)
    write_atomically(path, stored.model_dump_json(indent=1))
    return path


def find(folder: Path, key: TableKey) -> Path | None:
    """The file of `key`'s table in `folder`, if there is one."""
    path = table_path(folder, key)
    return path if path.is_file() else None


def load(path: Path, key: TableKey | None = None) -> CostTable:
    """Read a table.

    Args:
        path: the file.
        key: what the table must have been measured for; None accepts any.

    Raises:
        CostTableError: it is missing, not a table, of another schema, or for another key.
    """
    stored = _read(path)
    if key is not None and stored.key != key:
        wanted, found = key.model_dump(), stored.key.model_dump()
        differs = [
            f"{name} {found[name]!r}, not {wanted[name]!r}"
            for name in wanted
            if found[name] != wanted[name]
        ]
        raise CostTableError(
            f"cost table {path} was measured for {'; '.join(differs)}. "
            "Delete it, or let vllm_smart measure (cost_table.measure: auto)."
        )
    return CostTable(stored.samples)


def load_key(path: Path) -> TableKey:
    """What the table at `path` was measured for.

    Raises:
        CostTableError: as for `load`.
    """
    return _read(path).key


def _read(path: Path) -> _StoredTable:
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise CostTableError(f"cost table {path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise CostTableError(f"cost table {path} is not JSON ({error}). Delete it.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise CostTableError(
            f"cost table {path} has schema_version {version!r}; this vllm_smart reads {SCHEMA}. "
            "Delete it: a new one is measured at the next start."
        )
    try:
        return _StoredTable.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CostTableError(
            f"cost table {path} is damaged: {where}: {first['msg']}. Delete it."
        ) from error
