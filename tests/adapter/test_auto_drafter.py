"""Which drafter method auto stands for, told from the model that is served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import vllm

from tests import assistant_zoo, mtp_zoo
from vllm_smart.config.settings import DEFAULT_BUDGET
from vllm_smart.demo_model import demo_model_paths

pytestmark = pytest.mark.vllm
SPEC = {"model": "vllm_smart.SmartProposer"}
SHIPPED = demo_model_paths()


@pytest.fixture(scope="module", autouse=True)
def plugin():
    from vllm_smart.plugin import register

    register()


@pytest.fixture(scope="module")
def with_head(tmp_path_factory) -> Path:
    """A target that brings a head."""
    return mtp_zoo.tiny_mtp_model("glm4-moe-mtp", tmp_path_factory.mktemp("models"))


@pytest.fixture
def start(monkeypatch):
    """Function from a model and settings to its VllmConfig, our settings and the line at start."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.adapter.engine_settings import smart_config
    from vllm_smart.entry import drafters

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.delenv("VLLM_SMART_CONFIG", raising=False)
    lines: list[str] = []
    monkeypatch.setattr(drafters.logger, "info", lambda text, *of: lines.append(text % of))

    def started(model: Path, **smart: Any):
        given = {"additional_config": {"smart": smart}} if smart else {}
        args = EngineArgs(
            model=str(model),
            speculative_config=dict(SPEC),
            max_model_len=256,
            enforce_eager=True,
            **given,
        )
        config = args.create_engine_config()
        return config, smart_config(config), lines

    return started


def edited(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose config.json says something else."""
    path = folder / "edited"
    shutil.copytree(source, path)
    text = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(text | changes))
    return path


def speculators(folder: Path, kind: str = "eagle3") -> Path:
    """The shipped EAGLE-3 head in the speculators format."""
    if vllm.__version_tuple__[:2] >= (0, 33):
        pytest.skip("0.33 takes no folder for the target that a speculators model names")
    path = folder / "speculators"
    shutil.copytree(SHIPPED["eagle3"], path)
    layer = json.loads((path / "config.json").read_text())
    proposal = {"proposal_type": "greedy", "speculative_tokens": 3}
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": kind,
        "speculators_config": {
            "algorithm": kind,
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": str(SHIPPED["target"]), "architectures": ["LlamaForCausalLM"]},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": layer["draft_vocab_size"],
        "eagle_aux_hidden_state_layer_ids": layer["eagle_aux_hidden_state_layer_ids"],
        "norm_before_residual": False,
        "aux_hidden_state_layer_ids": [1, 2],
        "mask_token_id": 0,
        "ptd_token_id": 0,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_head_that_the_target_brings_is_its_drafter(start, with_head):
    config, smart, lines = start(with_head)
    spec = config.speculative_config
    assert (spec.method, spec.num_speculative_tokens) == ("mtp", DEFAULT_BUDGET)
    assert spec.draft_model_config.architectures == ["Glm4MoeMTPModel"]
    assert (smart.drafter.method, smart.ngrams, smart.tree.shape) == ("mtp", None, "tree")
    assert any("auto is mtp here" in line and str(with_head) in line for line in lines)


def test_a_target_that_brings_nothing_has_ngrams(start):
    config, smart, lines = start(SHIPPED["target"])
    assert (config.speculative_config.method, smart.drafter.method) == ("ngram_gpu", "ngram")
    assert any("auto is ngram here" in line and "brings no head" in line for line in lines)


def test_settings_that_name_a_drafter_count(start, with_head):
    config, smart, lines = start(with_head, drafter={"method": "ngram"})
    assert (config.speculative_config.method, smart.drafter.method) == ("ngram_gpu", "ngram")
    assert not any("method auto" in line for line in lines)


# What a target may lack, and why it has n-grams then.
LACKS = {
    "heads": ({"num_nextn_predict_layers": 0}, "brings no head"),
    "weights": ({"num_hidden_layers": 3}, "lacks the weights of the head"),
}


@pytest.mark.parametrize("lacking", LACKS)
def test_a_head_that_cannot_draft_is_left_and_refused_where_it_is_asked_for(
    start, with_head, tmp_path, lacking
):
    from vllm_smart.errors import ConfigError

    changes, why = LACKS[lacking]
    target = edited(with_head, tmp_path, **changes)
    _, smart, lines = start(target)
    assert smart.drafter.method == "ngram"
    assert any(why in line for line in lines)
    with pytest.raises(ConfigError, match=why) as error:
        start(target, drafter={"method": "mtp"})
    assert "Leave the drafter out of the settings" in str(error.value)


def test_several_heads_draft_chains_of_as_many_tokens_as_vllm_takes(start, tmp_path):
    config, smart, _ = start(mtp_zoo.tiny_mtp_model("glm4-moe-mtp-heads", tmp_path))
    assert config.speculative_config.use_multi_module_mtp()
    assert (smart.drafter.method, smart.tree.shape) == ("mtp", "chain")
    assert smart.growth.node_budget == config.speculative_config.num_speculative_tokens == 15


def test_a_target_without_a_head_is_refused_for_mtp(start):
    from vllm_smart.errors import ConfigError

    with pytest.raises(ConfigError, match=r"drafter\.method='mtp': .* brings no head"):
        start(SHIPPED["target"], drafter={"method": "mtp"})


def test_a_drafter_that_keeps_no_cache_of_its_own_drafts_chains(start, tmp_path):
    from vllm_smart.errors import ConfigError

    target, assistant = assistant_zoo.tiny_gemma4(tmp_path), assistant_zoo.tiny_assistant(tmp_path)
    drafter = {"method": "mtp", "model": str(assistant)}
    config, smart, _ = start(target, drafter=drafter, tree={"node_budget": 8})
    assert config.speculative_config.use_gemma4_mtp()
    assert smart.tree.shape == "chain"
    with pytest.raises(ConfigError, match="Use a drafter made for this target"):
        start(SHIPPED["target"], drafter=drafter, tree={"node_budget": 8})


def test_a_drafter_that_is_served_drafts_for_its_target(start, tmp_path):
    drafter = speculators(tmp_path)
    config, smart, lines = start(drafter)
    spec = config.speculative_config
    assert (spec.method, spec.model) == ("eagle3", str(drafter))
    assert spec.num_speculative_tokens == DEFAULT_BUDGET
    assert config.model_config.model == str(SHIPPED["target"])
    assert (smart.drafter.method, smart.drafter.model) == ("eagle3", str(drafter))
    assert any("auto is eagle3 here" in line for line in lines)


def test_a_block_drafter_that_is_served_drafts_for_its_target(start, tmp_path):
    config, smart, _ = start(speculators(tmp_path, "dflash"))
    assert config.speculative_config.use_dflash()
    assert (smart.drafter.method, smart.drafter.drafts_blocks) == ("dflash", True)
    assert smart.tree.shape == "tree"


def test_settings_count_beside_a_drafter_that_is_served(start, tmp_path):
    config, smart, _ = start(speculators(tmp_path), drafter={"method": "ngram"})
    assert (config.speculative_config.method, smart.drafter.method) == ("ngram_gpu", "ngram")
    assert config.model_config.model == str(SHIPPED["target"])


@pytest.mark.parametrize(("kind", "what"), [("dflash2", "DFlash2DraftModel"), ("peagle", "parallel")])
def test_a_drafter_of_another_kind_is_refused_with_a_way_out(start, tmp_path, kind, what):
    from vllm_smart.errors import UnsupportedError

    drafter = speculators(tmp_path, kind)
    with pytest.raises(UnsupportedError, match=what) as error:
        start(drafter)
    assert "Set drafter.method to ngram" in str(error.value)
    start(drafter, drafter={"method": "ngram"})
