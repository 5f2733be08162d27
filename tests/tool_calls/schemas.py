"""JSON schemas of tools: nested, with enums, unions, arrays, unicode and long strings."""

import random
from typing import Any

_NAMES = ("path", "query", "limit", "größe", "описание", "標題", "user_id", "is_open", "tags", "at")
_WORDS = (
    "open",
    "closed",
    "größer",
    "да",
    "日本語",
    "🙂",
    'a "quoted" one',
    "back\\slash",
    "None",
    "self",
)
_DEEPEST = 3
_LONG = 160
_LONG_SHARE = 0.1  # of strings


def schemas(count: int) -> dict[str, dict[str, Any]]:
    """Schemas of that many tools, by the tool's name; the same ones each time.

    No string is so long that the models of tests would never end it.
    """
    return {f"tool_{seed}": _object(random.Random(seed), 0) for seed in range(count)}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 4 - depth))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.8] or names[:1],
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_enum, _number, _flag, _string, _constant]
    if depth < _DEEPEST:
        kinds += [_object, _array, _union]
    kind = rng.choice(kinds)
    return kind(rng, depth)


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(_WORDS, rng.randint(2, 5))}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice((*_WORDS, 7, True, None))}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": -10, "maximum": rng.choice((5, 99, 4096))}


def _flag(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(("boolean", "null"))}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < _LONG_SHARE:
        return {"type": "string", "minLength": rng.randint(0, 20), "maxLength": _LONG}
    return {"type": "string", "maxLength": rng.randint(0, 12)}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "array",
        "items": _value(rng, depth + 1),
        "minItems": rng.randint(0, 2),
        "maxItems": rng.randint(2, 4),
    }


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth + 1) for _ in range(rng.randint(2, 3))]}
