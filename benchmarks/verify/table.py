"""The scoreboard's table in Markdown, from its records: `python -m benchmarks.verify.table`."""

from pathlib import Path

from smoothlab import record_files
from smoothlab.records import Row

RESULTS = Path(__file__).resolve().parents[1] / "results" / "scoreboard.jsonl"


def rows(path: Path = RESULTS) -> dict[str, list[Row]]:
    """Rows by implementation, in the order of the file."""
    by_package: dict[str, list[Row]] = {}
    for row in record_files.read(path).rows:
        if row is not None:
            by_package.setdefault(row["package"], []).append(row)
    return by_package


def line(name: str, answers: list[Row]) -> str:
    """One implementation's line: version, day, counts, distribution, scale, what is wrong."""
    by_probe = {row["probe"]: row for row in answers}
    count_right = sum(row["verdict"].startswith("right") for row in answers)
    hidden = sum(row["verdict"] == "not observable" for row in answers)
    wrong_probes = ", ".join(f"`{row['probe']}`" for row in answers if row["verdict"] == "wrong") or "nothing"
    distribution = by_probe["distribution"]["note"].split(",")[0].split(" (")[0]
    scale = by_probe["scale"]["measured"]
    factor = "" if scale is None else f"{scale:.3g}"
    version, date = answers[0]["version"] or "described", answers[0]["date"]
    return f"| {name} | {version} | {date} | {count_right} | {hidden} | {distribution} | {factor} | {wrong_probes} |"


def table(path: Path = RESULTS) -> str:
    """The whole table."""
    head = "| implementation | version | day | right | not observable | directions | scale | wrong |"
    return "\n".join([head, "| --- " * 8 + "|", *(line(name, answers) for name, answers in rows(path).items())])


if __name__ == "__main__":
    print(table())
