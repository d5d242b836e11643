"""The audit's records for reading: one page with every claim and its evidence, and the README's table of claims."""

from collections.abc import Mapping, Sequence
from typing import Any

from smoothlab.pages import report
from smoothlab.pages.report import Section, Table

Row = Mapping[str, Any]
WORDS = {True: "supports it", False: "refutes it", None: "leaves it open"}
FIGURES = {
    "example-2.3": "quadratic", "b.5-1": "estimators", "b.5-2": "estimators", "theorem": "rates",
    "theorem-exponents": "rates", "d4-step": "fig1a", "l-grows": "fig1a", "lora-smaller": "fig1b",
}  # fmt: skip
"""The scripts in figures/ that show a claim."""
HOW_TO_READ = (
    "A verdict follows from certificates alone: exact or interval arithmetic, a proof whose inequalities were checked "
    "on a dense grid, or records of measurements with intervals.",
    "A search tries to break an inequality, on random members of families and by optimization from the worst of them. "
    "One that breaks nothing proves nothing: it says how many cases it tried, and the smallest slack it saw.",
    "Printed is the statement as the paper has it, corrected is what holds instead.",
)


def page(rows: Sequence[Row]) -> str:
    """One self-contained HTML page of the rows of ``smoothlab audit``."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in dict.fromkeys(_verdicts(rows))}
    told = [f"{len(rows)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + "."]
    told += [f"{row['claim']}: {row['verdict']}, but '{row['stored']}' is stored." for row in rows if _differs(row)]
    short = [[row["claim"], row["verdict"], row["place"], row["correction"] or "-"] for row in rows]
    sections = [
        Section(
            "Verdicts", told, tables=[Table("All claims", ["claim", "verdict", "place", "what holds instead"], short)]
        ),
        Section("How to read this page", HOW_TO_READ),
    ]
    return report.page("The paper's claims, checked", sections + [_claim(row) for row in rows])


def readme_table(rows: Sequence[Row]) -> str:
    """The README's table of claims, in Markdown: claim, verdict, what broke it or how close it comes, test."""
    lines = ["| claim | where | verdict | what breaks it, or how close it comes | figure | test |", "| --- " * 6 + "|"]
    for row in rows:
        figure = FIGURES.get(row["claim"], "")
        test = str(row["test"]).removeprefix("tests/")
        lines.append(f"| {row['claim']} | {row['place']} | {row['verdict']} | {_decisive(row)} | {figure} | {test} |")
    return "\n".join(lines)


def _verdicts(rows: Sequence[Row]) -> list[str]:
    return [row["verdict"] for row in rows]


def _differs(row: Row) -> bool:
    return bool(row["verdict"] != row["stored"]) and not row.get("note")


def _claim(row: Row) -> Section:
    told = [f"Claim: {row['statement']}.", f"Given: {row['hypotheses']}. In the paper: {row['place']}."]
    if row["correction"]:
        told.append(f"What holds instead: {row['correction']}.")
    told.append(f"Held by {row['test']}.")
    evidence = [[*_kind(one), one["what"], _numbers(one)] for one in row["evidence"]]
    table = Table("Evidence", ["kind", "says", "what", "numbers"], evidence)
    return Section(f"{row['claim']}: {row['verdict']}", [line.replace("..", ".") for line in told], tables=[table])


def _kind(one: Row) -> tuple[str, str]:
    if one["kind"] == "search":
        return "search", f"{'breaks' if one['broken'] else 'does not break'} what is {one['about']}"
    return one["how"], f"{WORDS[one['supports']]}, as {one['about']}"


def _numbers(one: Row) -> str:
    facts = ", ".join(f"{k} = {v if isinstance(v, str) else format(v, '.6g')}" for k, v in one["facts"].items())
    return "; ".join(filter(None, [one.get("text", ""), facts]))


def _decisive(row: Row) -> str:
    """The certificate that refutes the printed statement, or else the tightness of the search that comes closest."""
    for one in row["evidence"]:
        if one["kind"] == "certificate" and one["supports"] is False and one["about"] == "printed":
            found, allowed = one["facts"].get("measured, at least"), one["facts"].get("allowed, at most")
            numbers = "" if found is None or allowed is None else f"{found:.4g} > {allowed:.4g}: "
            return _cell(numbers + one["what"])
    slacks = [one["slack"] for one in row["evidence"] if one["kind"] == "search" and one["about"] == "printed"]
    return f"searched, smallest slack {max(min(slacks), 0):.2g}" if slacks else "certificate"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
