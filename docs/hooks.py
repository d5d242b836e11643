"""mkdocs hooks: names from the package's tables, formulas as MathML, links that leave docs/, angle brackets as text.

MathML is made while pages are built, so that a browser needs no script and no network.
"""

import html
import os
import re
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Pages whose source stands outside docs/, by the source.
OUTSIDE = {ROOT / "benchmarks" / "README.md": "measurements.md"}
# A table of the package by its full name, whose names stand there in the built page.
TABLE = re.compile(r"`\{\{ ([\w.]+)\.(\w+) \}\}`")
# What pymdownx.arithmatex writes in its generic form: \(...\) in a span and \[...\] in a div.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# latex2mathml writes these relations as identifiers, which stand without a space beside their neighbors.
RELATION = re.compile(r"<mi>(:|~|&#x0007E;|&#x02AAF;|&#x02AB0;)</mi>")
LONG = 26  # characters of a formula in a line of text that may be wider than a phone
# Commands and code in a line of text, and the options and numbers in them, at whose hyphens browsers would break lines.
COMMANDS = re.compile(r'<div class="language-sh highlight">.*?</div>|<code>[^<]*</code>', re.DOTALL)
HYPHENED = re.compile(r"(<[^>]*>)|(?<![\w-])--[^<>\s]+|[\d.]+e-\d+")
# The target of a link or picture, in place or as a reference, without its anchor.
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )(?![a-z]+:)([^)\s#]+)", re.MULTILINE)


class AngleBrackets(Extension):
    """Text in angle brackets is text, e.g. the inner product <update, g>: no page and no docstring holds HTML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name is Markdown's
        """Leave out what passes HTML on."""
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Use `AngleBrackets` for pages and docstrings."""
    config.markdown_extensions.append(AngleBrackets())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose source stands outside docs/, and the files there that pages link to."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    for page in list(files.documentation_pages()):
        for _, target in LINK.findall(page.content_string):
            source = _source(page, target)
            name = _site(source)
            if source.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace the names of tables by the names that they hold, and links into the source by links into the site."""

    def moved(match: re.Match[str]) -> str:
        source = _source(page.file, match[2])
        if not source.exists():
            raise PluginError(f"{page.file.src_uri} links to {match[2]}, which does not exist: correct the link")
        return match[1] + os.path.relpath(_site(source), PurePosixPath(page.file.src_uri).parent)

    return LINK.sub(moved, TABLE.sub(_names, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a page by MathML, and keep options such as --peft and 1e-4 in one line."""
    content = COMMANDS.sub(lambda match: HYPHENED.sub(_whole, match[0]), content)
    return FORMULA.sub(_rendered, content)


def _source(page: File, target: str) -> Path:
    """The file of the source that a link of a page leads to."""
    return (Path(str(page.abs_src_path)).parent / target).resolve()


def _site(source: Path) -> str:
    """Path in the site of a file of the source."""
    return OUTSIDE.get(source) or source.relative_to(ROOT).as_posix().removeprefix("docs/")


def _names(match: re.Match[str]) -> str:
    table = getattr(import_module(match[1]), match[2])
    return ", ".join(f"`{name}`" for name in table)


def _whole(match: re.Match[str]) -> str:
    return match[1] or f'<span class="whole">{match[0]}</span>'


def _rendered(match: re.Match[str]) -> str:
    source = html.unescape(match[2]).strip()
    # A norm in a table is written with lVert and rVert, since a bar would end the cell; these would be stretched.
    source = source.replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
    rendered = convert(source, display="block" if match[1] == "div" else "inline")
    # latex2mathml passes on what it does not know, e.g. the environment "aligned" and its "&", without an error.
    if "\\" in rendered or ">&<" in rendered:
        raise ValueError(f"latex2mathml does not know a command of this formula: {source}")
    rendered = RELATION.sub(r"<mo>\1</mo>", rendered)
    if match[1] == "span" and len(re.sub("<[^>]+>", "", html.unescape(rendered))) < LONG:
        return rendered
    # The element math does not scroll where the formula is wider than the page, the one around it does.
    return f'<{match[1]} class="formula">{rendered}</{match[1]}>'
