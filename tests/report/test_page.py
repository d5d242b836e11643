import base64
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import page, sentences

from .curved_path import BASE, BATCH, HEAD, HVPS, PEFT, SPREAD, rows, write
from .test_plots import STEPS, gradients, table, truth

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
        self.text.append(data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    a = write(folder / "full.jsonl", rows([BASE], STEPS, noise=0.02), {"peft": "none", "note": "<b>&"})
    b = write(folder / "joint.jsonl", rows([BASE, PEFT, HEAD], STEPS))
    return page.demo_report(folder / "out", a, b)


# ------------------------------------------------------------------------------------------------ the page


def test_demo_writes_figures_and_one_self_contained_page(demo):
    names = {path.name for path in demo.parent.iterdir()}
    assert {f"{stem}.{kind}" for stem in ("fig1a", "fig1b", "path1a", "path1b") for kind in ("png", "pdf")} < names
    text = demo.read_text(encoding="utf-8")
    shown = Page(text)
    sources = [value for tag, name, value in shown.attributes if name in ("src", "href")]
    assert len(sources) == 4 and all(value.startswith("data:image/png;base64,") for value in sources)
    assert base64.b64decode(sources[0].split(",")[1]) == (demo.parent / "fig1a.png").read_bytes()
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link", bare)
    alts = [value for tag, name, value in shown.attributes if name == "alt"]
    assert len(alts) == 4 and all(len(alt) > 40 for alt in alts) and "15.1 (14.3 to 15.9)" in alts[0]
    assert ("html", "lang", "en") in shown.attributes
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_demo_page_tells_settings_environment_cost_and_doubt(demo):
    shown = Page(demo.read_text(encoding="utf-8"))
    text = "\n".join(shown.text)
    for heading in ("What is uncertain", "Settings", "Cost", "Environment", "The numbers"):
        assert heading in shown.text
    assert "<b>&" in shown.text  # escaped in the file, so that it is text again when parsed
    assert "2.13.0" in shown.text and "sst2" in shown.text
    products = len(STEPS) * (HVPS["estimated"] + HVPS["paper"])
    assert f"{products:,}" in shown.text and f"{3 * products:,}" in shown.text
    for line in sentences.fig1a(records.load(demo.parent.parent / "full.jsonl")):
        assert line in text
    assert "Each point is the Hessian of the loss on one minibatch" in text and "There is one run" in text


def test_cost_counts_products_shared_by_quantities_once():
    df = table([BASE, PEFT])
    df.loc[df["quantity"] == "spectral", "hvps"] = HVPS["estimated"]
    cross = df[df["quantity"] == "frobenius"].assign(wrt="other")
    found = page.cost(pd.concat([df, cross], ignore_index=True), "Figure 1b")
    estimated, paper = (len(STEPS) * HVPS[name] for name in ("estimated", "paper"))
    assert found.rows[0] == ["estimated", "base", f"{estimated:,}"] and found.rows[2] == ["paper", "base", f"{paper:,}"]
    assert found.rows[-1] == ["all", "", f"{2 * (estimated + paper):,}"]


def test_everything_given_is_escaped(tmp_path):
    bad = "<script>alert(\"x\")</script> & 'y'"
    section = page.Section(bad, [bad], [page.Picture(b"png", bad, bad)], [page.Table(bad, ["", bad], [[bad, bad]])])
    path = page.write_report(tmp_path / "new" / "page.html", title=bad, sections=[section])
    text = path.read_text(encoding="utf-8")
    shown = Page(text)
    assert "<script" not in text and "script" not in shown.tags
    assert shown.text.count(bad) == 9  # title, h1, h2, li, figcaption, caption, two th, td
    assert ("img", "alt", bad) in shown.attributes


def test_page_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        page.write_report(tmp_path / "file" / "page.html", title="t", sections=[])


def test_demo_of_one_careful_point_without_path_rows(tmp_path):
    found = [row for row in rows([BASE, PEFT], [0], protocols=("estimated",)) if row["quantity"] == "frobenius"]
    path = write(tmp_path / "one.jsonl", found)
    text = "\n".join(Page(page.demo_report(tmp_path / "out", path, path).read_text(encoding="utf-8")).text)
    assert "At step 0 the Frobenius norm" in text and "Smoothness along the path" not in text


def test_numbers_table_is_thinned_and_stars_values_under_their_floor():
    df = table(at=range(60), noise=0.05)
    found = page.values(df, "Figure 1a")
    assert len(found.rows) == 24 and found.rows[0][0] == 0 and found.rows[-1][0] == 59
    assert found.rows[0][2].endswith(" *") and not found.rows[-1][2].endswith("*")
    assert found.rows[0][1] == "15.1 (14.3 to 15.9)"


# ------------------------------------------------------------------------------------------------ the sentences


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.06, "12.1"), (9.999, "10.0"), (0.04213, "0.0421"), (1234.0, "1,230"), (1.2345e-7, "1.23e-07"), (0.0, "0"),
     (-3.14159, "-3.14"), (2.5e7, "2.5e+07"), (float("nan"), "not measured"), (None, "not measured"), (999.6, "1,000")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert sentences.number(value) == text


def test_sentence_of_a_norm_that_fell():
    norm = truth()
    told = sentences.along_training(table(), "base")[0]
    number = sentences.number
    first, last = (
        f"{number(v)} ({number(v * (1 - SPREAD))} to {number(v * (1 + SPREAD))})" for v in (norm[0], norm[-1])
    )
    assert told.startswith(
        f"From step 0 to step 60 the Frobenius norm of the base model's Hessian went from {first} to {last};"
    )
    assert f"between {number(norm[-1])} (step 60) and {number(norm[0])} (step 0)." in told
    assert told.endswith(
        f"It fell by a factor of {number(norm[0] / norm[-1])}, and the first and the last interval do not overlap."
    )


def test_sentence_claims_no_change_inside_the_intervals():
    told = sentences.along_training(table([HEAD]), "head")[0]
    assert "classification head's" in told and told.endswith("overlap: measuring error may explain the difference.")


def test_spectral_norm_is_told_as_a_bound():
    assert "went from 10.0 (at most 11.0) to" in sentences.along_training(table(), "base", "spectral")[0]


def test_correlation_is_told_with_its_interval():
    told = sentences.with_gradient(table(protocols=("estimated",)), "base")
    assert told[0] == (
        "The estimated norm grows with the gradient norm along this training: Spearman rank correlation "
        "+1.00 (+0.62 to +1.00), n = 6."
    )
    assert "proves no distribution" in told[-1]


def test_inconclusive_correlation_is_told_as_open():
    df = table(protocols=("estimated",))
    frobenius = df["quantity"] == "frobenius"
    df.loc[frobenius, "value"] = [3.0, 1.0, 4.0, 1.5, 5.0, 2.0]
    told = sentences.with_gradient(df, "base")
    rho = stats.spearmanr(gradients(), df.loc[frobenius, "value"]).statistic
    assert len(told) == 1 and f"{rho:+.2f} (" in told[0] and "this stays open" in told[0]
    assert "there are 3" in sentences.with_gradient(table(at=[0, 10, 20]), "base")[0]


def test_falling_correlation_is_told_as_falling():
    df = table(protocols=("estimated",))
    df["grad_norm"] = 1 / df["grad_norm"]
    assert "falls where the gradient norm grows" in sentences.with_gradient(df, "base")[0]


def test_paper_settings_are_told_beside_careful_with_their_floor():
    df = table(noise=0.02)
    told = " ".join(sentences.paper_beside(df, "base"))
    scale, number = np.sqrt(BASE.dim) / BATCH, sentences.number
    floor = 0.02 * gradients() * scale
    value = np.hypot(truth(), floor)
    assert "(h = 1e-05)" in told and f"sqrt(d)/batch = {number(scale)}" in told
    assert f"reads {number(value.min() / scale)} to {number(value.max() / scale)} as printed" in told
    assert f"which is {number(value.min())} to {number(value.max())} in the unit of the estimated" in told
    times, share = value / truth(), 100 * floor / value
    assert f"{number(times.min())} to {number(times.max())} (median {number(np.median(times))}) times" in told
    assert f"{number(share.min())} to {number(share.max())} % (median {number(np.median(share))} %)" in told
    assert "of 6 points 2 lie under twice the floor, where the value cannot be trusted." in told
    assert "none lies under twice the floor." in sentences.paper_beside(table(noise=1e-3), "base")[-1]
    assert "rounding can fake this growth" in " ".join(sentences.with_gradient(df, "base"))
    assert "rounding can fake" not in " ".join(sentences.with_gradient(table(noise=1e-6), "base"))


def test_points_under_the_floor_are_counted():
    df = table(noise=0.1)
    under = int(df["flag"].notna().sum())
    told = sentences.paper_beside(df, "base")[-1]
    assert f"of 6 points {under} lie" in told and "where the value cannot be trusted" in told
    assert sentences.paper_beside(table(protocols=("estimated",)), "base") == []
    assert "cannot tell curvature from rounding" in sentences.paper_beside(df.assign(floor=None), "base")[-1]


def test_ratio_is_told_with_its_interval_and_without_the_root():
    told = sentences.base_over_peft(table([BASE, PEFT], noise=1e-6))
    ratio, number = truth() / truth(PEFT), sentences.number
    factor = np.exp(np.hypot(np.log(1 + SPREAD), np.log(1 - SPREAD)))
    assert (
        f"is {number(ratio[0])} ({number(ratio[0] / factor)} to {number(ratio[0] * factor)}) times the PEFT" in told[0]
    )
    assert (
        f"the median over 6 points is {number(np.median(ratio))}." in told[0] and "above 1 at 6 of 6 points" in told[0]
    )
    root = np.sqrt(BASE.dim / PEFT.dim)
    assert f"{number(np.median(ratio))} after rescaling and {number(np.median(ratio) / root)} as printed" in told[1]
    assert f"{number(root)} times too small" in told[1]
    assert sentences.base_over_peft(table()) == []


def test_doubts_are_counted_from_the_rows():
    df = pd.concat([table([BASE, PEFT]), table().assign(path="other")], ignore_index=True)
    df.loc[df.index[:3], "flag"] = "kinks"
    df.loc[df.index[5], "value"] = None
    told = " ".join(sentences.uncertain(df))
    both = int(((df["quantity"] == "frobenius") & df["low"].notna()).sum())
    assert "There are 2 runs" in told and f"of the {both} two-sided ones about {both / 20:.1f} miss" in told
    assert "minibatch of its own step" not in told
    df.attrs["headers"] = {"run.jsonl": {"config": {"minibatch": "step"}}}
    assert "minibatch of its own step" in " ".join(sentences.uncertain(df))
    assert "3 estimated rows carry the flag 'kinks'." in told and "1 value could not be measured" in told
    assert "Rounding can produce at most 0.0001 % of a estimated value." in told


def test_path_sentence_names_the_largest_quotient():
    trace = list(BASE.path(61))
    quotient = [
        np.linalg.norm(trace[s + 1][1] - trace[s][1]) / np.linalg.norm(trace[s + 1][0] - trace[s][0]) for s in STEPS
    ]
    told = sentences.along_path(table())[0]
    assert f"changed {sentences.number(np.median(quotient))} times" in told
    assert f"at most {sentences.number(max(quotient))}, at step 0" in told and "at least 9.00 to 10.0" in told


# ------------------------------------------------------------------------------------------------ figures/fig1.py


@pytest.fixture(scope="module")
def fig1():
    path = Path(__file__).parents[2] / "figures" / "fig1.py"
    spec = importlib.util.spec_from_file_location("fig1", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fig1_draws_one_figure_a_setting_and_prints_the_reading(fig1, tmp_path, capsys):
    for seed in (0, 1):
        write(tmp_path / f"fig1a_s{seed}.jsonl", rows([BASE], [0, 10], ("estimated",)), {"seed": seed})
    write(tmp_path / "fig1b_micro.jsonl", rows([BASE, PEFT], [0], ("estimated",)))
    write(tmp_path / "fig1b_large.jsonl", rows([BASE, PEFT], [0], ("estimated",)), {"model": "large"})
    options = ["--records-1a", str(tmp_path / "fig1a_*"), "--records-1b", str(tmp_path / "fig1b_*")]
    assert fig1.main([*options, "--out", str(tmp_path / "out")]) == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {f"{stem}.{kind}" for stem in ("fig1a", "fig1b_micro", "fig1b_large") for kind in ("png", "pdf")}
    told = capsys.readouterr().out
    assert "Run 2 of 2: From step 0 to step 10 the Frobenius norm" in told and "times the PEFT module's" in told


def test_fig1_says_which_records_are_absent_and_draws_the_others(fig1, tmp_path, capsys):
    write(tmp_path / "fig1b_x.jsonl", rows([BASE, PEFT], [0], ("estimated",)))
    options = ["--records-1a", str(tmp_path / "none_*"), "--records-1b", str(tmp_path / "fig1b_*")]
    assert fig1.main([*options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fig1a: ") and "none_*" in error and error.count("\n") == 1
    assert (tmp_path / "out" / "fig1b.png").exists()
