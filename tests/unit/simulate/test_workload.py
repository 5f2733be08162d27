"""Arrivals."""

import numpy as np
import pytest

from vllm_smart.errors import ConfigError
from vllm_smart.simulate import arriving, read_workload


def test_arrivals_come_at_the_rate_and_the_same_requests_at_every_rate():
    slow, fast = (arriving(rate, 4000, (5, 9), (1, 3), seed=0) for rate in (2.0, 20.0))
    assert slow.arrival_ms[0] == 0.0
    assert np.diff(slow.arrival_ms).mean() == pytest.approx(500, rel=0.05)
    assert np.allclose(slow.arrival_ms, 10 * fast.arrival_ms)
    assert (slow.prompt_tokens == fast.prompt_tokens).all()
    assert set(slow.prompt_tokens) == {5, 6, 7, 8, 9}
    assert set(slow.output_tokens) == {1, 2, 3}


def test_a_burst_is_there_at_once():
    assert not arriving(float("inf"), 10, (5, 5), (1, 1), seed=0).arrival_ms.any()


def test_a_file_is_read_in_the_order_of_time(tmp_path):
    path = tmp_path / "arrivals.jsonl"
    path.write_text(
        '{"time": 2, "prompt_tokens": 20, "output_tokens": 2}\n\n'
        '{"time": 0.5, "prompt_tokens": 10, "output_tokens": 1}\n'
    )
    work = read_workload(path)
    assert work.arrival_ms.tolist() == [500.0, 2000.0]
    assert work.prompt_tokens.tolist() == [10, 20]


@pytest.mark.parametrize(
    "text",
    ["", "nonsense\n", '{"time": -1, "prompt_tokens": 1, "output_tokens": 1}\n', '{"time": 1}\n'],
)
def test_a_file_of_something_else_is_an_error_that_shows_a_line(tmp_path, text):
    path = tmp_path / "arrivals.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--arrivals"):
        read_workload(path)
