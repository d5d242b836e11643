"""The answers of `smoothlab verify` as one self-contained page, from its rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from smoothlab.report.page import environment

Row = Mapping[str, Any]
STYLES = {"right": "good", "right within": "good", "wrong": "bad", "not observable": "unclear"}
"""Verdicts, and the style of each."""


def page(rows: Sequence[Row]) -> str:
    """The whole page: what is wrong first, then every answer with its numbers."""
    counts = Counter(row["verdict"] for row in rows)
    subject = rows[0]["subject"] if rows else ""
    template = environment().get_template("verify.html")
    wrong = [row for row in rows if row["verdict"] == "wrong" or row["failed"]]
    return template.render(
        title=f"Is {subject} a zeroth-order gradient?", rows=rows, counts=counts, styles=STYLES, wrong=wrong
    )
