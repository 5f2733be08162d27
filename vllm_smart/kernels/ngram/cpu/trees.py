"""Trees of what came after occurrences, grown best first."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

# How often the token after the longest match is the right one, by its length: measured .29 .58 .63 .69
# .78 .83 .91 on code not seen before for lengths 1, 2, 3, 4-5, 6-9, 10-15 and above.
_LENGTHS = np.arange(1, 129)
RELIABILITY = np.concatenate((np.zeros(1), 1 - 0.71 * _LENGTHS**-0.6))
MOST_WEIGHT = 12  # a match of so many tokens weighs as much as any longer one
# What has occurred in the request's own text counts for more than what stands elsewhere, of which there
# is always plenty: on code with a datastore, trees of 16 nodes accept 10 to 15% more by it.
OWN_STORE, ELSEWHERE = 1, 1 / 16

# Columns of a child, as `_group_children` leaves them.
_TOKEN, _MATCH, _COUNT, _STORES, _FIRST = range(5)


@numba.njit(cache=True)
def build_trees(
    found: tuple[_Array, ...], barriers: _Array, columns: tuple[_Array, ...], num_nodes: _Array
) -> None:
    """One tree of each request's occurrences.

    A node stands for the occurrences that agree with its path. They weigh 2^min(match + depth,
    MOST_WEIGHT) each, ELSEWHERE times as much if not in the request's own text, so a node's children
    share out what goes on after it. Grown is what is likeliest by the product along the path of each
    node's share and of how reliable the longest match at its parent is.

    Args:
        found: match, store, num_ahead, ahead, num, as the package says.
        barriers: [k] int64 tokens that are no candidates and end what they stand in; negative ones do,
            too.
        columns: [n, max_nodes] written: token int64; parent int32, a column before it or -1 for the
            root; depth int32, 1 below the root; rank int32 among siblings, the heaviest first, ties
            in the order in which they were found; match_len int32, the tokens that agree before it;
            count int32, its occurrences; stores int32, whose they are; share float32 in (0, 1], its
            weight over that of all that goes on after its parent. Unused: token and parent -1, else 0.
        num_nodes: [n] int32 written.
    """
    num_requests, most, max_depth = found[3].shape
    token, parent, depth, rank, match_len, count, stores, share = columns
    max_nodes = token.shape[1]
    # The occurrences of the nodes that were made or may be: those of a node stand together.
    members = np.empty(most * (max_nodes + 1), np.int64)
    group = np.empty(most, np.int64)
    kin, kin_weight, order = np.empty((most, 5), np.int64), np.empty(most), np.empty(most, np.int64)
    # What may become a node, in slots that are used again; the likeliest comes last in `waiting`.
    waiting, free = np.empty(max_nodes + 1, np.int64), np.empty(max_nodes + 1, np.int64)
    prob_of, share_of = np.empty(max_nodes + 1), np.empty(max_nodes + 1)
    kin_of = np.empty((max_nodes + 1, 5), np.int64)
    parent_of, rank_of = np.empty(max_nodes + 1, np.int64), np.empty(max_nodes + 1, np.int64)
    for i in range(num_requests):
        used = found[4][i]
        for member in range(used):
            members[member] = member
        for slot in range(max_nodes + 1):
            free[slot] = slot
        num_free, num_waiting, made = max_nodes + 1, 0, 0
        first, last, node, level, prob = 0, used, -1, 0, 1.0
        while made < max_nodes:
            num_kin, longest = 0, 0
            if level < max_depth:
                at = members[first:last]
                num_kin, longest = _group_children(
                    i, level, found, at, barriers, group, kin, kin_weight
                )
            total = _heaviest_first(num_kin, kin_weight, order)
            reliable = prob * RELIABILITY[min(longest, len(RELIABILITY) - 1)]
            for place in range(num_kin):
                child = order[place]
                child_prob = reliable * (kin_weight[child] / total)
                if num_waiting == max_nodes - made:  # no more than these can become nodes
                    if child_prob <= prob_of[waiting[0]]:
                        break
                    free[num_free] = waiting[0]
                    num_free += 1
                    num_waiting -= 1
                    waiting[:num_waiting] = waiting[1 : num_waiting + 1]
                num_free -= 1
                slot = free[num_free]
                index = num_waiting
                while index > 0 and prob_of[waiting[index - 1]] >= child_prob:
                    waiting[index] = waiting[index - 1]
                    index -= 1
                waiting[index] = slot
                num_waiting += 1
                prob_of[slot], share_of[slot] = child_prob, kin_weight[child] / total
                kin[child, _FIRST] = used
                kin_of[slot] = kin[child]
                parent_of[slot], rank_of[slot] = node, place
                used += kin[child, _COUNT]
            if num_kin:
                _gather(members, first, last, group, kin)
            if num_waiting == 0:
                break
            num_waiting -= 1
            slot = waiting[num_waiting]
            free[num_free] = slot
            num_free += 1
            level = depth[i, parent_of[slot]] + 1 if parent_of[slot] >= 0 else 1
            token[i, made], parent[i, made] = kin_of[slot, _TOKEN], parent_of[slot]
            depth[i, made], rank[i, made] = level, rank_of[slot]
            match_len[i, made], count[i, made] = kin_of[slot, _MATCH], kin_of[slot, _COUNT]
            stores[i, made], share[i, made] = kin_of[slot, _STORES], share_of[slot]
            first, prob, node = kin_of[slot, _FIRST], prob_of[slot], made
            last = first + kin_of[slot, _COUNT]
            made += 1
        num_nodes[i] = made
        token[i, made:], parent[i, made:] = -1, -1
        depth[i, made:], rank[i, made:], match_len[i, made:] = 0, 0, 0
        count[i, made:], stores[i, made:], share[i, made:] = 0, 0, 0.0


@numba.njit(cache=True)
def _group_children(i, level, found, members, barriers, group, kin, kin_weight):
    """Group the occurrences of a node at depth `level` by their next token.

    Returns:
        How many groups there are, and the longest match among their occurrences. `group` has the
        group of each occurrence, -1 for none; `kin` and `kin_weight` what each is.
    """
    matches, stores, num_aheads, aheads, _ = found
    num_kin, longest = 0, 0
    for place in range(len(members)):
        of = members[place]
        group[place] = -1
        if num_aheads[i, of] <= level:
            continue
        next_token = np.int64(aheads[i, of, level])
        ends = next_token < 0
        for barrier in barriers:
            ends |= next_token == barrier
        if ends:
            continue
        child = 0
        while child < num_kin and kin[child, _TOKEN] != next_token:
            child += 1
        if child == num_kin:
            num_kin += 1
            kin_weight[child] = 0.0
            kin[child, _TOKEN] = next_token
            kin[child, _MATCH] = kin[child, _COUNT] = kin[child, _STORES] = 0
            kin[child, _FIRST] = -1
        same = matches[i, of] + level
        weight = 2.0 ** min(same, MOST_WEIGHT)
        kin_weight[child] += weight if stores[i, of] == OWN_STORE else ELSEWHERE * weight
        kin[child, _MATCH] = max(kin[child, _MATCH], same)
        kin[child, _COUNT] += 1
        kin[child, _STORES] |= stores[i, of]
        longest = max(longest, same)
        group[place] = child
    return num_kin, longest


@numba.njit(cache=True)
def _heaviest_first(num_kin, kin_weight, order):
    """Sort children by weight, ties as they are; returns the sum of their weights."""
    total = 0.0
    for child in range(num_kin):
        total += kin_weight[child]
        place = child
        while place > 0 and kin_weight[child] > kin_weight[order[place - 1]]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = child
    return total


@numba.njit(cache=True)
def _gather(members, first, last, group, kin):
    """Write the occurrences of each child that waits to where it says, which is moved on."""
    for place in range(last - first):
        child = group[place]
        if child >= 0 and kin[child, _FIRST] >= 0:
            members[kin[child, _FIRST]] = members[first + place]
            kin[child, _FIRST] += 1
