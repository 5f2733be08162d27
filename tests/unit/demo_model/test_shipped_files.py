"""What the package ships is complete, small, and honest about what was held out."""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from vllm_smart.demo_model import KINDS, demo_model_paths, held_out_prompts

MAX_SHIPPED_BYTES = 9_000_000


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_paths()["target"])


def test_every_checkpoint_has_configuration_and_weights():
    assert tuple(demo_model_paths()) == KINDS
    for folder in demo_model_paths().values():
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
        assert (folder / "model.safetensors").exists()


def test_everything_shipped_stays_under_nine_megabytes():
    folders = demo_model_paths().values()
    total = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert total <= MAX_SHIPPED_BYTES


def test_reading_the_prompts_loads_neither_torch_nor_vllm_nor_a_tokenizer():
    code = (
        "import sys, vllm_smart.demo_model as demo; demo.held_out_prompts(); "
        "sys.exit(bool({'torch', 'vllm', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prompts_have_the_documented_lengths(tokenizer):
    lengths = [len(tokenizer(prompt).input_ids) for prompt in held_out_prompts()]
    assert len(lengths) == 128
    assert all(400 <= length <= 1000 for length in lengths[:16])
    assert all(64 <= length <= 160 for length in lengths[16:])


def test_tokenizer_gives_back_any_text(tokenizer):
    text = 'def f(x):\n\treturn "né €  \U0001f600" * 3\n\n\n    # end'
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_template_is_the_exchange_the_model_was_trained_on(tokenizer):
    messages = [{"role": "user", "content": "Return the sum."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ids == "<|user|>Return the sum.<|assistant|>"
    assert tokenizer.eos_token == "<|endoftext|>"
