"""Where tree attention keeps what: its argument block, and the scratch memory of a worker."""

import struct

import numba

MAX_HEAD_SIZE = 512
# Scores lie in chunks of so many columns, all lines of a chunk together.
CHUNK = 128
# (row, query head) pairs per work item: their state and scores should stay in the L2 cache, and should
# be worth another pass over the keys and values, which costs some of the time of the whole.
MAX_LINES = 192
MIN_LINES = 12
MAX_SCORE_FLOATS = 1 << 18  # unless the lines of a single row need more
PIECE_COST = 0.05

# Scratch strides in floats: odd multiples of a cache line, so that the rows of a tile fall into
# different cache sets; constants, so that one pointer register addresses all of them.
STATE_STRIDE = MAX_HEAD_SIZE + 16
SCORE_STRIDE = CHUNK + 16
ROW_ALIGNMENT = 4  # lines are padded to so many

# Words of the argument block: int64 (strides in bytes), but for SCALE and SOFTCAP, which are float64.
# Addresses of what a layer does not have are 0.
# All threads write the first two, so nothing else lies in their cache line.
ITEMS_TAKEN, WORKERS_BEGUN = 0, 1
(
    # Other ones in each layer, like those before them:
    SCRATCH,
    QUERY,
    OUTPUT,
    KV_CACHE,
    SINKS,  # [num_heads] float32
    SLOPES,  # [num_heads] float32
    SCALE,
    SOFTCAP,
    # Where layers differ in shape:
    NUM_ITEMS,
    SCRATCH_FLOATS,
    PIECES,
    QUERY_STRIDE,
    OUTPUT_STRIDE,
    BLOCK_STRIDE,
    HEAD_STRIDE,
    BLOCK_SIZE,
    HEAD_SIZE,
    NUM_KV_HEADS,
    GROUP,
    KEY_TILE,
    POSITIONS,  # [num_rows] int64 of rows, where there are slopes
    FIRST_SEEN,  # [num_rows] int64 first position that each row sees
    # Once a step:
    COUNTERS,  # address of ITEMS_TAKEN, which WORKERS_BEGUN follows
    TAIL_FLOATS,
    MASK,
    MASK_WORDS,
    NUM_ARGS,
) = range(8, 35)
# The first words, from ITEMS_TAKEN to SOFTCAP.
EACH_LAYER = struct.Struct("=2q48x6q2d")
# First row, number of rows, sequence length, tail length, block table address, first token of tiles.
PIECE_WORDS = 6

# Scratch of one worker, in floats. What comes last depends on the batch: after the state of the lines,
# the visible bits and the packed scores of a tail (TAIL_FLOATS each), gathered values, then the scores.
QUERIES = 0
OUTPUTS = QUERIES + MAX_LINES * STATE_STRIDE
MAXIMA = OUTPUTS + MAX_LINES * STATE_STRIDE
TOTALS = MAXIMA + MAX_LINES
TAIL = TOTALS + MAX_LINES
# Of 32 tokens in bfloat16, where vLLM's kernels are `amx`.
GATHERED_FLOATS = 16 * MAX_HEAD_SIZE


def padded_lines(num_lines: int) -> int:
    """Lines that the register tiles of so many touch."""
    return -(-num_lines // ROW_ALIGNMENT) * ROW_ALIGNMENT


def score_floats(num_lines: int, num_columns: int) -> int:
    """Room for scores, as the lines of each chunk have it."""
    return padded_lines(num_lines) * -(-num_columns // CHUNK) * SCORE_STRIDE


def tail_floats(tail_len: int) -> int:
    """Room for the packed scores of a tail, which begins and ends within whole vectors."""
    return (tail_len + 15) // 16 * 16 + 64


@numba.njit
def gathered(args):
    """Where gathered values lie in the scratch, in floats."""
    return TAIL + 2 * args[TAIL_FLOATS]


@numba.njit
def scores(args):
    """Where scores lie in the scratch, in floats."""
    return gathered(args) + GATHERED_FLOATS


padded = numba.njit(padded_lines)  # for compiled code


@numba.njit
def run_length(args, token, column, end):
    """How many tokens from `token` on lie in one block, and their scores in one chunk."""
    in_block = args[BLOCK_SIZE] - token % args[BLOCK_SIZE]
    in_chunk = CHUNK - column % CHUNK
    return min(min(in_block, in_chunk), end - token)


@numba.njit
def score_address(scores, num_lines, line, column):
    """Of a line's score; `num_lines` as padded. A chunk's lines lie together."""
    in_chunks = column // CHUNK * num_lines + line
    return scores + (in_chunks * SCORE_STRIDE + column % CHUNK) * 4
