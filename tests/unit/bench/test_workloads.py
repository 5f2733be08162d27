"""Prompts: real text, the same for every arm of a round, and as long as asked for."""

import re

import pytest

from vllm_smart.bench.workloads import Prompts, Workload
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.errors import ConfigError

pytest.importorskip("tokenizers")


TOKENIZER = demo_model_paths()["target"] / "tokenizer.json"


def _choose(batch_size: int, repeat: int = 0, **settings) -> list[list[int]]:
    return Prompts(Workload(**settings), 0, TOKENIZER).choose(batch_size, repeat)


def _texts(batch_size: int, **settings) -> list[str]:
    prompts = Prompts(Workload(**settings), 0, TOKENIZER)
    return list(map(prompts.as_text, prompts.choose(batch_size, 0)))


def test_prompts_depend_on_the_round_only():
    assert _choose(4) == _choose(4)
    assert _choose(4, repeat=1) != _choose(4)
    assert _choose(4, repeat=-1) != _choose(4)


def test_prompts_repeat_only_when_there_are_no_more():
    chosen = _choose(130)
    assert len(chosen) == 130
    assert chosen[128:] == chosen[:2]


@pytest.mark.parametrize("text", ["code", "prose", "chat", "edit", "agent", "mix"])
@pytest.mark.parametrize("most", [128, 768])
def test_no_prompt_is_longer_than_asked_for(text, most):
    assert max(map(len, _choose(16, text=text, prompt_tokens=most))) <= most


@pytest.mark.parametrize("text", ["code", "prose"])
def test_long_contexts_are_long(text):
    assert min(map(len, _choose(16, text=text, prompt_tokens=768))) >= 384


def test_lengths_may_depend_on_the_batch_size():
    by_size = {1: 128, 8: 32}
    assert {len(ids) for ids in _choose(8, prompt_tokens=by_size)} == {32}
    assert len(_choose(1, prompt_tokens=by_size)[0]) > 32


def test_what_a_tokenizer_begins_each_text_with_is_not_sent_twice(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    begin = tokenizer.id_to_token(0)
    tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = Prompts(Workload(), 0, tmp_path / "tokenizer.json")
    (prompt,) = prompts.choose(1, 0)
    assert prompt[0] == 0
    again = tokenizer.encode(prompts.as_text(prompt)).ids
    assert again[: len(prompt) - 8] == prompt[:-8]  # its end is cut within a word


def test_prompts_of_many_lengths_are_spread_over_powers_of_two():
    chosen = _choose(200, prompt_tokens=1024, fewest_prompt_tokens=32)
    lengths = sorted(map(len, chosen))
    assert lengths[0] >= 16
    assert lengths[-1] <= 1024
    octaves = [sum(low <= length < 2 * low for length in lengths) for low in (32, 64, 128, 256, 512)]
    assert min(octaves) >= 20, octaves
    assert chosen == _choose(200, prompt_tokens=1024, fewest_prompt_tokens=32)


def test_a_mix_of_many_lengths_takes_the_shortest_of_what_is_never_shorter():
    chosen = _choose(64, text="mix", prompt_tokens=40, fewest_prompt_tokens=8)
    assert len(chosen) == 64
    assert all(chosen)


def test_the_fewest_tokens_are_not_more_than_the_most():
    with pytest.raises(ValueError, match="fewest_prompt_tokens=64: is more than"):
        Workload(prompt_tokens={1: 128, 8: 32}, fewest_prompt_tokens=64)


def test_a_mix_takes_all_texts_in_turn():
    kinds = ["code", "prose", "chat", "edit"]
    for kind, prompt in zip(kinds, _choose(4, text="mix"), strict=True):
        pool = [ids for repeat in range(200) for ids in _choose(4, repeat=repeat, text=kind)]
        assert prompt in pool


def test_chats_end_where_the_answer_begins():
    assert all(text.endswith("<|assistant|>") for text in _texts(8, text="chat"))


def test_edits_begin_to_repeat_what_they_show():
    for prompt in _texts(8, text="edit"):
        shown, asked = prompt.split("\n# The same with ", 1)
        name = asked.split(" renamed to ")[0]
        begun = asked.split(":\n", 1)[1]
        assert re.sub(rf"\b{name}\b", f"new_{name}", shown).startswith(begun)


def test_an_agents_tasks_hardly_differ():
    tasks = _texts(4, text="agent", prompt_tokens=512)
    assert len(set(tasks)) == 4
    shown = [task.split("\n# The same with ")[0] for task in tasks]
    assert len(set(shown)) <= 2  # functions: the tasks about one of them may end amid these


def test_prompts_of_ones_own_are_taken_whole(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "def one():"}\n\n{"prompt": "def two():", "more": 1}\n')
    assert sorted(_texts(3, file=file)[:2]) == ["def one():", "def two():"]
    assert Workload(file=file, temperature=0.5).label == "mine-T0.5"
    with pytest.raises(ConfigError, match=r"prompt_tokens=1: the workload '.*mine\.jsonl'"):
        _choose(1, file=file, prompt_tokens=1)


@pytest.mark.parametrize("text", ['{"text": "a"}', '{"prompt": ""}', "a", "[]", '{"prompt": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "def one():"}\n' + text)
    with pytest.raises(ConfigError, match=r'line 2: must be like {"prompt"'):
        _choose(1, file=file)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        _choose(1, file=tmp_path / "none.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.touch()
    with pytest.raises(ConfigError, match="has no prompt"):
        _choose(1, file=file)


def test_a_length_that_no_prompt_has_is_refused():
    with pytest.raises(ConfigError, match="prompt_tokens=16"):
        _choose(1, text="edit", prompt_tokens=16)
