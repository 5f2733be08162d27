"""Keeps what an engine has learnt about acceptance, where the settings ask for it."""

import atexit
import logging
import time
from collections.abc import Callable
from pathlib import Path

from vllm_smart.scheduler.acceptance import AcceptanceModel
from vllm_smart.scheduler.acceptance_state import restore_acceptance, save_acceptance

logger = logging.getLogger("vllm.smart")

_SAVE_EVERY_S = 60.0


class AcceptanceFile:
    """Saved once a minute and at the end."""

    def __init__(
        self,
        path: Path,
        target: str,
        drafter: str,
        model_of: Callable[[], AcceptanceModel],
        saves: bool,
    ) -> None:
        """Args:
        path: the file.
        target: its name.
        drafter: its method and name.
        model_of: the model in use, which settings may replace.
        saves: whether to write the file; of several ranks, which all start from it, one does.
        """
        self._path, self._target, self._drafter = path, target, drafter
        self._model_of, self._saves = model_of, saves
        self._next_save_s = time.monotonic() + _SAVE_EVERY_S

    def restore(self) -> None:
        """Go on from the last run's state, if there is one.

        Raises:
            ConfigError: it is another pair's.
        """
        try:
            restore_acceptance(self._model_of(), self._target, self._drafter, self._path)
        except FileNotFoundError:
            logger.info("vllm_smart: acceptance will be kept in %s.", self._path)
        except (ValueError, OSError) as error:
            logger.warning("vllm_smart: %s is of no use (%s): starting anew.", self._path, error)
        else:
            logger.info("vllm_smart: acceptance as learnt before, from %s.", self._path)
        if self._saves:
            atexit.register(self.save)

    def poll(self, now_s: float) -> None:
        """Save if it is time; `now_s` is `time.monotonic()`."""
        if self._saves and now_s >= self._next_save_s:
            self._next_save_s = now_s + _SAVE_EVERY_S
            self.save()

    def save(self) -> None:
        """Write the file; a disk that is full must not stop the engine."""
        try:
            save_acceptance(self._model_of(), self._target, self._drafter, self._path)
        except OSError as error:
            logger.warning("vllm_smart: acceptance could not be kept in %s: %s.", self._path, error)
