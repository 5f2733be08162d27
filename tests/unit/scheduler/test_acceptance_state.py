import json

import numpy as np
import pytest

from tests.unit.scheduler.test_acceptance import FIRST, nodes, one_class, taught
from vllm_smart.config import AcceptanceConfig
from vllm_smart.errors import ConfigError
from vllm_smart.kernels.evidence import FEATURES
from vllm_smart.scheduler import AcceptanceModel
from vllm_smart.scheduler.acceptance_file import AcceptanceFile
from vllm_smart.scheduler.acceptance_state import read_acceptance, save_acceptance

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
    model.relearn(read_acceptance(*pair, path))
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
        model.relearn(read_acceptance(*PAIR, path))
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


# Long memories, so that nothing is forgotten and all orders of learning are alike.
LONG = AcceptanceConfig(window=10**6, per_request=False)


def evidence_of(model: AcceptanceModel, num_steps: int, seed: int) -> AcceptanceModel:
    """`model`, which has also seen what speaks for candidates."""
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        features = rng.normal(size=(20, len(FEATURES)))
        features[:, 0] = 1.0
        model.evidence.observe(features, rng.random(20) < 1 / (1 + np.exp(-features[:, 1])))
    return model


def learnt_apart(num_steps: int) -> list[AcceptanceModel]:
    models = []
    for seed in range(4):
        model = taught(AcceptanceModel(LONG, has_ngrams=True), num_steps, seed=seed)
        model.saw_level(1, *one_class(2.0, 1.0, 0.5 * seed))
        models.append(evidence_of(model, 60, seed))
    return models


def learnt_together(num_steps: int) -> AcceptanceModel:
    model = AcceptanceModel(LONG, has_ngrams=True)
    for seed in range(4):
        evidence_of(taught(model, num_steps, seed=seed), 60, seed)
        model.saw_level(1, *one_class(2.0, 1.0, 0.5 * seed))
    return model


def merged(models: list[AcceptanceModel], config: AcceptanceConfig = LONG) -> AcceptanceModel:
    model = AcceptanceModel(config, has_ngrams=True)
    model.relearn_all([each.learnt() for each in models])
    return model


def test_what_was_learnt_apart_is_merged_into_what_would_have_been_learnt_together():
    apart, together = learnt_apart(20), learnt_together(20)
    wanted = together.predict(*TRIED, FIRST)
    error = np.abs(merged(apart).predict(*TRIED, FIRST) - wanted).mean()
    errors_alone = [np.abs(each.predict(*TRIED, FIRST) - wanted).mean() for each in apart]
    assert error < 0.015
    assert error < min(errors_alone) / 4, "any one of them, as the last writer's, is further off"
    weights = merged(apart).evidence.weights
    off = np.abs(weights - together.evidence.weights)
    assert off.max() < 0.1
    alone = [np.abs(each.evidence.weights - together.evidence.weights).mean() for each in apart]
    assert off.mean() < min(alone) / 2
    assert merged(apart).mean_by_rank(1) == pytest.approx(together.mean_by_rank(1), abs=0.01)


def test_of_one_that_knows_much_and_one_that_knows_nothing_the_first_counts():
    knows, nothing = learnt_apart(50)[0], AcceptanceModel(LONG, has_ngrams=True)
    both = merged([knows, nothing])
    assert both.predict(*TRIED, FIRST) == pytest.approx(knows.predict(*TRIED, FIRST), abs=0.01)


def test_many_do_not_remember_more_than_a_window():
    short = AcceptanceConfig(window=100, per_request=False)
    models = [taught(AcceptanceModel(short, has_ngrams=True), 200, seed=n) for n in range(8)]
    many = merged(models, short)
    assert many.learnt()["information"][0].max() <= 0.25 * short.window + 1e-9
    one = merged(models[:1], short).predict(*TRIED, FIRST)
    assert np.abs(one - models[0].predict(*TRIED, FIRST)).mean() < 0.01
    # And so it goes on learning: what is new changes it.
    changed = taught(many, 60, lambda *_: 0.02, seed=99).predict(*TRIED, FIRST)
    assert changed.mean() < 0.6 * one.mean()


def test_replicas_share_a_folder_and_another_pair_is_left_alone(tmp_path, caplog):
    config = AcceptanceConfig(shared_dir=tmp_path, window=10**6, per_request=False)
    models = [AcceptanceModel(config) for _ in range(3)]
    files = [AcceptanceFile(config, *PAIR, lambda m=model: m, saves=True) for model in models]
    assert not files[0].restore()
    assert not AcceptanceFile(config, "other", PAIR[1], lambda: models[0], saves=False).restore()
    for seed, (model, file) in enumerate(zip(models[:2], files[:2], strict=True)):
        taught(model, 30, seed=seed)
        file.save()
    assert files[2].restore()
    together = taught(taught(AcceptanceModel(config), 30, seed=0), 30, seed=1)
    wanted = together.predict(*TRIED, FIRST)
    assert np.abs(models[2].predict(*TRIED, FIRST) - wanted).mean() < 0.01
    assert not AcceptanceFile(config, "other", PAIR[1], lambda: models[0], saves=False).restore()
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert not files[2].restore()
    assert "starting without it" in caplog.text


def test_files_of_replicas_that_are_long_gone_are_removed(tmp_path):
    config = AcceptanceConfig(shared_dir=tmp_path)
    model = AcceptanceModel(config)
    for _ in range(20):
        AcceptanceFile(config, *PAIR, lambda: model, saves=True).save()
    AcceptanceFile(config, *PAIR, lambda: model, saves=True).restore()
    assert len(list(tmp_path.iterdir())) == 16
