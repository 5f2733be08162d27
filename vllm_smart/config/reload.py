"""Taking over edits of the YAML while the engine runs."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from vllm_smart.config.settings import SmartConfig
from vllm_smart.config.watch import ConfigWatch, changed_sections, reloadable
from vllm_smart.errors import SmartError

logger = logging.getLogger("vllm.smart")


class ConfigReload:
    """Looks at the YAML about once a second; an edit that cannot be taken over changes nothing."""

    def __init__(self, path: Path, started: SmartConfig, apply: Callable[[SmartConfig], None]) -> None:
        """Args:
        path: the YAML that the engine was started with.
        started: what was read from it then, node budget resolved.
        apply: takes over new settings, or raises a SmartError and keeps the old ones.
        """
        self._watch = ConfigWatch(path)
        self._started = started
        self._current = started
        self._apply = apply

    def poll(self) -> None:
        """Take over what was edited, if anything was."""
        found = self._watch.poll(time.monotonic())
        if found is None:
            return
        try:
            if isinstance(found, SmartError):
                raise found
            config = reloadable(self._started, found)
            changed = changed_sections(self._current, config)
            if not changed:
                return
            self._apply(config)
        except SmartError as error:
            logger.warning("vllm_smart: the edit of %s changes nothing: %s", self._watch.path, error)
            return
        self._current = config
        logger.info("vllm_smart: %s of %s in effect.", ", ".join(changed), self._watch.path)
