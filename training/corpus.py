"""The training text: the running interpreter's standard library, tokenised once and cached.

Whole files are held out by a hash of their path, so no held-out line is ever trained on.
"""

import ast
import hashlib
import json
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
VOCAB_SIZE = 2048
HELD_OUT_PERCENT = 3
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{{ message['content'] }}<|endoftext|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Character tables: digits in rows, which teach a small model nothing but looping.
TABLE_FOLDERS = frozenset({"encodings", "cjkencodings", "encoded_modules", "pydoc_data"})


def stdlib_files() -> Iterator[tuple[str, str]]:
    """Yields (path relative to the standard library, text) in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if "site-packages" in relative.parts or TABLE_FOLDERS & set(relative.parts):
            continue
        try:
            yield relative.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few tests are written in other encodings on purpose


def is_held_out(relative_path: str) -> bool:
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def is_test(relative_path: str) -> bool:
    return any(part in ("test", "tests", "idle_test") for part in relative_path.split("/"))


def documented(source: str) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str, str]]:
    """Each documented definition that is not too long: its node, question and code."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        docstring = ast.get_docstring(node)
        code = ast.get_source_segment(source, node, padded=True)
        if docstring and code and len(code) < 2500:
            yield node, docstring.split("\n\n")[0].replace("\n", " "), code


def chat_documents(source: str) -> Iterator[str]:
    """Turns each documented function into one exchange: its docstring asks, its code answers."""
    for _, question, code in documented(source):
        yield f"{USER}{question}{ASSISTANT}{textwrap.dedent(code)}\n"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text is encodable, and the specials never come out of plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the two files that transformers' AutoTokenizer needs, chat template included."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def encode_documents(tokenizer: Tokenizer, documents: list[str], seed: int = 0) -> np.ndarray:
    """Returns [num_tokens] uint16: shuffled documents, each closed by the end-of-text token."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces: list[int] = [end]
    for encoding in tokenizer.encode_batch(order):
        pieces.extend(encoding.ids)
        pieces.append(end)
    return np.array(pieces, dtype=np.uint16)


def prepare(cache: Path) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    """Returns (tokenizer, training tokens, held-out tokens), from `cache` when it is there.

    Library modules appear twice among the training documents and tests once: tests are most of
    the text but the poorer part of it.
    """
    train_path, held_path = cache / "train.npy", cache / "held_out.npy"
    if not (train_path.exists() and held_path.exists()):
        train: list[str] = []
        chats: list[str] = []
        held_out: list[str] = []
        for path, text in stdlib_files():
            if is_held_out(path):
                held_out.append(text)
                continue
            train += [text] if is_test(path) else [text, text]
            if not is_test(path):
                chats += chat_documents(text)
        tokenizer = train_tokenizer(train)
        save_tokenizer(tokenizer, cache)
        np.save(held_path, encode_documents(tokenizer, held_out))
        np.save(train_path, encode_documents(tokenizer, train + chats))
    tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    return tokenizer, np.load(train_path), np.load(held_path)
