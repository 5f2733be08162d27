"""What was learnt about acceptance, on disk: the next engine need not start from nothing."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_smart.errors import ConfigError, first_fault
from vllm_smart.files import write_atomically
from vllm_smart.scheduler.acceptance import AcceptanceModel

_Rows = tuple[tuple[float, ...], ...]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[4]
    target: str
    drafter: str
    learnt: dict[str, _Rows]


def save_acceptance(model: AcceptanceModel, target: str, drafter: str, path: Path) -> None:
    """Keep what `model` has learnt of a drafter and its target, but nothing of single requests.

    Raises:
        OSError: the file cannot be written.
    """
    learnt = {name: tuple(map(tuple, rows.tolist())) for name, rows in model.learnt().items()}
    stored = _Stored(schema_version=4, target=target, drafter=drafter, learnt=learnt)
    write_atomically(path.expanduser(), stored.model_dump_json())


def read_acceptance(target: str, drafter: str, path: Path) -> dict[str, _Rows]:
    """What was kept at `path`, as `AcceptanceModel.learnt` had it.

    Raises:
        FileNotFoundError: nothing was kept yet.
        ValueError: the file is damaged, or of another version.
        ConfigError: it is of another target or drafter.
    """
    stored = _stored(path)
    for what, kept, wanted in (
        ("target", stored.target, target),
        ("drafter", stored.drafter, drafter),
    ):
        if kept != wanted:
            raise ConfigError(
                f"acceptance.state={str(path)!r} was learnt with the {what} {kept!r}, this engine has "
                f"{wanted!r}. Give every pair a file of its own, or delete this one."
            )
    return stored.learnt


def kept_acceptance(path: Path) -> dict[str, _Rows]:
    """The same, whatever models it was learnt of.

    Raises: as `read_acceptance`, but no ConfigError.
    """
    return _stored(path).learnt


def _stored(path: Path) -> _Stored:
    try:
        return _Stored.model_validate_json(path.expanduser().read_bytes())
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error
