"""The tokens that noise favours, compiled: noise is computed only where a token could win."""

import math

import numpy as np
import torch

from vllm_smart.kernels.coupled_tokens import GAIN, NUM_RIVALS, SamplingTerms
from vllm_smart.kernels.cpu.launch import compiled
from vllm_smart.kernels.gumbel.cpu import HIGH_DOMAIN, LOW_DOMAIN, murmur3, murmur3_prefix
from vllm_smart.kernels.kept_tokens.cpu import RUN, largest_of, least_kept, vectorised

_LARGEST_NOISE = np.float32(22.9)  # that of the smallest u, 2**-33
_LOG_2 = np.float32(math.log(2))


def coupled_tokens(
    logits: torch.Tensor, slots: np.ndarray, positions: np.ndarray, terms: SamplingTerms, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` tokens of each row that are likeliest to be the target's sample.

    Args:
        logits: [num_rows, vocab_size] of the draft, of any floating type; -inf rules a token out.
        slots: [num_rows] request-state slots, none of a greedy request.
        positions: [num_rows] int64 that the target samples at.
        terms: of the slots.
        count: at least 1.

    Returns:
        tokens [num_rows, count] int64 and probabilities float32, best first. Where fewer tokens can be
        sampled, token 0 with probability 0.
    """
    shape = (len(logits), count)
    tokens, probs = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    _choose(logits.float().contiguous().numpy(), slots, positions, *terms.arguments(), tokens, probs)
    return tokens, probs


@compiled
def _choose(logits, slots, positions, temperature, seed, top_k, top_p, draws_53_bits, tokens, probs):
    num_rows, count = tokens.shape
    room = count + NUM_RIVALS
    token, score, weight = np.empty(room, np.int64), np.empty(room, np.float32), np.empty(room)
    for row in range(num_rows):
        slot = slots[row]
        scale = np.float32(1) / temperature[slot]
        largest, least = largest_of(logits[row]), np.float32(-np.inf)
        if top_k[slot] < logits.shape[1] or top_p[slot] < 1:
            least = least_kept(logits[row], largest, scale, top_k[slot], top_p[slot])
        # Of 53 bits the higher ones decide, and there noise is large where u is near 1.
        domain = HIGH_DOMAIN if draws_53_bits else LOW_DOMAIN
        flipped = np.uint32(0xFFFFFFFF if draws_53_bits else 0)
        prefix = murmur3_prefix(seed[slot], positions[row], domain)
        found = _favoured(logits[row], largest, scale, least, prefix, flipped, token, score)
        total, gain = 0.0, GAIN * math.sqrt(temperature[slot])
        for place in range(found):
            weight[place] = math.exp((score[place] - score[0]) * gain)
            total += weight[place]
        for place in range(min(found, count)):
            tokens[row, place], probs[row, place] = token[place], weight[place] / total


@compiled
def _favoured(logits, largest, scale, least, prefix, flipped, token, score):
    """Write the tokens with the largest scores, best first, and return how many there are.

    Args:
        logits: [vocab_size] of a row.
        largest: [num_runs] of each `RUN` tokens.
        scale: 1 / temperature.
        least: smaller logits are not sampled.
        prefix: of the noise, up to the token.
        flipped: which of the random bits are.
        token, score: [room], written.
    """
    room, found = len(token), 0
    worst = np.float32(-np.inf)  # that must be exceeded
    floats, bound = np.empty(RUN, np.float32), np.empty(RUN, np.float32)
    bits = floats.view(np.int32)
    for number in range(len(largest)):
        if not largest[number] * scale + _LARGEST_NOISE > worst or not largest[number] >= least:
            continue
        first = number * RUN
        run = logits[first : first + RUN]
        if not _bound_scores(run, first, scale, prefix, flipped, floats, bits, bound) > worst:
            continue
        for at in range(len(run)):
            if not bound[at] > worst or not run[at] >= least:
                continue
            u = (np.float64(murmur3(prefix, np.uint32(first + at)) ^ flipped) + 0.5) * 2.0**-32
            own = np.float32(run[at] * scale - math.log(-math.log1p(-u)))
            if not own > worst:
                continue
            found += found < room
            place = found - 1
            while place > 0 and own > score[place - 1]:
                token[place], score[place] = token[place - 1], score[place - 1]
                place -= 1
            token[place], score[place] = first + at, own
            if found == room:
                worst = score[room - 1]
    return found


@vectorised
def _bound_scores(logits, first, scale, prefix, flipped, floats, bits, bound):
    """Write what the scores of tokens from `first` on do not exceed, and return the largest of it.

    -log(-log(1 - u)) is at most -log(u). A float's bits, read as a number, give its logarithm to base 2
    on a chord below the curve.
    """
    for at in range(len(logits)):
        # Half of it: an int32 is converted in one instruction.
        half = np.int32((murmur3(prefix, np.uint32(first + at)) ^ flipped) >> np.uint32(1))
        floats[at] = np.float32(half) + np.float32(0.25)
    largest = np.float32(-np.inf)
    for at in range(len(logits)):
        log_2_of_u = np.float32(bits[at]) * np.float32(2.0**-23) - np.float32(127 + 31)
        bound[at] = logits[at] * scale - log_2_of_u * _LOG_2
        largest = max(largest, bound[at])
    return largest
