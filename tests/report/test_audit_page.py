"""The audit's page and table hold every claim, escaped, with verdict, evidence and test."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from smoothlab.record_files import read
from smoothlab.report.audit_page import claims_table, page

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "audit.jsonl"


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words = ""

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def rows() -> list[dict]:  # type: ignore[type-arg]
    return [row for row in read(RECORDS).rows if row is not None]


def test_the_page_holds_every_claim_with_its_evidence(rows):
    html = page(rows)
    text = Text()
    text.feed(html)
    for row in rows:
        assert f"{row['claim']}: {row['verdict']}" in text.words and row["test"] in text.words
        for one in row["evidence"]:
            assert one["what"] in text.words
    assert "src=" not in html and "<script" not in html and f"{len(rows)} claims" in text.words


def test_certificates_and_searches_are_apart_and_tightness_has_its_interval(rows):
    html = page(rows)
    for section in html.split("<section>")[1:]:
        settled, _, tried = section.partition("<h3>Searches</h3>")
        assert "steps of optimization" not in settled
        assert not any(f"{word} what is" in tried for word in ("supports", "refutes", "leaves open"))
    tight = html.partition("How tight what holds is")[2].partition("</table>")[0]
    tightness = []
    for row in rows:
        tightness += [
            item["facts"]["tightness, largest"] for item in row["evidence"] if "tightness, largest" in item["facts"]
        ]
    assert len(tightness) > 10 and tight.count("<meter") == len(tightness)
    assert all(f"{value:.4f}<br>" in tight for value in tightness)


def test_a_verdict_other_than_the_stored_one_is_told(rows):
    other = {**rows[0], "verdict": "open"}
    assert f"{other['claim']}: open, but '{other['stored']}' is stored." in page([other]).replace("&#39;", "'")
    assert "is stored" not in page(rows)


def test_the_table_has_a_row_a_claim_and_six_cells_a_row(rows):
    lines = claims_table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.replace("\\|", "").count("|") for line in lines} == {7}
    assert all(row["claim"] in line for row, line in zip(rows, lines[2:], strict=True))


def test_the_docs_hold_the_table_of_the_records(rows):
    assert claims_table(rows) in RECORDS.parents[2].joinpath("docs", "claims.md").read_text()
