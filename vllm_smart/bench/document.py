"""A report's parts, written as Markdown and as one self-contained HTML file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the document's."""

    text: str
    level: int


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells, as many as there are column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Image:
    """A PNG beside the Markdown; the HTML carries a copy."""

    path: Path
    caption: str


Part = Heading | Paragraph | Bullets | Table | Code | Image


def to_markdown(parts: Sequence[Part]) -> str:
    """Returns the document; images are linked by file name."""
    return "\n\n".join(map(_markdown, parts)) + "\n"


def to_html(parts: Sequence[Part]) -> str:
    """Returns the document with everything inside."""
    title = next((part.text for part in parts if isinstance(part, Heading)), "")
    body = "\n".join(map(_html, parts))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _markdown(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(columns, rows):
            alignment = ["---", *["---:"] * (len(columns) - 1)]
            return "\n".join(f"| {' | '.join(row)} |" for row in (columns, alignment, *rows))
        case Code(text):
            return f"```\n{text.rstrip()}\n```"
        case Image(path, caption):
            return f"![{caption}]({path.name})"


def _html(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Table(columns, rows):
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Image(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            return f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
