"""Imports of the process that `conftest` has engines forked from."""

import os

from tests.e2e import driver

os.environ.update(driver.ENV)  # vLLM sets up its log as it is imported

from vllm import LLM, SamplingParams

__all__ = ["LLM", "SamplingParams"]
