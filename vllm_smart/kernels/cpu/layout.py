"""Where tree attention keeps what: its argument block, and the scratch memory of a worker."""

MAX_HEAD_SIZE = 256
CHUNK = 128  # most tokens per step of the online softmax
# (row, query head) pairs per work item: their state should stay in the L2 cache, and should be
# worth another pass over the keys and values, which costs some of the time of the whole.
MAX_LINES = 192
MIN_LINES = 12
PIECE_COST = 0.05

# Scratch strides in floats: odd multiples of a cache line, so that the rows of a tile fall into
# different cache sets; constants, so that one pointer register addresses all of them.
STATE_STRIDE = MAX_HEAD_SIZE + 16
SCORE_STRIDE = CHUNK + 16
ROW_ALIGNMENT = 4  # lines are padded to so many

# Words of the argument block: int64 (strides in bytes), the last two float64.
(
    COUNTERS,
    NUM_ITEMS,
    SCRATCH,
    PIECES,
    MASK,
    MASK_WORDS,
    QUERY,
    QUERY_STRIDE,
    OUTPUT,
    OUTPUT_STRIDE,
    KV_CACHE,
    BLOCK_STRIDE,
    HEAD_STRIDE,
    BLOCK_SIZE,
    HEAD_SIZE,
    NUM_KV_HEADS,
    GROUP,
    SCALE,
    SOFTCAP,
    NUM_ARGS,
) = range(20)
PIECE_WORDS = 5  # first row, number of rows, sequence length, tail length, block table address

# Scratch of one worker, in floats.
QUERIES = 0
OUTPUTS = QUERIES + MAX_LINES * STATE_STRIDE
SCORES = OUTPUTS + MAX_LINES * STATE_STRIDE
MAXIMA = SCORES + MAX_LINES * SCORE_STRIDE
TOTALS = MAXIMA + MAX_LINES
FACTORS = TOTALS + MAX_LINES
TOPS = FACTORS + MAX_LINES
BITS = TOPS + MAX_LINES
SCRATCH_FLOATS = BITS + 64
