"""What becomes of a configuration before any engine starts."""

from pathlib import Path
from typing import Any

from tests.fuzz.configurations import engine_arguments

ACCEPTED, REFUSED, INVALID, FAULT = "accepted", "refused", "invalid", "fault"
_LONGEST_SENTENCE = 500


def check(configuration: dict[str, Any], folder: Path) -> tuple[str, str]:
    """(outcome, message): how vLLM's front end takes a configuration with us, and then without us.

    Outcomes: `ACCEPTED`; `REFUSED` by us, in a sentence; `INVALID`, as vLLM refuses the same engine
    without speculation, too; `FAULT`, any other error.
    """
    from vllm_smart.errors import SmartError

    try:
        create(configuration, folder, plain=False)
    except SmartError as error:
        message = str(error)
        is_sentence = "\n" not in message and len(message) < _LONGEST_SENTENCE
        return (REFUSED if is_sentence else FAULT), message
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        try:
            create(configuration, folder, plain=True)
        except Exception:
            return INVALID, message
        return FAULT, message
    return ACCEPTED, ""


def create(configuration: dict[str, Any], folder: Path, plain: bool) -> Any:
    """The `VllmConfig` that vLLM makes of a configuration."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = engine_arguments(configuration, folder, plain)
    return EngineArgs(**arguments, disable_log_stats=True).create_engine_config()
