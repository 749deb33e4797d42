"""HTML from Python: text is escaped unless it is HTML already."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable

VOID = frozenset(["img", "input", "meta", "wbr"])
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # HTML has no way to write these

Child = str | int | None


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: Child | Iterable[Child], **attributes: str | float | bool | None) -> Markup:
    """An element. Children and attributes that are None or False are left out.

    Args:
        children: text, which is escaped; Markup, which is not; and iterables of these.
        attributes: `class_` is class, `stroke_width` is stroke-width; True is an attribute without a value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child | Iterable[Child]]) -> Markup:
    """Children one after the other, as tag writes them."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (str, int)):
            parts.append(escape(str(child)))
        elif child is not None:
            parts.append(join(child))
    return Markup("".join(parts))


def escape(text: str) -> str:
    """Text for HTML, also within quotes; what cannot be written, such as bytes of a path, is shown another way."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", html.escape(text)).encode("utf-8", "backslashreplace").decode()


def table(header: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str | None = None) -> Markup:
    """A table whose first column names the rows, in a box that scrolls where it is wider than the page."""
    body = [tag("tr", [_cell(number, cell) for number, cell in enumerate(row)]) for row in rows]
    head = tag("tr", [tag("th", name, scope="col") for name in header])
    return scroll(tag("table", tag("thead", head), tag("tbody", body), class_=class_))


def _cell(number: int, content: Child) -> Markup:
    return tag("td", content) if number else tag("th", content, scope="row")


def scroll(*children: Child) -> Markup:
    """A box that scrolls sideways by itself, so that the page never does."""
    return tag("div", children, class_="scroll", tabindex=0)


def data_uri(content: bytes, kind: str) -> str:
    """A picture as an address that holds all of it; kind is the subtype, such as webp."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def section(anchor: str, title: str, *children: Child | Iterable[Child]) -> Markup:
    """A section of the page, which its table of contents finds by its anchor."""
    return tag("section", tag("h2", title), children, id=anchor)


def percent(value: object, digits: int = 1) -> str:
    """A number of percent, which no line break parts from its sign; a dash for what is no number."""
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}%" if isinstance(value, (int, float)) else "\N{EN DASH}"


def path_text(path: str) -> Markup:
    """A path that may break where people would break it."""
    parts = re.split(r"(?<=[/_\\\-])", path)
    return join([parts[0], *([tag("wbr"), part] for part in parts[1:])])


def plural(count: int, noun: str) -> str:
    """`1 video`, `1,000 videos`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
