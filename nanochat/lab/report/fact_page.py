"""
A simple page of a JSON file, for the results that have no report of their own: miniseries, cycle, noise, Lane B.

Numbers and texts of the file become a list, lists of objects become tables, under the names that they have in the file.
A picture of the same name stands above them. Style and escaping are those of a protocol's report.
"""

import os
from pathlib import Path
from urllib.parse import quote

from nanochat.common import atomic_write
from nanochat.lab.report.html import Markup, el
from nanochat.lab.report.html_style import STYLE
from nanochat.lab.table import plain

DEEPEST = 4  # levels of objects in objects that get a heading; further ones are shown as text
MOST_ROWS, MOST_LETTERS = 200, 2000  # of a table; of a cell
STYLE_HERE = """td.t{white-space:normal;max-width:32em}\
@media (max-width:600px){dl{grid-template-columns:1fr}dt{margin-top:6px}td{overflow-wrap:anywhere}}"""


def document(title: str, *parts, style: str = "") -> str:
    """A whole page: readable on a phone, on a light screen and a dark one, without anything from elsewhere."""
    head = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    head = el("head", head, el("title", title), el("style", Markup(STYLE + style)))
    body = el("body", el("main", *parts))
    text = "<!DOCTYPE html>\n" + Markup('<html lang="en">') + head + body + "</html>\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # a name of bytes that are no UTF-8 becomes "?"


def write_fact_page(path: Path, title: str, sentence: str, facts: dict):
    """Write the page of a JSON object. sentence: what it says, in words."""
    picture = path.with_suffix(".png")
    image = el("img", src=f"./{quote(os.fsencode(picture.name))}", alt=title, style="max-width:100%")
    image = Markup(image.removesuffix("</img>"))  # the one element here that has no end
    shown = el("figure", image) if picture.exists() else None
    back = el("p", el("a", "all results", href="./index.html"), cls="soft")
    atomic_write(path, document(title, el("header", back, el("h1", title)), el("p", sentence, cls="answer"), shown,
                                *_parts(facts), style=STYLE_HERE))


def _parts(facts: dict, level: int = 0) -> list[Markup]:
    nested = {key: value for key, value in facts.items() if level < DEEPEST and _is_nested(value)}
    flat = [(key, value) for key, value in facts.items() if key not in nested and value not in (None, "", [], {})]
    pairs = [part for key, value in flat for part in (el("dt", key), el("dd", _text(value)))]
    parts = [el("dl", *pairs)] if pairs else []
    for key, value in nested.items():
        parts.append(el("h2" if level == 0 else "h3", key))
        if isinstance(value, dict) and all(isinstance(item, dict) and not any(map(_is_nested, item.values()))
                                           for item in value.values()):
            parts.append(_table([{"": name} | item for name, item in value.items()]))
        elif isinstance(value, dict):
            parts += _parts(value, level + 1)
        elif any(_is_nested(cell) for row in value if isinstance(row, dict) for cell in row.values()):
            parts += [part for row in value[:MOST_ROWS] for part in _parts(_as_dict(row), level + 1)]
        else:
            parts.append(_table(value))
    return parts


def _as_dict(row) -> dict:
    return row if isinstance(row, dict) else {"": row}


def _is_nested(value) -> bool:
    return bool(value) and (isinstance(value, dict) or isinstance(value, list) and isinstance(value[0], dict))


def _table(rows: list) -> Markup:
    """A column for each key of the objects, in the order in which they come."""
    rows = [_as_dict(row) for row in rows[:MOST_ROWS]]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = el("tr", *[el("th", key, cls="t") for key in keys])
    body = [el("tr", *[el("td", _text(row.get(key)), cls="t") for key in keys]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", *body)), cls="wide")


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and value and isinstance(value[0], (dict, str)):
        return "; ".join(map(_text, value))
    text = f"{value:.6g}" if isinstance(value, float) else plain(value)
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " ..."
