"""Several engines, several stores: who measures, and where the table is found."""

import os
import subprocess
import sys
import time

import pytest

from tests.unit.table_keys import KEY, other_key
from vllm_smart.errors import CostTableError
from vllm_smart.profiling import (
    CostSamples,
    CostTable,
    FolderStore,
    RayStore,
    SharedTables,
    content_name,
    to_text,
)
from vllm_smart.profiling.folder_store import this_engine
from vllm_smart.profiling.ray_store import Tables

NAME = "llama.json"
SILENCE_S = 30.0


def table_of(ms: float) -> CostTable:
    return CostTable(CostSamples(verify=((1, ms), (64, 2 * ms))))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "actor"])
def stores(request, tmp_path, clock):
    """Function from an engine to its store; all of them are one for several engines."""
    if request.param == "actor":
        actor = Tables(SILENCE_S, clock)
        return lambda engine: actor
    ways = {}
    return lambda engine: ways.setdefault(engine, FolderStore(tmp_path / "shared", SILENCE_S, clock))


def test_one_of_many_measures(stores):
    engines = [f"engine {n}" for n in range(8)]
    claims = {engine: stores(engine).claim(NAME, engine) for engine in engines}
    assert [engine for engine, holds in claims.items() if holds] == ["engine 0"]
    assert stores("engine 0").claim(NAME, "engine 0"), "its holder may say it again"
    assert stores("engine 5").claim("another.json", "engine 5"), "another table is another matter"


def test_a_holder_that_is_done_lets_others(stores):
    assert stores("a").claim(NAME, "a")
    stores("b").release(NAME, "b")
    assert not stores("b").claim(NAME, "b"), "only its holder gives a lease back"
    stores("a").release(NAME, "a")
    assert stores("b").claim(NAME, "b")


def test_a_holder_that_falls_silent_is_replaced_and_learns_it(stores, clock):
    assert stores("a").claim(NAME, "a")
    assert not stores("b").claim(NAME, "b")
    clock.now_s += SILENCE_S - 1
    assert not stores("b").claim(NAME, "b")
    clock.now_s += 2
    assert stores("b").claim(NAME, "b")
    assert not stores("a").claim(NAME, "a")


def test_a_holder_that_shows_itself_is_not_replaced(stores, clock):
    for _ in range(20):
        clock.now_s += SILENCE_S / 3
        assert stores("a").claim(NAME, "a")
        assert not stores("b").claim(NAME, "b")


def test_a_holder_that_died_on_this_machine_is_replaced_at_once(tmp_path):
    claims = (
        "import sys; from pathlib import Path;"
        "from vllm_smart.profiling.folder_store import FolderStore, this_engine;"
        f"FolderStore(Path(sys.argv[1])).claim({NAME!r}, this_engine()); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", claims, str(tmp_path)], stdin=subprocess.PIPE)
    store, lease = FolderStore(tmp_path), tmp_path / f"{NAME}.lease"
    try:
        while not (lease.exists() and lease.read_text()):
            assert holder.poll() is None
        assert not store.claim(NAME, this_engine())
    finally:
        holder.kill()
        holder.wait()
    assert store.claim(NAME, this_engine())


def test_two_that_take_over_at_once_do_not_both_go_on(tmp_path, clock, monkeypatch):
    """Both have found the holder silent before one of them takes its place."""
    first, second = (FolderStore(tmp_path, SILENCE_S, clock) for _ in range(2))
    FolderStore(tmp_path, SILENCE_S, clock).claim(NAME, "dead")
    first.claim(NAME, "first"), second.claim(NAME, "second")
    clock.now_s += SILENCE_S
    take = second._take

    def late(lease, owner):
        assert first.claim(NAME, "first")
        lease.unlink()  # of the first one, which the second takes for that of the dead
        return take(lease, owner)

    monkeypatch.setattr(second, "_take", late)
    assert second.claim(NAME, "second")
    assert not first.claim(NAME, "first")


@pytest.fixture
def levels(tmp_path, clock):
    return [FolderStore(tmp_path / name, SILENCE_S, clock) for name in ("local", "shared", "far")]


def test_the_nearest_store_answers_and_nearer_ones_get_what_it_has(levels):
    tables = SharedTables(levels, KEY)
    assert tables.find() is None
    levels[2].put(KEY.file_name, to_text(table_of(9.0), KEY))
    levels[1].put(KEY.file_name, to_text(table_of(5.0), KEY))
    found = tables.find()
    assert found is not None
    assert found.verify_ms(1) == 5.0
    assert levels[0].get(KEY.file_name) == levels[1].get(KEY.file_name)
    assert SharedTables(levels, other_key(device="L4")).find() is None


def test_what_is_measured_is_kept_everywhere(levels):
    tables = SharedTables(levels, KEY)
    assert tables.turn() is True
    tables.keep(table_of(3.0))
    tables.close()
    for store in levels:
        assert SharedTables([store], KEY).find().verify_ms(1) == 3.0
    assert not list(levels[2].path("").glob("*.lease"))


def test_a_table_that_is_damaged_or_does_not_do_is_passed_over(levels, caplog):
    levels[0].put(KEY.file_name, "{")
    levels[1].put(KEY.file_name, to_text(table_of(1.0), KEY))
    levels[2].put(KEY.file_name, to_text(table_of(2.0), KEY))

    def check(table: CostTable) -> None:
        if table.verify_ms(1) < 2.0:
            raise CostTableError("Too fast to be true.")

    assert SharedTables(levels, KEY, check).find().verify_ms(1) == 2.0
    assert "is not JSON" in caplog.text
    assert "Too fast to be true. Measuring again." in caplog.text
    assert levels[0].get(KEY.file_name) == levels[1].get(KEY.file_name) == levels[2].get(KEY.file_name)


def test_engines_with_folders_of_their_own_agree_by_the_store_that_they_share(tmp_path, clock):
    far = FolderStore(tmp_path / "far", SILENCE_S, clock)
    engines = [
        SharedTables([FolderStore(tmp_path / name, SILENCE_S, clock), far], KEY, owner=name)
        for name in ("a", "b")
    ]
    assert [engine.turn() for engine in engines] == [True, False]
    engines[0].keep(table_of(7.0))
    engines[0].close()
    assert engines[1].turn().verify_ms(1) == 7.0


def test_an_engine_that_lost_its_turn_stops_measuring(tmp_path, clock, monkeypatch):
    monkeypatch.setattr("vllm_smart.profiling.shared_tables._SIGN_EVERY_S", 0.0)
    first, second = (
        SharedTables([FolderStore(tmp_path, SILENCE_S, clock)], KEY, owner=name) for name in ("a", "b")
    )
    assert (first.turn(), second.turn()) == (True, False)
    clock.now_s += SILENCE_S
    assert (second.turn(), first.turn()) == (True, False)
    second.close()
    assert first.turn() is True


def test_a_store_out_of_reach_is_named_once_and_nearer_ones_decide(levels, caplog):
    class Gone(FolderStore):
        def _fail(self, *arguments):
            raise ConnectionError("nobody answers")

        get = put = claim = release = _fail

    tables = SharedTables([levels[0], Gone(levels[1].path(""))], KEY)
    assert tables.turn() is True
    assert SharedTables([levels[0]], KEY, owner="another").turn() is False
    tables.keep(table_of(1.0))
    assert tables.find().verify_ms(1) == 1.0
    assert caplog.text.count("are out of reach: nobody answers") == 1
    assert "could not be kept in" in caplog.text


def test_a_cluster_that_does_not_answer_costs_no_minutes():
    pytest.importorskip("ray", reason="the extra `ray` is not installed; see docs/ray.md")
    store = RayStore("127.0.0.1:9")
    started_s = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        store.get(NAME)
    assert time.monotonic() - started_s < 30.0


CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64}


def test_a_models_name_is_its_content(tmp_path):
    here, there = tmp_path / "a", tmp_path / "hub" / "models--org--a"
    for folder in (here, there):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * 100)
    names = [content_name({**CONFIG, "_name_or_path": str(f)}, f) for f in (here, there)]
    assert names[0] == names[1]
    assert names[0].startswith("LlamaForCausalLM-2x64-")
    deeper = {"text_config": {**CONFIG, "_name_or_path": "a"}}
    assert content_name(deeper, here) == content_name({"text_config": CONFIG}, here)
    assert content_name({**CONFIG, "hidden_size": 128}, here) != names[0]
    os.truncate(there / "model.safetensors", 50)
    assert content_name(CONFIG, there) != names[0]
    assert content_name(CONFIG, None) not in names


def test_weights_that_are_not_loaded_do_not_count(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"w" * 100)
    name = content_name(CONFIG, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"w" * 90)
    assert content_name(CONFIG, tmp_path) == name
