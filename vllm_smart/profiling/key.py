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
