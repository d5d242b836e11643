"""The audit as one self-contained page and as the README's table, from the rows of `smoothlab audit`.

Certificates and searches are listed apart: one settles, the other only tried.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from smoothlab.report.page import STYLE, document
from smoothlab.report.sentences import number

Row = Mapping[str, Any]
VERDICTS = {"holds": "good", "holds once corrected": "mended", "false as printed": "bad", "open": "unclear"}
"""Verdicts, and the style of each."""
MARK = {True: "supports", False: "refutes", None: "leaves open"}
FIGURES = {
    "example-2.3": "quadratic", "b.5-1": "estimators", "b.5-2": "estimators", "theorem": "rates",
    "theorem-exponents": "rates", "d4-step": "fig1a", "l-grows": "fig1a", "lora-smaller": "fig1b",
}  # fmt: skip
"""The scripts in figures/ that show a claim."""
TIGHTNESS = "tightness, largest"
HOW_TO_READ = (
    "A certificate settles something: exact arithmetic, interval arithmetic (rounding cannot be the cause), or a proof "
    "(theory.md) with every inequality that it uses checked on many points. Certificates alone make the verdict.",
    "A search only tries: random members of families, then optimization from the worst of them. One that finds nothing "
    "says how much it tried and how close it came, and proves nothing. Searches know no stored counterexample.",
    "Holds once corrected: the printed statement is false, and the one under \u201cinstead\u201d is proven. Records: "
    "measurements on a model; their verdict is about those runs.",
)
LOOK = (
    STYLE
    + """
:root { --good: #1a7f37; --mended: #9a6700; --bad: #cf222e; --unclear: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --good: #3fb950; --mended: #d29922; --bad: #f85149; --unclear: #9aa5b1; } }
.verdict { border: 1px solid; border-radius: 999px; padding: .05rem .6rem; font-size: .82rem; white-space: nowrap; }
.good { color: var(--good); } .mended { color: var(--mended); } .bad { color: var(--bad); }
.unclear { color: var(--unclear); }
h2 { scroll-margin-top: 1rem; } h2 .verdict { margin-left: .5rem; vertical-align: .12rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; } p { margin: .4rem 0; } .soft { color: var(--soft); font-size: .88rem; }
.instead { border-left: 3px solid var(--mended); padding-left: .8rem; }
code { font-size: .85em; overflow-wrap: anywhere; } a { color: inherit; } li { overflow-wrap: anywhere; }
.bar { background: var(--line); border-radius: 3px; display: inline-block; height: .6rem; width: 8rem; }
.bar span { background: var(--unclear); border-radius: 3px; display: block; height: 100%; }
"""
)


def page(rows: Sequence[Row]) -> str:
    """The whole page: what the verdicts are, how tight what holds is, and each claim with its evidence."""
    parts = [_list(HOW_TO_READ), _counts(rows), _overview(rows), _tightness(rows), *map(_claim, rows)]
    return document("Audit: do the paper's claims hold?", "\n".join(parts), LOOK)


def readme_table(rows: Sequence[Row]) -> str:
    """The README's table of claims, in Markdown: claim, verdict, what broke it or how close it comes, test."""
    lines = ["| claim | where | verdict | what breaks it, or how close it comes | figure | test |", "| --- " * 6 + "|"]
    for row in rows:
        figure = FIGURES.get(row["claim"], "")
        test = str(row["test"]).removeprefix("tests/")
        lines.append(f"| {row['claim']} | {row['place']} | {row['verdict']} | {_decisive(row)} | {figure} | {test} |")
    return "\n".join(lines)


def _counts(rows: Sequence[Row]) -> str:
    found = Counter(row["verdict"] for row in rows)
    told = ", ".join(f"{found[one]} {_badge(one)}" for one in VERDICTS if found[one])
    against = "".join(
        f"<p class=bad>{escape(row['claim'])}: {escape(row['verdict'])}, but '{escape(row['stored'])}' is stored.</p>"
        for row in rows
        if row["verdict"] != row["stored"] and not row.get("note")
    )
    searches = [one for row in rows for one in row["evidence"] if one["kind"] == "search"]
    tried = sum(one["cases"] + one["evaluations"] for one in searches)
    certificates = sum(len(row["evidence"]) for row in rows) - len(searches)
    return (
        f"<p>{len(rows)} claims: {told}. {certificates} certificates; {len(searches)} searches, "
        f"{tried:,} evaluations in all.</p>{against}"
    )


def _overview(rows: Sequence[Row]) -> str:
    body = [
        f'<tr><th scope="row"><a href="#{escape(row["claim"])}">{escape(row["claim"])}</a></th>'
        f"<td>{escape(row['place'])}</td><td>{_badge(row['verdict'])}</td>"
        f"<td>{escape(_first(row['correction']))}</td></tr>"
        for row in rows
    ]
    return _table("Verdicts", ("claim", "place", "verdict", "what holds instead"), body)


def _first(text: str, most: int = 220) -> str:
    """Enough for a table; the rest is with the claim."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " \u2026"


def _tightness(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        for one in row["evidence"]:
            facts = one.get("facts") or {}
            if one["kind"] != "search" or TIGHTNESS not in facts:
                continue
            top = facts[TIGHTNESS]
            typical = (
                f"median {number(facts['median'])} ({number(facts['its low'])} to {number(facts['its high'])})"
                if "median" in facts
                else f"interval {number(facts['its low'])} to {number(facts['its high'])}"
            )
            width = f"{100 * min(max(float(top), 0.0), 1.0):.1f}"
            body.append(
                f'<tr><th scope="row"><a href="#{escape(row["claim"])}">{escape(row["claim"])}</a></th>'
                f"<td>{escape(one['what'])}</td><td>{top:.4f}<br><span class=bar><span style='width:{width}%'>"
                f"</span></span></td><td>{escape(typical)}</td><td>{one['cases']:,}</td></tr>"
            )
    if not body:
        return ""
    columns = ("claim", "inequality", "largest measured/bound", "95 %", "points or draws")
    return _table("How tight what holds is, along real runs of Algorithm 1", columns, body)


def _claim(row: Row) -> str:
    name = escape(row["claim"])
    note = f" ({escape(row['note'])})" if row.get("note") else ""
    parts = [
        f'<section>\n<h2 id="{name}">{name}: {_badge(row["verdict"])}{note}</h2>',
        f"<p>{escape(row['statement'])}</p>",
        f"<p class=soft>{escape(row['place'])}. Given: {escape(row['hypotheses'])}.</p>",
    ]
    if row["correction"]:
        parts.append(f"<p class=instead>Instead: {escape(row['correction'])}</p>")
    certificates = [_certificate(one) for one in row["evidence"] if one["kind"] == "certificate"]
    searches = [_search(one) for one in row["evidence"] if one["kind"] == "search"]
    for title, items in (("Certificates", certificates), ("Searches", searches)):
        if items:
            parts.append(f"<h3>{title}</h3>\n<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>")
    parts.append(
        f"<p class=soft>Held by <code>{escape(row['test'])}</code>; {number(row['seconds'])} s.</p>\n</section>"
    )
    return "\n".join(parts)


def _certificate(one: Row) -> str:
    style = {True: "good", False: "bad", None: "unclear"}[one["supports"]]
    mark = f"<span class={style}>{MARK[one['supports']]} what is {escape(one['about'])}</span>"
    return f"{mark} ({escape(one['how'])}): {escape(one['what'])}.{_facts(one['facts'])}"


def _search(one: Row) -> str:
    about = "" if one["about"] == "printed" else "Corrected: "
    return f"{about}{escape(one['what'])}: {escape(one['text'])}.{_facts(one.get('facts') or {})}"


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    told = "; ".join(f"{name}: {_told(value)}" for name, value in facts.items())
    return f"<br><span class=soft>{escape(told)}</span>"


def _told(value: float | str) -> str:
    """Whole numbers whole, others with three digits."""
    if isinstance(value, str):
        return value
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else number(value)


def _badge(verdict: str) -> str:
    return f'<span class="verdict {VERDICTS[verdict]}">{escape(verdict)}</span>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def _table(caption: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _decisive(row: Row) -> str:
    """The certificate that refutes the printed statement, or else the tightness of the search that comes closest."""
    for one in row["evidence"]:
        if one["kind"] == "certificate" and one["supports"] is False and one["about"] == "printed":
            found, allowed = one["facts"].get("measured, at least"), one["facts"].get("allowed, at most")
            numbers = "" if found is None or allowed is None else f"{found:.4g} > {allowed:.4g}: "
            return _cell(numbers + one["what"])
    slacks = [one["slack"] for one in row["evidence"] if one["kind"] == "search" and one["about"] == "printed"]
    if all(one["kind"] == "certificate" and one["how"] == "records" for one in row["evidence"]):
        return "measured on micro; points of one run are dependent"
    return f"searched, smallest slack {max(min(slacks), 0):.2g}" if slacks else "certificate"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
