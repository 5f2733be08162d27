"""CPU versions of the kernels of vLLM's own n-gram drafts.

They mirror `vllm.v1.worker.gpu.spec_decode.ngram.speculator`. A match of n tokens at a position is one
number, n * (L + 1) + position + 1: the largest is the longest, and of these the last.
"""

from vllm_smart.kernels.cpu.launch import compiled_kernel


@compiled_kernel
def _ngram_scan_kernel(
    token_ids,  # [max_num_reqs, max_model_len]
    token_ids_stride,
    idx_mapping,  # [num_reqs]
    total_len,  # [max_num_reqs]
    num_sampled,  # [num_reqs]
    scratch,  # [>= num_reqs, n_blocks] the best match of each block of positions, 0 without any
    scratch_stride,
    L,
    MIN_N,
    MAX_N,
    MAX_N_PO2,
    BLOCK_L,
    num_warps=4,
    num_stages=2,
):
    for row in range(len(idx_mapping)):
        scratch[row] = 0
        req = idx_mapping[row]
        seq_len, text = total_len[req], token_ids[req]
        if num_sampled[row] <= 0:
            continue
        for position in range(seq_len - MIN_N):
            for n in range(min(MAX_N, seq_len - position - 1), MIN_N - 1, -1):
                num_equal = 0
                while num_equal < n and text[position + num_equal] == text[seq_len - n + num_equal]:
                    num_equal += 1
                if num_equal == n:
                    score, block = n * (L + 1) + position + 1, position // BLOCK_L
                    scratch[row, block] = max(scratch[row, block], score)
                    break


@compiled_kernel
def _ngram_finalize_kernel(
    token_ids,  # [max_num_reqs, max_model_len]
    token_ids_stride,
    idx_mapping,  # [num_reqs]
    total_len,  # [max_num_reqs]
    num_sampled,  # [num_reqs]
    last_sampled,  # [max_num_reqs]
    scratch,  # [>= num_reqs, n_blocks]
    scratch_stride,
    drafts,  # [>= num_reqs, num_speculative_steps]
    L,
    N_BLOCKS,
    K,
    K_PO2,
    N_BLOCKS_PO2,
    num_warps=2,
    num_stages=1,
):
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        score, num_known = scratch[row].max(), 0
        if num_sampled[row] > 0 and score > 0:
            n, position = (score - 1) // (L + 1), (score - 1) % (L + 1)
            start = position + n
            num_known = max(0, min(K, total_len[req] - start))
            drafts[row, :num_known] = token_ids[req, start : start + num_known]
        drafts[row, num_known:] = last_sampled[req]
