"""What `promtool check metrics` would say about an exposition, and what vLLM's dashboards rely on."""

import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

OURS = "vllm_smart"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Words that say a unit which is not Prometheus' base unit, or the kind of a metric.
_FORBIDDEN = {
    "ms",
    "milliseconds",
    "microseconds",
    "minutes",
    "kb",
    "mb",
    "percent",
    "counter",
    "gauge",
}
_ENGINE_LABELS = {"model_name", "engine"}


def complaints(text: str) -> Iterator[str]:
    """What is wrong with our families in `text`; nothing of ours at all is wrong, too."""
    families = [
        family
        for family in text_string_to_metric_families(text)
        if family.name.startswith(OURS) and not family.name.endswith("_created")  # the client's own
    ]
    if not families:
        yield "no metric of ours"
    names = [family.name for family in families]
    for name in {name for name in names if names.count(name) > 1}:
        yield f"{name}: told of more than once"
    for family in families:
        yield from (f"{family.name}: {text}" for text in _of_family(family))


def _of_family(family) -> Iterator[str]:
    name = re.split("[:_]", family.name.removeprefix(OURS), maxsplit=1)[1]
    words = name.split("_")
    if not _NAME.fullmatch(name):
        yield "a name of other characters than a-z, 0-9 and _"
    if _FORBIDDEN & set(words):
        yield "a unit that is no base unit, or a kind, in the name"
    if not family.documentation.endswith("."):
        yield "no help"
    if family.type != "counter" and words[-1] in ("total", "count", "sum", "bucket"):
        yield f"a suffix of other kinds in a {family.type}"
    if "seconds" in words[:-1] or "ratio" in words[:-1]:
        yield "a unit that is not the last word"
    ends = {sample.name.removeprefix(family.name) for sample in family.samples}
    wanted = {"counter": {"_total"}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}
    if ends != wanted.get(family.type):
        yield f"samples {sorted(ends)} of a {family.type}"
    labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
    if len(labels) > 1:
        yield "samples of different labels"
    if any(not labels_of >= _ENGINE_LABELS for labels_of in labels):
        yield "labels that are not vLLM's"
    if family.type == "counter" and any(sample.value < 0 for sample in family.samples):
        yield "below 0"
