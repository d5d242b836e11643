"""The audit as one self-contained page and as a Markdown table of claims, from the rows of `smoothlab audit`.

Certificates and searches are listed apart: one settles, the other only tried.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from smoothlab.report.numbers import number
from smoothlab.report.page import environment

Row = Mapping[str, Any]
VERDICTS = {"holds": "good", "holds once corrected": "mended", "false as printed": "bad", "open": "unclear"}
"""Verdicts, and the style of each."""
FIGURES = {
    "example-2.3": "quadratic", "b.5-1": "estimators", "b.5-2": "estimators", "theorem": "rates",
    "theorem-exponents": "rates", "d4-step": "fig1a", "l-grows": "fig1a", "lora-smaller": "fig1b",
}  # fmt: skip
"""The figures that show a claim, by their kind in `smoothlab plot`."""
TIGHTNESS = "tightness, largest"


def page(rows: Sequence[Row]) -> str:
    """The whole page: what the verdicts are, how tight what holds is, and each claim with its evidence."""
    counts: Counter[str] = Counter()
    tight = []
    for row in rows:
        counts[row["verdict"]] += 1
        for item in row["evidence"]:
            counts[item["kind"]] += 1
            # tightness is of searches along real runs; a certificate has nothing to come close to
            if item["kind"] == "search":
                counts["evaluations"] += item["cases"] + item["evaluations"]
                if TIGHTNESS in (item.get("facts") or {}):
                    tight.append((row["claim"], item))
    title = "Audit: do the paper's claims hold?"
    template = environment().get_template("audit.html")
    return template.render(title=title, rows=rows, styles=VERDICTS, fact=fact, counts=counts, tight=tight)


def fact(value: float | str) -> str:
    """A fact of the evidence as text."""
    if isinstance(value, str):
        return value
    return number(value)


def claims_table(rows: Sequence[Row]) -> str:
    """The table of claims in Markdown: claim, verdict, what broke it or how close it comes, figure, test."""
    lines = ["| claim | where | verdict | what breaks it, or how close it comes | figure | test |", "| --- " * 6 + "|"]
    for row in rows:
        figure = FIGURES.get(row["claim"], "")
        test = str(row["test"]).removeprefix("tests/")
        decisive = _decisive(row).replace("|", "\\|")
        lines.append(f"| {row['claim']} | {row['place']} | {row['verdict']} | {decisive} | {figure} | {test} |")
    return "\n".join(lines)


def _decisive(row: Row) -> str:
    """The certificate that refutes the printed statement, or else the tightness of the search that comes closest."""
    slacks = []
    # a refutation settles the claim, so that it comes before any search
    for item in row["evidence"]:
        if item["kind"] == "certificate" and item["supports"] is False and item["about"] == "printed":
            measured, allowed = item["facts"].get("measured, at least"), item["facts"].get("allowed, at most")
            if measured is None or allowed is None:
                return str(item["what"])
            return f"{measured:.4g} > {allowed:.4g}: {item['what']}"
        if item["kind"] == "search" and item["about"] == "printed":
            slacks.append(item["slack"])
    if all(item["kind"] == "certificate" and item["how"] == "records" for item in row["evidence"]):
        notes = {item["facts"]["note"] for item in row["evidence"] if "note" in item["facts"]}
        return "; ".join(["measured on micro", *sorted(notes)])
    if not slacks:
        return "certificate"
    return f"searched, smallest slack {max(min(slacks), 0):.2g}"
