"""What a cost table was measured for."""

import hashlib
import json
import re

from pydantic import BaseModel, ConfigDict


class TableKey(BaseModel):
    """Everything that changes step times; a table is reused only where all of it agrees."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device: str
    target: str
    drafter: str
    dtype: str
    quantization: str | None
    tensor_parallel_size: int
    attention_backend: str
    vllm_version: str
    vllm_smart_version: str
    compiled: bool
    cudagraph_mode: str = "NONE"  # as vLLM calls it

    def digest(self) -> str:
        """12 hexadecimal digits that stand for all fields."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def file_name(self) -> str:
        """The name of this key's table: readable first, then the digest."""
        target = re.sub(r"[^A-Za-z0-9.-]+", "_", self.target.rstrip("/").rsplit("/", 1)[-1])
        return f"{target[:60]}-{self.digest()}.json"
