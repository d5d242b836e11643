"""The page of any records: self-contained, escaped, with contents, terms defined where they first stand, and short."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.report import page

from .curved_path import BASE, HEAD, HVPS, PEFT, STEPS, layers, methods, rows, write
from .finetune_runs import RUN, write_run

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
LIKE_THE_DEMO = ("fig1a_*.jsonl", "fig1b_*.jsonl", "table1/fig3-*.jsonl", "estimators_*.jsonl", "rates.jsonl")
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a page holds and fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(self.text).split()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    a = write(folder / "full.jsonl", rows([BASE], STEPS, noise=0.02), {"peft": "none", "data": "<b>&"})
    b = write(folder / "joint.jsonl", rows([BASE, PEFT, HEAD], STEPS))
    return page.write(folder / "out" / "page.html", [a, b], title="<i>title</i>")


def test_the_page_is_self_contained_with_a_text_for_each_picture(small):
    text = small.read_text(encoding="utf-8")
    shown = Page(text)
    pictures = [value for tag, name, value in shown.attributes if name == "src"]
    assert len(pictures) == 4 and all(value.startswith("data:image/png;base64,") for value in pictures)
    assert all(base64.b64decode(value.split(",")[1])[:4] == b"\x89PNG" for value in pictures)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link", bare)
    alts = [value for tag, name, value in shown.attributes if name == "alt"]
    assert len(alts) == 4 and all(len(alt) > 40 for alt in alts) and "15.1 (14.3 to 15.9)" in alts[0]
    assert ("html", "lang", "en") in shown.attributes
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_whatever_records_hold_is_escaped(small):
    shown = Page(small.read_text(encoding="utf-8"))
    assert "<i>title</i>" in shown.text  # text again once it is parsed
    assert any("micro on <b>&" in text for text in shown.text) and not {"b", "i"} & set(shown.tags)


def test_contents_lead_to_every_section(small):
    shown = Page(small.read_text(encoding="utf-8"))
    anchors = {value for tag, name, value in shown.attributes if name == "id"}
    links = {value for tag, name, value in shown.attributes if name == "href"}
    assert {link.removeprefix("#") for link in links} <= anchors
    headings = {value for tag, name, value in shown.attributes if tag == "h2"}
    assert headings - {"take-away", "contents"} <= {link.removeprefix("#") for link in links}
    assert shown.text.index("What to take away") < shown.text.index("Contents")


def test_numbers_stand_with_their_intervals_and_cost(small):
    text = " ".join(Page(small.read_text(encoding="utf-8")).words)
    assert "base, estimated, step 0 Frobenius norm 15.1 (14.3 to 15.9)" in text
    estimated, paper = (4 * len(STEPS) * HVPS[name] for name in ("estimated", "paper"))
    assert f"estimated {estimated:,}, paper {paper:,}" in text, "norm and eigenvalue of a point share their products"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    out = tmp_path_factory.mktemp("large") / "page.html"
    return Page(page.write(out, [RESULTS / name for name in LIKE_THE_DEMO], title="All").read_text(encoding="utf-8"))


def test_a_page_of_all_experiments_has_at_most_2000_words(large):
    assert 500 < len(large.words) <= 2000


def test_terms_are_defined_where_they_first_stand(large):
    terms = [value.removeprefix("term-") for tag, name, value in large.attributes if tag == "dfn" and name == "id"]
    assert {"base", "PEFT", "head", "hybrid", "n", "T", "L", "Delta", "sigma", "delta"} <= set(terms)
    assert len(terms) == len(set(terms)) and set(terms) <= set(page.TERMS)
    text = " ".join(large.words)
    for term in terms:
        first = re.search(rf"(?<![\w.=-]){re.escape(term)}(?![\w.=-])", text)
        assert text[first.end() :].lstrip().startswith(f"({page.TERMS[term]})"), term


def test_layers_and_fine_tuning_have_sections_of_their_own(tmp_path):
    a = write(tmp_path / "layers.jsonl", rows(layers(4), [0, 10], ("estimated",)))
    b = write_run(tmp_path / "run.jsonl", RUN, 0.9)
    sections = page.sections_of([a, b])
    kinds = [[kind for _, kind in section.pictures] for section in sections]
    assert kinds == [["fig1b", "depth", "path"], ["finetune"]]


def test_curvature_along_fine_tuning_has_a_section_beside_its_accuracy(tmp_path):
    paths = []
    for method, level in (("hybrid", 0.9), ("fo-peft", 0.8)):
        out = tmp_path / f"{method}.jsonl"
        curved = methods().drop(columns=["kind", "path", "experiment"])
        curved = curved[curved["method"] == method].replace({np.nan: None}).to_dict("records")
        paths.append(write_run(out, replace(RUN, method=method), level, rows=curved))
    curvature, accuracy = page.sections_of(paths)
    assert [kind for _, kind in curvature.pictures] == ["methods"] and curvature.title.endswith("each method")
    assert [kind for _, kind in accuracy.pictures] == ["finetune"] and "curvature" not in set(accuracy.df["part"])
    text = " ".join(Page(page.page([curvature, accuracy], "t")).words)
    assert "at the end: fo-peft, base, estimated, step 60:" in text and "hybrid, base, estimated, step 60:" in text


def test_seeds_share_a_section_and_other_settings_do_not(tmp_path):
    paths = []
    for name, config in (("a", {"seed": 0}), ("b", {"seed": 1}), ("c", {"model": "other"})):
        paths.append(write(tmp_path / name, rows([BASE], [0, 10], ("estimated",)), config))
    sections = page.sections_of(paths)
    assert [section.df["path"].nunique() for section in sections] == [2, 1]
    assert len({section.anchor for section in sections}) == 2


def test_the_command_writes_a_page_and_refuses_what_it_cannot(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", rows([BASE, PEFT], [0], ("estimated",)))
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(a), "--out", str(out), "--where", "block=base"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    words = " ".join(Page(out.read_text()).words)
    assert "base, estimated, step 0" in words and "peft, estimated, step 0" not in words
    assert main(["report", str(a), "--out", str(out)]) == 2 and "exists" in capsys.readouterr().err
    assert main(["report"]) == 2 and "no record file is named" in capsys.readouterr().err
    assert main(["report", str(a), "--out", str(tmp_path / "b.html"), "--where", "block"]) == 2
    assert "--where block: write COLUMN=VALUE" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        page.write(tmp_path / "file" / "page.html", [a], title="t")


def test_records_of_one_point_have_a_page(tmp_path):
    few = [row for row in rows([BASE], [0], protocols=("estimated",)) if row["quantity"] == "frobenius"]
    path = write(tmp_path / "one.jsonl", few)
    text = " ".join(Page(page.write(tmp_path / "p.html", [path], title="t").read_text(encoding="utf-8")).words)
    assert "was 15.1 (14.3 to 15.9)" in text and np.char.count(text, "nan") == 0


def test_what_no_figure_can_show_is_in_the_table_and_the_reason_stands_there(tmp_path):
    paths = [write_run(tmp_path / f"{q}.jsonl", replace(RUN, q=q), 0.9) for q in range(1, 10)]
    text = " ".join(Page(page.write(tmp_path / "p.html", paths, title="t").read_text(encoding="utf-8")).words)
    assert "No figure finetune: 9 kinds of runs in one figure: draw at most 8 at a time." in text
    assert "Test accuracy of Hybrid-LoRA (eta_x 1e-4, eta_y 0.1, q 1): 0." in text
    assert "Hybrid-LoRA (eta_x 1e-4, eta_y 0.1, q 9): 0." in text
    predicted = RESULTS / "advice_smollm2_zo.jsonl"
    text = " ".join(Page(page.write(tmp_path / "a.html", [predicted], title="t").read_text(encoding="utf-8")).words)
    assert "No figure advise: no rate was tried" in text and "Advised: mu 1.6e-4" in text


def test_the_audit_says_its_verdicts_and_what_holds_instead(tmp_path):
    out = page.write(tmp_path / "p.html", [RESULTS / "audit.jsonl"], title="t")
    text = " ".join(Page(out.read_text(encoding="utf-8")).words)
    assert "The paper's claims : verdicts: holds (28), holds once corrected (25), open (2)." in text
    assert "not measured" not in text and "prop-2.2" not in text  # which holds as printed
    assert "b.1-1 Lemma B.1 (1) holds once corrected" in text


def test_empty_columns_are_left_out_and_flags_explained(tmp_path):
    norms = [row for row in rows([BASE], [0], ("estimated",)) if row["quantity"] == "frobenius"]
    few = [row | {"flag": "below floor"} for row in norms]
    text = " ".join(Page(page.write(tmp_path / "p.html", [write(tmp_path / "a", few)], title="t").read_text()).words)
    assert "what quantity measured verdict base, estimated" in text
    assert "1 row carries the flag 'below floor': less than twice what rounding alone gives" in text
