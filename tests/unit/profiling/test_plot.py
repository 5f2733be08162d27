import sys
from pathlib import Path

import pytest

from tests.unit.table_keys import KEY
from vllm_smart.errors import SmartError
from vllm_smart.profiling import CostSamples, CostTable
from vllm_smart.profiling.plot import plot_costs
from vllm_smart.scheduler import explain

FULL = CostTable(
    CostSamples(
        verify=((1, 7.0), (8, 7.2), (64, 9.1), (128, 11.5), (129, 14.0), (512, 31.0)),
        draft=((1, 0.6), (64, 0.9), (256, 1.6)),
        read=((1, 0.4), (512, 2.0)),
    )
)


@pytest.mark.parametrize("table", [FULL, CostTable(CostSamples(verify=((1, 5.0),)))])
def test_a_table_becomes_a_png(tmp_path: Path, table: CostTable) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "costs.out"  # a PNG whatever its name
    plot_costs(table, KEY, list(explain(table)), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SmartError, match=r"pip install 'vllm-smart\[bench\]'"):
        plot_costs(FULL, KEY, list(explain(FULL)), tmp_path / "costs.png")


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(SmartError, match=r"picture .*missing.* cannot be written"):
        plot_costs(FULL, KEY, list(explain(FULL)), tmp_path / "missing" / "costs.png")
