"""mkdocs hooks: lists of names are read from the package's tables, and formulas become MathML.

MathML is made while pages are built, so that a browser needs no script and no network.
"""

import html
import re
from importlib import import_module
from typing import Any

from latex2mathml.converter import convert

# A table of the package by its full name, whose names stand there in the built page.
TABLE = re.compile(r"`\{\{ ([\w.]+)\.(\w+) \}\}`")
# What pymdownx.arithmatex writes in its generic form: \(...\) in a span and \[...\] in a div.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the names of tables by the names that they hold."""
    return TABLE.sub(_names, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a page by MathML."""
    return FORMULA.sub(_rendered, content)


def _names(match: re.Match[str]) -> str:
    table = getattr(import_module(match[1]), match[2])
    return ", ".join(f"`{name}`" for name in table)


def _rendered(match: re.Match[str]) -> str:
    source = html.unescape(match[2]).strip()
    # A norm in a table is written with lVert and rVert, since a bar would end the cell; these would be stretched.
    source = source.replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
    rendered = convert(source, display="block" if match[1] == "div" else "inline")
    # latex2mathml passes on what it does not know, e.g. the environment "aligned" and its "&", without an error.
    if "\\" in rendered or ">&<" in rendered:
        raise ValueError(f"latex2mathml does not know a command of this formula: {source}")
    return rendered
