"""A pool of both sources, written down."""

import numpy as np

from vllm_smart.trace import Drafted, Said

_COLUMNS = {
    "token": [-1, 10, 20, 30, 40, 50, 60, 70],
    "parent": [-1, 0, 0, 1, 2, 2, 2, 4],
    "depth": [0, 1, 1, 2, 2, 2, 2, 3],
    "rank": [0, 1, 0, 0, 0, 1, 2, 0],
    "source": [-1, 2, 2, 1, 1, 0, 1, 1],
}
_SAID = {
    "model_rank": [0, 1, 0, 0, 0, 0, 0, 0],
    "match_len": [0, 5, 2, 6, 3, 0, 3, 4],
    "count": [0, 2, 6, 2, 4, 0, 2, 4],
}


def mixed(request: str = "a", longest: int = 5) -> Drafted:
    """The drafter has named 10, 20 and, after 20, 50; the others have followed the text before.

    0 ── 1 (token 10, match 5, twice) ─── 3 (token 30, match 6, twice)
    └─── 2 (token 20, match 2, 6 times) ─ 4 (token 40, match 3, 4 times) ─ 7 (token 70, match 4)
                                       ├─ 5 (token 50)
                                       └─ 6 (token 60, match 3, twice)

    Args:
        longest: the match before token 10.
    """
    columns = {name: np.array(values) for name, values in _COLUMNS.items()}
    said = {name: np.array(values) for name, values in _SAID.items()}
    said["match_len"][1] = longest
    return Drafted(
        request=request,
        **columns,
        draft_prob=np.array([1, 0.3, 0.5, 0.5, 0.5, 0.25, 0.25, 0.5], np.float32),
        path_prob=np.array([1, 0.3, 0.5, 0.15, 0.25, 0.125, 0.125, 0.125], np.float32),
        max_depth=9,
        max_rows=9,
        num_draft_nodes=4,
        said=Said(
            model_prob=np.array([0, 0.3, 0.5, 0, 0, 0.6, 0, 0], np.float32),
            share=np.array([0, 0.4, 0.6, 1, 0.7, 0, 0.3, 1], np.float32),
            is_sampled=False,
            **said,
        ),
    )
