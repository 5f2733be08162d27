"""A pair is made once, whole, and by one of those who want it."""

import threading

import pytest

from vllm_smart.demo_model import kept
from vllm_smart.demo_model.kept import PairShape, kept_pair, kept_pair_folder

SHAPE = PairShape(hidden_size=192, num_layers=5)


def test_a_pair_is_made_once_and_its_progress_ends_at_the_total(tmp_path):
    told = []
    folders = kept_pair(tmp_path, SHAPE, lambda done, total: told.append((done, total)))
    assert all((folder / "config.json").is_file() for folder in folders.values())
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    done, total = told[-1]
    assert done == total
    assert total == pytest.approx(on_disk, rel=0.01)
    assert sorted(told) == told
    told.clear()
    assert kept_pair(tmp_path, SHAPE, lambda done, total: told.append(done)) == folders
    assert not told


def test_nothing_half_made_is_left_or_taken_for_a_pair(tmp_path, monkeypatch):
    def fails(src, dst, **shape):
        (dst / "target").mkdir(parents=True)
        raise OSError("no space left")

    monkeypatch.setattr(kept, "inflate_pair", fails)
    with pytest.raises(OSError, match="no space"):
        kept_pair(tmp_path, SHAPE)
    assert not list(tmp_path.iterdir())


def test_two_who_make_the_same_pair_at_once_get_one_whole_pair(tmp_path, monkeypatch):
    both_make = threading.Barrier(2)
    make = kept.inflate_pair

    def together(src, dst, **shape):
        both_make.wait(60)
        made = make(src, dst, **shape)
        both_make.wait(60)
        return made

    monkeypatch.setattr(kept, "inflate_pair", together)
    errors = []

    def ask():
        try:
            kept_pair(tmp_path, SHAPE)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [kept_pair_folder(tmp_path, SHAPE)]


def test_each_shape_has_a_folder_of_its_own(tmp_path):
    others = [PairShape(768, 5), PairShape(192, 6), PairShape(192, 5, dtype="float32")]
    others.append(PairShape(192, 5, draft_num_layers=8))
    folders = {kept_pair_folder(tmp_path, shape) for shape in (SHAPE, *others)}
    assert len(folders) == 5
