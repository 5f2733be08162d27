"""What a cost table was measured for."""

import hashlib
import json
import re
from typing import Final

from pydantic import BaseModel, ConfigDict

# To be raised when steps are built, or timed, so differently that older tables mislead.
COST_VERSION: Final = 2


class TableKey(BaseModel):
    """Everything that changes step times; a table is reused only where all of it agrees."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device: str
    target: str  # by content, see `content_name`
    drafter: str  # its method and content
    dtype: str
    quantization: str | None
    tensor_parallel_size: int
    nodes: int  # machines that these ranks are spread over
    attention_backend: str
    vllm_version: str
    cost_version: int
    compiled: bool
    cudagraph_mode: str = "NONE"  # as vLLM calls it

    @classmethod
    def drafter_beside(cls, drafter: str, num_threads: int) -> str:
        """`drafter` as it is named where it has a process of its own, with so many threads."""
        return f"{drafter} beside on {num_threads}"

    @property
    def threads(self) -> tuple[int, int | None]:
        """Of the target on a CPU, and of a drafter in a process of its own; 0 and None without."""
        target = re.search(r"\((\d+) threads\)$", self.device)
        beside = re.search(r" beside on (\d+)$", self.drafter)
        return int(target[1]) if target else 0, int(beside[1]) if beside else None

    def is_like(self, other: "TableKey") -> bool:
        """Whether two are of the same engine but for its threads, and where its drafter runs."""
        return self._without_threads() == other._without_threads()

    def _without_threads(self) -> dict[str, object]:
        device = re.sub(r" \(\d+ threads\)$", "", self.device)
        return self.model_dump() | {
            "device": device,
            "drafter": re.sub(r" beside on \d+$", "", self.drafter),
        }

    def digest(self) -> str:
        """12 hexadecimal digits that stand for all fields."""
        return digest_of(self.model_dump())

    @property
    def file_name(self) -> str:
        """The name of this key's table: readable first, then the digest."""
        target = re.sub(r"[^A-Za-z0-9.-]+", "_", self.target.rstrip("/").rsplit("/", 1)[-1])
        return f"{target[:60]}-{self.digest()}.json"


def digest_of(content: object) -> str:
    """12 hexadecimal digits that stand for `content`, which is like JSON."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
