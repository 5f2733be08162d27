"""Which models are served, as trees or chains, and whether their text is plain vLLM's: measured.

    OMP_NUM_THREADS=1 python -m benchmarks.coverage [TARGET ...]

Every target is a tiny random model. One process serves it by turns: plain vLLM, then our drafts, in
float32 and bfloat16. Results are kept in docs/results/coverage, one file a target; what is there is not
run again. docs/coverage.md is written from all of them. About a minute a target on a CPU.
"""
