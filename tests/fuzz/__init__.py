"""Random engines and random requests: each starts and gives plain vLLM's text, or is refused at once.

`python -m tests.fuzz --help` runs a campaign; `tests/e2e/test_fuzz.py` is a short one.
"""
