"""One engine's cost table in a fleet: found in the nearest store, or measured by one engine for all."""

import logging
import time
from collections.abc import Callable, Sequence

from vllm_smart.errors import CostTableError
from vllm_smart.profiling.cost_table import CostTable
from vllm_smart.profiling.folder_store import TableStore, this_engine
from vllm_smart.profiling.key import TableKey
from vllm_smart.profiling.store import from_text, to_text

logger = logging.getLogger("vllm.smart")

_SIGN_EVERY_S = 5.0  # a store need not be asked at each of many short steps


class SharedTables:
    """The table of one key, in several stores, the nearest first.

    The last store knows most engines. So its lease decides who measures.
    """

    def __init__(
        self,
        stores: Sequence[TableStore],
        key: TableKey,
        check: Callable[[CostTable], None] = lambda table: None,
        owner: str | None = None,
    ) -> None:
        """Args:
        stores: the nearest first; at least one.
        key: of the table.
        check: raises a CostTableError for a table that does not do for this engine.
        owner: a name for this engine; its process by default.
        """
        self._stores, self._key, self._check = stores, key, check
        self._owner = owner or this_engine()
        self._holds_since_s: float | None = None  # when the lease was last heard of; None: not ours
        self._said: set[str] = set()  # an engine that waits looks again and again

    @property
    def name(self) -> str:
        """Of the table, in all stores."""
        return self._key.file_name

    @property
    def places(self) -> str:
        """Where tables are looked for, for messages."""
        return ", ".join(map(str, self._stores))

    def find(self, says_so: bool = True) -> CostTable | None:
        """The table of the nearest store that has one that will do; nearer ones get it, too.

        Args:
            says_so: that it is reused.
        """
        for at, store in enumerate(self._stores):
            try:
                text = store.get(self.name)
                if text is None:
                    continue
                table = from_text(text, f"{store}/{self.name}", self._key)
                self._check(table)
            except CostTableError as error:
                self._warn_once(f"{error} Measuring again.")
            except OSError as error:
                self._out_of_reach(store, error)
            else:
                if says_so:
                    logger.info("vllm_smart: cost table %s/%s reused.", store, self.name)
                self._put(self._stores[:at], text)
                return table
        return None

    def turn(self) -> CostTable | bool:
        """The table if it is there by now, else whether it is this engine's turn to measure it.

        To be asked before every timing: that keeps the turn.
        """
        if self._holds_since_s is not None and self.claim():
            return True
        found = self.find()
        # Its holder may have put it there and gone in between.
        if found is None and self.claim() and (found := self.find()) is not None:
            self._release()
        return found if found is not None else self._holds_since_s is not None

    def claim(self) -> bool:
        """Whether this engine measures, and no other; asks a store every few seconds."""
        now_s = time.monotonic()
        if self._holds_since_s is not None and now_s - self._holds_since_s < _SIGN_EVERY_S:
            return True
        holds = True  # where no store answers, nobody else is known
        for store in reversed(self._stores):
            try:
                holds = store.claim(self.name, self._owner)
                break
            except OSError as error:
                self._out_of_reach(store, error)
        self._holds_since_s = now_s if holds else None
        return holds

    def keep(self, table: CostTable) -> None:
        """Give all stores what was measured."""
        self._put(self._stores, to_text(table, self._key))

    def close(self) -> None:
        """Ask no more, and leave it to others to measure."""
        self._release()
        for store in self._stores:
            store.close()

    def _release(self) -> None:
        if self._holds_since_s is None:
            return
        self._holds_since_s = None
        for store in self._stores:
            try:
                store.release(self.name, self._owner)
            except OSError as error:
                self._out_of_reach(store, error)

    def _put(self, stores: Sequence[TableStore], text: str) -> None:
        for store in stores:
            try:
                store.put(self.name, text)
                logger.info("vllm_smart: cost table %s/%s written.", store, self.name)
            except OSError as error:
                logger.warning("vllm_smart: the cost table could not be kept in %s: %s.", store, error)

    def _out_of_reach(self, store: TableStore, error: OSError) -> None:
        self._warn_once(f"cost tables of {store} are out of reach: {error}.")

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning("vllm_smart: %s", message)
