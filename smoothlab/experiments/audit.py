"""The audit: each claim of the paper is checked, and its verdict compared with the one that is stored."""

import dataclasses
import difflib
import math
import runpy
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from smoothlab.claims import CLAIMS, Claim, Evidence, Finding, Search
from smoothlab.claims.claim import as_text
from smoothlab.errors import BadInput
from smoothlab.records import Row, header

ROOT = Path(__file__).resolve().parents[2]
# An installed package has no records beside it: its claims on measurements stay open until some are given.
RESULTS = ROOT / "benchmarks" / "results"
MISSING = "no records"
PRINTED = ("claim", "verdict", "evidence", "correction", "place", "test", "note")
"""Fields of a row that --json prints; a note is there where records are missing."""
WIDTH, INDENT = 120, " " * 11
"""Characters in a line of evidence, and what its further lines begin with."""


@dataclass(frozen=True)
class Audit:
    """Check claims of the paper: verdict, counterexample, what holds instead, and the evidence.

    Attributes:
        claims: names of claims; all of them by default, or those of `add` where it is given.
        records: record files for the claims on measurements, of `smoothlab smoothness` or `finetune` as each asks for;
            by default those of this checkout.
        add: Python files with claims of the user's, CLAIM or CLAIMS; see `smoothlab.claims`.
        seed: seed of the searches.
    """

    name: ClassVar[str] = "audit"
    unit: ClassVar[str] = "claim"

    claims: tuple[str, ...] = ()
    records: tuple[Path, ...] = ()
    add: tuple[Path, ...] = ()
    seed: int = 0

    def chosen(self) -> list[Claim]:
        """The claims that are asked for; with `add` and no names, the added ones.

        Raises:
            BadInput: an unknown name, or a file of `add` that cannot be used.
        """
        added: list[Claim] = []
        for path in self.add:
            added += added_claims(path)
        claims = dict(CLAIMS)
        for claim in added:
            if claim.name in claims:
                raise BadInput(f"--add: a claim named '{claim.name}' is there already; give it another name")
            claims[claim.name] = claim
        lower = {name.lower(): name for name in claims}
        for name in self.claims:
            if name not in claims:
                matches = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, cutoff=0.5)]
                hint = "smoothlab audit without a name lists all"
                if matches:
                    hint = f"perhaps you meant {', '.join(matches)}; {hint}"
                raise BadInput(f"claim '{name}' is unknown: {hint}")
        if self.claims:
            return [claims[name] for name in dict.fromkeys(self.claims)]
        return added or list(claims.values())  # who adds claims asks about them, not about the paper's

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield one row a claim that `done` lacks."""
        self._check_records()
        finished = {row["claim"] for row in done}
        for claim in self.chosen():
            if claim.name in finished:
                continue
            started = time.monotonic()
            finding = claim.finding(self.seed, self._records_of(claim))
            row: Row = {
                "statement": claim.statement, "place": claim.place, "hypotheses": claim.hypotheses,
                "correction": claim.correction, "test": claim.test, "claim": claim.name, "verdict": finding.verdict,
                "stored": claim.verdict, "evidence": list(map(_evidence_row, finding.evidence)),
            }  # fmt: skip
            # a check of measurements that found none has decided nothing: that is no disagreement
            measured = any(certificate.how == "records" for certificate in finding.certificates)
            if claim.records and not measured and finding.verdict != claim.verdict:
                row |= {"verdict": "open", "note": MISSING}
            yield row | {"seconds": round(time.monotonic() - started, 3)}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {claim.name: number for number, claim in enumerate(self.chosen())}

    def place(self, row: Row) -> int:
        """Return the number of the row's claim."""
        return self._numbers[row["claim"]]

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Keep every row, as claims do not depend on each other."""
        return list({row["claim"]: row for row in rows if row is not None}.values())

    def _records_of(self, claim: Claim) -> list[Path]:
        """The record files that a claim's check takes."""
        paths: Sequence[Path] = self.records
        if not paths:
            paths = [path for pattern in claim.records for path in sorted(RESULTS.glob(pattern))]
        return [path for path in paths if header(path)["experiment"] in claim.experiments]

    def _check_records(self) -> None:
        """Refuse a record file of the user's that no chosen claim reads."""
        understood = {name for claim in self.chosen() if claim.records for name in claim.experiments}
        for path in self.records:
            experiment = header(path)["experiment"]
            if experiment not in understood:
                names = " or ".join(sorted(understood))
                accepted = f"these claims read those of {names}" if names else "these claims read no records"
                raise BadInput(f"--records {path} holds records of {experiment}, and {accepted}: leave it out")


def added_claims(path: Path) -> list[Claim]:
    """The claims of a user's Python file, which is run: its CLAIM or its CLAIMS.

    Raises:
        BadInput: the file cannot be read or run, or defines neither.
    """
    if not path.exists():
        raise BadInput(f"--add {path}: there is no such file; check the path")
    if path.suffix != ".py" or not path.is_file():
        raise BadInput(f"--add {path}: give a Python file, FILE.py, that defines CLAIM or CLAIMS")
    with _in_one_line(f"--add {path}: ", "correct the file"):
        # under a name of its own, so that an `if __name__ == "__main__"` block stays out
        names = runpy.run_path(str(path), run_name=f"smoothlab_added_{path.stem}")
    added = list(names.get("CLAIMS", ()))
    if "CLAIM" in names:
        added = [names["CLAIM"]]
    if not added or not all(isinstance(claim, Claim) for claim in added):
        raise BadInput(f"--add {path}: define CLAIM, or a tuple CLAIMS, of smoothlab.claims.Claim")
    # checks run much later, where an error would not name the file any more
    return [dataclasses.replace(claim, check=_guarded(claim, path)) for claim in added]


def _guarded(claim: Claim, path: Path) -> Callable[..., Finding]:
    """The check of a user's claim, whose errors become one line."""

    def check(*arguments: object) -> Finding:
        with _in_one_line(f"--add {path}: the check of claim '{claim.name}' failed: ", "correct it"):
            return claim.check(*arguments)

    return check


@contextmanager
def _in_one_line(before: str, fix: str) -> Iterator[None]:
    """Turn an error of the user's code into bad input, which is one line on the terminal."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{before}{type(error).__name__}: {error}; {fix}") from error


def _evidence_row(evidence: Evidence) -> Row:
    row: Row = {"kind": "certificate", **dataclasses.asdict(evidence)}
    if isinstance(evidence, Search):
        row |= {"kind": "search", "broken": evidence.broken, "text": str(evidence)}
    for facts in (row["facts"], row.get("at", {})):
        for name, value in facts.items():
            if not isinstance(value, str) and not math.isfinite(value):
                facts[name] = str(value)  # JSON has no infinity
    return row


def differs(row: Row) -> bool:
    """Whether a verdict is another than the stored one; not where records are missing."""
    return bool(row["verdict"] != row["stored"]) and row.get("note") != MISSING


def machine_readable(rows: Sequence[Row]) -> list[Row]:
    """The rows as --json prints them: verdicts and evidence, without what only people read."""
    printed = []
    for row in rows:
        printed.append({key: row[key] for key in PRINTED if key in row})
    return printed


def lines(row: Row, evidence: bool) -> list[str]:
    """A row for people: the verdict, and with `evidence` all that led to it."""
    verdict = row["verdict"]
    if row.get("note"):
        verdict += f" ({row['note']})"
    if differs(row):
        verdict += f", but '{row['stored']}' is stored"
    text = [f"{row['claim']:<19} {verdict}  [{row['place']}]"]
    if not evidence:
        return text
    text += _wrapped("  claim    ", row["statement"]) + _wrapped("  given    ", row["hypotheses"])
    if row["correction"]:
        text += _wrapped("  instead  ", row["correction"])
    for item in row["evidence"]:
        facts = [f"{name} = {as_text(value)}" for name, value in item["facts"].items()]
        if item["kind"] == "search":
            text += _wrapped("  search   ", f"{item['about']}: {item['what']}:")
            facts = [item["text"], *facts]
        else:
            word = {True: "supports", False: "refutes", None: "leaves open"}[item["supports"]]
            text += _wrapped("  ", f"{item['how']}, {word} what is {item['about']}: {item['what']}:")
        text += _wrapped(INDENT, "; ".join(facts))
    return [*text, f"  test     {row['test']}"]


def _wrapped(lead: str, words: str) -> list[str]:
    """Lines of at most WIDTH characters: the first begins with `lead`, the others with INDENT."""
    return textwrap.wrap(
        words, WIDTH, initial_indent=lead, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
    )


def warn(rows: Sequence[Row]) -> None:
    """Say on stderr which claims could not be decided for want of records."""
    missing = [row["claim"] for row in rows if row.get("note") == MISSING]
    if missing:
        fix = "measure with smoothlab smoothness (finetune for claims on accuracy) and give the files to --records"
        print(f"smoothlab: {', '.join(missing)}: open, no records; {fix}", file=sys.stderr)
