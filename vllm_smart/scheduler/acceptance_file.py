"""Keeps what an engine has learnt about acceptance, where the settings ask for it."""

import atexit
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_smart.config import AcceptanceConfig
from vllm_smart.profiling.key import digest_of
from vllm_smart.scheduler.acceptance import AcceptanceModel
from vllm_smart.scheduler.acceptance_state import read_acceptance, save_acceptance

logger = logging.getLogger("vllm.smart")

_SAVE_EVERY_S = 60.0
_MOST_FILES = 16  # of replicas; older ones are removed


class AcceptanceFile:
    """Saved once a minute and at the end.

    In a folder that replicas share, each saves a file of its own, and a new one starts from all. What a
    replica had from others counts again where its own file is merged: an approximation, which is
    bounded because no more than a window's worth is remembered.
    """

    def __init__(
        self,
        settings: AcceptanceConfig,
        target: str,
        drafter: str,
        model_of: Callable[[], AcceptanceModel],
        saves: bool,
    ) -> None:
        """Args:
        settings: which name a file, or a folder.
        target: its name.
        drafter: its method and name.
        model_of: the model in use, which settings may replace.
        saves: whether to write the file; of several ranks, which all start from it, one does.
        """
        self._target, self._drafter = target, drafter
        self._model_of, self._saves = model_of, saves
        self._next_save_s = time.monotonic() + _SAVE_EVERY_S
        self._folder = settings.shared_dir.expanduser() if settings.shared_dir is not None else None
        if self._folder is not None:
            self._pair = digest_of([target, drafter])
            self._path = self._folder / f"acceptance-{self._pair}-{secrets.token_hex(6)}.json"
        else:
            assert settings.state is not None
            self._path = settings.state.expanduser()

    def restore(self) -> bool:
        """Go on from what was learnt before, here or by others; whether there was anything.

        Raises:
            ConfigError: it is another pair's.
        """
        states = [state for path in self._sources() if (state := self._read(path)) is not None]
        is_known = bool(states)
        if is_known:
            try:
                self._model_of().relearn_all(states)
            except ValueError as error:
                logger.warning("vllm_smart: what was learnt is of no use (%s): starting anew.", error)
                is_known = False
        where = self._folder or self._path
        if is_known:
            logger.info("vllm_smart: acceptance as learnt before, from %s (%d).", where, len(states))
        else:
            logger.info("vllm_smart: acceptance will be kept in %s.", where)
        if self._saves:
            atexit.register(self.save)
        return is_known

    def _sources(self) -> list[Path]:
        if self._folder is None:
            return [self._path]
        files = self._folder.glob(f"acceptance-{self._pair}-*.json")
        newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
        if self._saves:
            for path in newest[_MOST_FILES:]:
                path.unlink(missing_ok=True)
        return newest[:_MOST_FILES]

    def _read(self, path: Path) -> Mapping[str, Any] | None:
        try:
            return read_acceptance(self._target, self._drafter, path)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            logger.warning("vllm_smart: %s is of no use (%s): starting without it.", path, error)
            return None

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
