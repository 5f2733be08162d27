"""What heads take that have the target's embeddings of images, videos and sounds.

A row of a head takes the token after it. Where an image stands there, it takes what the target's
encoder has made of that place. This goes along with the row's hidden states: a row that is read later
needs it, too, and vLLM forgets it once the target has read the prompt.
"""

import torch

# As vLLM gathers them, one place ahead: [num_embeddings, width] each, and [num_rows] bool, whose rows
# they belong to in order.
MediaInputs = tuple[list[torch.Tensor], torch.Tensor]


def with_media(hidden: torch.Tensor, media: MediaInputs, width: int) -> torch.Tensor:
    """Hidden states, and beside them what stands after each row, where that is no token.

    Args:
        hidden: [num_rows, hidden] of the target's step.
        media: of that step.
        width: of an embedding.

    Returns:
        [num_rows, hidden + width + 1], the last column 1 where there is an embedding.
    """
    embeddings, has_one = media
    beside = hidden.new_zeros(len(hidden), width + 1)
    if embeddings:
        rows = has_one.nonzero().squeeze(1)
        beside[rows, :width] = torch.cat(embeddings).to(hidden.dtype)
        beside[rows, width] = 1.0
    return torch.cat((hidden, beside), dim=1)


def apart(rows: torch.Tensor, width: int) -> tuple[torch.Tensor, MediaInputs | None]:
    """The hidden states of rows that `with_media` may have made, and the media among them, if any.

    Args:
        rows: [num_rows, width + embedding + 1], or [num_rows, width] that come from no image.
        width: of hidden states.
    """
    if rows.shape[1] == width:
        return rows, None
    hidden, embeddings, has_one = rows[:, :width], rows[:, width:-1], rows[:, -1]
    mask = has_one > 0
    return hidden, ([embeddings[mask]], mask) if mask.any() else None
