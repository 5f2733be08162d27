"""Settings that may depend on the batch size."""

from typing import Annotated

from pydantic import Field, PositiveInt

_BySize = Annotated[dict[PositiveInt, PositiveInt], Field(min_length=1)]
# One number, or numbers by the batch size from which they hold; below the least key its value holds.
PerBatch = PositiveInt | _BySize


def at_batch(value: PerBatch, batch_size: int) -> int:
    """What `value` is at `batch_size`."""
    if isinstance(value, int):
        return value
    begun = [size for size in value if size <= batch_size]
    return value[max(begun) if begun else min(value)]


def largest(value: PerBatch) -> int:
    """The largest number that it can be."""
    return value if isinstance(value, int) else max(value.values())
