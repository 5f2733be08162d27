import json

import numpy as np
import pytest

from tests.unit.scheduler.test_acceptance import FIRST, nodes, one_class, taught
from vllm_smart.config import AcceptanceConfig
from vllm_smart.errors import ConfigError
from vllm_smart.scheduler import AcceptanceModel
from vllm_smart.scheduler.acceptance_state import restore_acceptance, save_acceptance

PAIR = ("models/target", "eagle:models/drafter")
TRIED = nodes(np.random.default_rng(4), 200)


@pytest.fixture
def path(tmp_path):
    model = taught(AcceptanceModel(AcceptanceConfig()), 48)
    model.saw_level(1, *one_class(2.0, 1.0, 0.5))
    save_acceptance(model, *PAIR, tmp_path / "state.json")
    return tmp_path / "state.json"


def restored(path, pair=PAIR) -> AcceptanceModel:
    model = AcceptanceModel(AcceptanceConfig())
    restore_acceptance(model, *pair, path)
    return model


def test_the_next_engine_goes_on_where_the_last_one_was(path):
    model = taught(AcceptanceModel(AcceptanceConfig()), 48)
    model.saw_level(1, *one_class(2.0, 1.0, 0.5))
    again = restored(path)
    model.add_request(0)  # of single requests nothing is kept
    assert again.predict(*TRIED, FIRST).tolist() == model.predict(*TRIED, FIRST).tolist()
    assert again.mean_by_rank(1).tolist() == model.mean_by_rank(1).tolist()
    taught(again, 20, seed=1)
    taught(model, 20, seed=1)
    assert again.predict(*TRIED, FIRST).tolist() == model.predict(*TRIED, FIRST).tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 9}, "schema_version"),
        ({"learnt": {}}, "coefficients is not"),
        ({"learnt": {"coefficients": [[1.0]]}}, "coefficients is not"),
    ],
)
def test_a_damaged_file_says_what_is_wrong_with_it_and_teaches_nothing(path, change, reason):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = AcceptanceModel(AcceptanceConfig())
    with pytest.raises(ValueError, match=reason):
        restore_acceptance(model, *PAIR, path)
    untaught = AcceptanceModel(AcceptanceConfig())
    assert model.predict(*TRIED, FIRST).tolist() == untaught.predict(*TRIED, FIRST).tolist()


def test_half_a_file_is_damaged_and_a_missing_one_missing(path):
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="JSON"):
        restored(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        restored(path)


@pytest.mark.parametrize("pair", [("another", PAIR[1]), (PAIR[0], "eagle:another")])
def test_what_was_learnt_of_another_pair_is_refused(path, pair):
    with pytest.raises(ConfigError, match=r"acceptance\.state=.* was learnt with the .*another"):
        restored(path, pair)
