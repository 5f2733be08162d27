"""Texts that grow, indexed as they do: hash heads and chains, like those of LZ77.

A store has rows, one for each text. Tokens have positions that only ever grow; the token of position p
stands at `p & mask`. A text that stays as it is has mask -1. A ring of 2^k tokens has mask 2^k - 1,
and what it has overwritten is gone: all positions before `num_indexed - capacity`.

`links` [num_rows, row_length] int32 has a row's heads and chains: positions + 1, 0 for none.

    heads of 4 tokens | of 2 | of 1 | chain of 4 tokens | of 2 | of 1
      most              /2     /4     capacity            ..     ..

A chain leads from a position to the one before it in its bucket. Only the first `num_heads` of the
heads are in use (half and a quarter as many of the shorter ones). When the text outgrows them, they
are doubled by copying: both halves lead to the chain that they shared. So nothing is ever hashed
again, a short text touches little memory, and emptying a row means to clear MIN_HEADS heads.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

MIN_HEADS = 1024
MOST_HOPS = 256  # links followed in one chain: a bound on what crafted collisions can cost
FEW, SOME = 8, 16  # single tokens say little: taken only if there are few occurrences, up to some

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_EMPTY = np.uint64(0)  # the hash of nothing


@numba.njit(cache=True)
def _mixed(state, token):
    state = (state ^ np.uint64(token)) * _PRIME
    return state ^ (state >> _SHIFT)


@numba.njit(cache=True)
def _bucket(state, num_heads):
    return np.int64(state & np.uint64(num_heads - 1))


@numba.njit(cache=True)
def _is_barrier(token, barriers):
    if token < 0:
        return True
    for barrier in barriers:  # noqa: SIM110
        if token == barrier:
            return True
    return False


@numba.njit(cache=True)
def empty_rows(
    links: _Array, num_indexed: _Array, num_heads: _Array, most_heads: int, rows: _Array
) -> None:
    """Forget the texts of some rows.

    Args:
        links: as above, written.
        num_indexed, num_heads: [num_rows] int64, written.
        most_heads: a power of two, as many heads of 4 tokens as there is room for.
        rows: [n] int64.
    """
    for row in rows:
        links[row, :MIN_HEADS] = 0
        links[row, most_heads : most_heads + MIN_HEADS // 2] = 0
        singles = most_heads + most_heads // 2
        links[row, singles : singles + MIN_HEADS // 4] = 0
        num_indexed[row], num_heads[row] = 0, MIN_HEADS


@numba.njit(cache=True)
def index_tokens(
    links: _Array,
    num_indexed: _Array,
    num_heads: _Array,
    most_heads: int,
    capacity: int,
    mask: int,
    text: _Array,
    owner: _Array,
    rows: _Array,
    end: _Array,
    barriers: _Array,
) -> None:
    """Index what has been added to some texts.

    Args:
        links, num_indexed, num_heads, most_heads, rows: as for `empty_rows`.
        capacity: positions that a chain has room for.
        mask: as above.
        text: [num_rows, >= capacity] int32, read at the positions from num_indexed to `end`, and up to
            three before.
        owner: [num_places] int64 by place, whose token it is: none finds those of another. Empty where
            a row has one owner.
        end: [n] int64, one past the last position.
        barriers: [k] int64 tokens that no context ends with; negative tokens never do.

    Raises:
        ValueError: a text is shorter than what is indexed of it, or longer than the chains.
    """
    pairs, singles = most_heads, most_heads + most_heads // 2
    chains = singles + most_heads // 4
    for i in range(len(rows)):
        row = rows[i]
        if end[i] < num_indexed[row]:
            raise ValueError("fewer tokens than were indexed: the slot was not reset")
        if mask < 0 and end[i] > min(capacity, text.shape[1]):
            raise ValueError("more tokens than the index has room for")
        link, tokens, heads = links[row], text[row], num_heads[row]
        for position in range(num_indexed[row], end[i]):
            if position >= heads and heads < most_heads:
                link[heads : 2 * heads] = link[:heads]
                link[pairs + heads // 2 : pairs + heads] = link[pairs : pairs + heads // 2]
                link[singles + heads // 4 : singles + heads // 2] = link[singles : singles + heads // 4]
                heads *= 2
            place = position & mask
            if _is_barrier(tokens[place], barriers):
                continue
            state = _mixed(_mixed(_EMPTY, owner[place]) if len(owner) else _EMPTY, tokens[place])
            head = singles + _bucket(state, heads // 4)
            link[chains + 2 * capacity + place] = link[head]
            link[head] = position + 1
            if position < 1:
                continue
            state = _mixed(state, tokens[(position - 1) & mask])
            head = pairs + _bucket(state, heads // 2)
            link[chains + capacity + place] = link[head]
            link[head] = position + 1
            if position < 3:
                continue
            state = _mixed(state, tokens[(position - 2) & mask])
            state = _mixed(state, tokens[(position - 3) & mask])
            head = _bucket(state, heads)
            link[chains + place] = link[head]
            link[head] = position + 1
        num_indexed[row], num_heads[row] = end[i], heads


@numba.njit(cache=True)
def find_in_chains(
    links: _Array,
    num_indexed: _Array,
    num_heads: _Array,
    most_heads: int,
    capacity: int,
    mask: int,
    text: _Array,
    owner: _Array,
    rows: _Array,
    until: _Array,
    asker: _Array,
    contexts: _Array,
    context_rows: _Array,
    context_end: _Array,
    max_match: int,
    min_match: int,
    most: int,
    store: int,
    barriers: _Array,
    found: tuple[_Array, ...],
) -> None:
    """Add the occurrences of contexts in texts to `found`.

    The latest places with the context's last 4 tokens come first, then those with its last 2 and no
    more than 3, and then, if there are few, those with its last alone.

    Args:
        links, num_indexed, num_heads, most_heads, capacity, mask, text, owner: of `index_tokens`.
        rows: [n] int64 the text of each request, -1 for none.
        until: [n] int64 tokens of the text from this position on do not count. Places are those
            after which there is a next token: a context is no occurrence of itself. A negative
            token is none, and ends what comes after.
        asker: [n] int64 who may see what is its own; read where there are owners.
        contexts: [num_contexts, max_len] int32.
        context_rows, context_end: [n] int64 row of each context and one past its last token.
        max_match, min_match: at least 1; matches are measured up to, and kept from.
        most: occurrences of a request that are added.
        store: bit that says whose they are.
        barriers: [k] int64 tokens that end a context; negative tokens do, too.
        found: match, store, num_ahead, ahead, num, as the package says; added to.
    """
    matches, stores, num_aheads, aheads, nums = found
    max_depth = aheads.shape[2]
    for i in range(len(rows)):
        row, stop = rows[i], context_end[i]
        if row < 0:
            continue
        link, tokens, context = links[row], text[row], contexts[context_rows[i]]
        longest = 0
        while longest < min(max_match, stop) and not _is_barrier(context[stop - 1 - longest], barriers):
            longest += 1
        oldest = max(num_indexed[row] - capacity, 0)
        state = _mixed(_EMPTY, asker[i]) if len(owner) else _EMPTY
        pair = single = state
        for back in range(min(longest, 4)):
            state = _mixed(state, context[stop - 1 - back])
            if back == 0:
                single = state
            if back == 1:
                pair = state
        taken, kept, below = 0, nums[i], longest + 1
        chain = most_heads + most_heads // 2 + most_heads // 4
        for gram in (4, 2, 1):
            if gram == 4:
                head = _bucket(state, num_heads[row])
            elif gram == 2:
                head = most_heads + _bucket(pair, num_heads[row] // 2)
            else:
                head = most_heads + most_heads // 2 + _bucket(single, num_heads[row] // 4)
            quota = most
            if gram == 1:
                quota = min(most, SOME) if taken < FEW else 0
            if gram <= longest and min_match < below:
                position, hops = link[head] - 1, 0
                while position >= oldest and taken < quota and hops < MOST_HOPS:
                    place = position & mask
                    hops += 1
                    is_followed = position + 1 < until[i] and tokens[(position + 1) & mask] >= 0
                    if is_followed and (not len(owner) or owner[place] == asker[i]):
                        same = 0
                        while (
                            same < longest
                            and position - same >= oldest
                            and tokens[(position - same) & mask] == context[stop - 1 - same]
                        ):
                            same += 1
                        if gram <= same < below:
                            taken += 1
                            if same >= min_match:
                                matches[i, kept], stores[i, kept] = same, store
                                num_ahead = 0
                                for ahead in range(min(max_depth, until[i] - 1 - position)):
                                    token = tokens[(position + 1 + ahead) & mask]
                                    if token < 0:  # all ends there
                                        break
                                    aheads[i, kept, ahead] = token
                                    num_ahead += 1
                                num_aheads[i, kept] = num_ahead
                                kept += 1
                    position = link[chain + place] - 1
                below = gram
            chain += capacity
        nums[i] = kept
