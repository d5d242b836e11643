"""What the records of `python -m benchmarks.advice` show: a line a case, then counts.

Three limits stand beside the advised one: that of the first sweep, that of the second, and the threshold that all runs
of both sweeps make together (`smoothlab.stats.thresholds`), with its 95 % interval. Where this interval is wider than
the factor that advice is judged by, no sweep of such a size can say whether advice is that near.

    python -m benchmarks.advice_cases [micro|network|trained|smollm2]
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.advice import CASES, RESULTS
from benchmarks.advice_peers import CLOSE, lost
from smoothlab import record_files
from smoothlab.stats.intervals import Interval
from smoothlab.stats.thresholds import threshold

Row = dict[str, Any]
FACTOR = 1.5
"""Factor of a true limit within which advice, or another sweep, counts as near."""


@dataclass(frozen=True)
class CaseResult:
    """What is on record of a case.

    Attributes:
        name: its name in CASES.
        cost: training steps whose time the advice took; None where advice failed.
        advised: the limit that advice rests on; None where both rates are scaled together.
        first: the true limit by the sweep, None where no limit was found.
        second: that by the second sweep.
        together: that by all runs of both; None where no limit was found.
        loss_ratio: loss after 200 steps at the advised rate over the lowest of all rates; None without such runs.
    """

    name: str
    cost: float | None
    advised: Interval | None
    first: float | None
    second: float | None
    together: Interval | None
    loss_ratio: float | None


def results(rows: Sequence[Row]) -> list[CaseResult]:
    """The cases of a record whose edge was looked for, in its order."""
    names = dict.fromkeys(row["setting"].partition("/")[2] for row in rows)
    cases = [_result(name, [row for row in rows if row["setting"].partition("/")[2] == name]) for name in names]
    return [case for case in cases if case is not None]


def _result(name: str, rows: Sequence[Row]) -> CaseResult | None:
    edge = next((row for row in rows if row["part"] == "edge"), None)
    if edge is None:
        return None
    limits = [row for row in rows if row["part"] == "limit" and row["option"] == edge["option"] and row["low"]]
    runs = [row for row in rows if row["part"] in ("sweep", "second sweep")]
    unstable = [lost(row) > row["loss_before"] for row in runs]
    long = {row["source"]: lost(row) for row in rows if row["part"] == "long" and "failed" not in row}
    return CaseResult(
        name,
        next((row["training_steps"] for row in rows if row["part"] == "cost"), None),
        Interval(*(limits[-1][end] for end in ("value", "low", "high"))) if limits else None,
        edge["measured"],
        next((row["measured"] for row in rows if row["part"] == "second edge"), None),
        threshold([row["rate"] for row in runs], unstable) if edge["measured"] else None,
        long["advised"] / min(long.values()) if long else None,
    )


def table(cases: Sequence[CaseResult]) -> str:
    """Markdown: a line a case, then how many of them are near, held by intervals, and good after 200 steps."""
    lines = [
        "| case | cost, training steps | advised limit | first sweep | second sweep | all runs of both | "
        "advised over these | loss after 200 steps over the lowest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        over = case.advised.value / case.together.value if case.advised and case.together else None
        cells = [case.name, _number(case.cost), _interval(case.advised), _number(case.first), _number(case.second)]
        cells += [_interval(case.together), _number(over), _number(case.loss_ratio)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {name}: {sum(held)} of {len(held)}" for name, held in counts(cases).items())])


def counts(cases: Sequence[CaseResult]) -> dict[str, list[bool]]:
    """What was asked of advice, and whether each case with the numbers for it has it."""
    near: list[tuple[str, float | None, float | None]] = []
    inside: list[tuple[str, Interval, float | None]] = []
    for case in cases:
        if case.advised is None or case.first is None:
            continue
        together = case.together.value if case.together else None
        widest = max(case.together, key=lambda end: abs(math.log(end / case.together.value))) if case.together else None
        both = math.sqrt(case.first * case.second) if case.second else None
        near += [
            (f"advised limit within {FACTOR:g} of the first sweep's", case.advised.value, case.first),
            (f"advised limit within {FACTOR:g} of that of all runs", case.advised.value, together),
            (f"second sweep within {FACTOR:g} of the first", case.second, case.first),
            (f"interval from all runs within {FACTOR:g} of its value", widest, together),
        ]
        inside += [
            ("advised interval holds the first sweep's", case.advised, case.first),
            ("advised interval holds the mean of both (of logarithms)", case.advised, both),
            ("advised interval holds that of all runs", case.advised, together),
        ]
    result: dict[str, list[bool]] = {}
    for name, value, reference in near:
        if value is not None and reference is not None:
            result.setdefault(name, []).append(abs(math.log(value / reference)) <= math.log(FACTOR))
    for name, interval, reference in inside:
        if reference is not None:
            result.setdefault(name, []).append(interval.low <= reference <= interval.high)
    ratios = [case.loss_ratio for case in cases if case.loss_ratio is not None]
    if ratios:
        result["loss after 200 steps within 5 % of the lowest"] = [ratio <= CLOSE for ratio in ratios]
    return result


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def main() -> None:
    """Print the table of one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=CASES, default="micro")
    rows = record_files.read(RESULTS / f"advice_{parser.parse_args().model}.jsonl").rows
    print(table(results([row for row in rows if row is not None])))


if __name__ == "__main__":
    main()
