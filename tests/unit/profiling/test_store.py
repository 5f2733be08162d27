import json
from pathlib import Path

import pytest

from tests.unit.table_keys import KEY, other_key, save
from vllm_smart.errors import CostTableError
from vllm_smart.profiling import (
    CostSamples,
    CostTable,
    TableKey,
    default_folder,
    from_text,
    load,
    load_key,
)

TABLE = CostTable(CostSamples(verify=((1, 10.0), (64, 12.5)), draft=((1, 0.5),), read=((1, 0.1),)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(TABLE, KEY, tmp_path)


def test_a_table_that_was_kept_costs_the_same(path):
    assert from_text(path.read_text(), path, KEY).samples == TABLE.samples
    assert load(path).verify_ms(30) == TABLE.verify_ms(30)
    assert load_key(path) == KEY


def test_tables_of_the_schema_before_can_be_looked_at_but_are_nobodys_own(path):
    """Their keys had models by path, and the version of the package."""
    content = json.loads(path.read_text())
    old = {k: v for k, v in content["key"].items() if k not in ("nodes", "cost_version")}
    old |= {"target": "/models/llama", "vllm_smart_version": "0.1.0"}
    path.write_text(json.dumps(content | {"schema_version": 3, "key": old}))
    assert load(path).samples == TABLE.samples
    assert load_key(path) == other_key(target="/models/llama")
    with pytest.raises(CostTableError, match="target '/models/llama', not 'LlamaForCausalLM"):
        from_text(path.read_text(), path, KEY)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(CostTableError, match=r"nothing.json cannot be read \(No such file"):
        load(tmp_path / "nothing.json")


def test_a_key_that_differs_names_the_fields_and_both_values(path):
    with pytest.raises(CostTableError) as error:
        from_text(path.read_text(), path, other_key(dtype="float16", compiled=False))
    assert "dtype 'bfloat16', not 'float16'" in str(error.value)
    assert "compiled True, not False" in str(error.value)


def without(key: str):
    return lambda content: {k: v for k, v in content.items() if k != key}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda content: content | {"schema_version": 99},
            "schema_version 99; this vllm_smart reads 4",
        ),
        (without("schema_version"), "schema_version None"),
        (lambda content: [content], "schema_version None"),
        (without("samples"), "is damaged: samples: Field required"),
        (lambda content: content | {"samples": {"verify": []}}, "is damaged: samples.verify"),
        (lambda content: content | {"samples": {"verify": [[1, -3.0]]}}, r"samples\.verify\.0\.1"),
        (lambda content: content | {"key": {"device": "H200"}}, "is damaged: key.target"),
        (lambda content: content | {"note": "mine"}, "is damaged: note"),
    ],
)
def test_damaged_tables_say_what_is_wrong(path, damage, complaint):
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(CostTableError, match=complaint):
        load(path)


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1, "key', b"\xff\xfe\x00"])
def test_half_a_file_is_not_a_table(path, content):
    path.write_bytes(content)
    with pytest.raises(CostTableError, match="is not JSON"):
        load(path)


@pytest.mark.parametrize("field", list(TableKey.model_fields))
def test_every_field_of_the_key_counts(field):
    value = getattr(KEY, field)
    changed = {str: "another", int: 8, bool: False}[type(value)]
    assert other_key(**{field: changed}).digest() != KEY.digest()


def test_file_names_are_safe_and_readable():
    assert KEY.file_name.startswith("LlamaForCausalLM-32x4096-0f1e2d3c4b5a-")
    name = other_key(target="/models/my model:7b/").file_name
    assert name.startswith("my_model_7b-")
    assert "/" not in name


def test_the_default_folder_follows_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vllm_smart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "vllm_smart"
