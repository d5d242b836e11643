"""One self-contained HTML page from any mix of records: no script, no external resource, pictures as base64.

The page reads in light and dark, prints without cut figures, and gives every picture an alternative text. Words stand
in templates/report.html, numbers come from `comparisons`, pictures from `FIGURES`. Templates escape whatever they show.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import FIGURES, advise, comparisons, draw
from smoothlab.report.curvature import depth
from smoothlab.report.numbers import interval, number

ALIKE = ("seed", "protocol", "out", "overwrite")
"""Settings in which runs of one section may differ."""
ORDER = ("curvature", "finetune", "advise", "estimators", "quadratic", "rates", "audit")
"""Kinds of sections in the order of the page; others follow."""
SETTINGS = ("method", "peft", "model", "data", "seed")
"""Settings that the list of runs shows."""
REFUTED = ("fails", "inconsistent", "not as printed", "false as printed")
LONG, MOST = 36, 8  # rows of a table that is shown as a whole, and those shown of a longer one
TERMS = {
    "base": "the pretrained model's own weights",
    "PEFT": "parameter-efficient fine-tuning: a small trained module, here LoRA unless a run says otherwise",
    "head": "the classifier's last layer",
    "hybrid": "pretrained weights trained from losses alone, the added module by gradients, at the same point",
    "zeroth-order": "from values of the loss alone, along random directions",
    "mu": "how far the weights are moved along a random direction",
    "d": "the number of weights",
    "n": "the number of minibatches, the components of the objective",
    "T": "the number of epochs",
    "L": "smoothness, the bound on the Hessian's norm: L_x of the base model, L_y of the PEFT module",
    "Delta": "the objective's gap to its minimum at the start",
    "sigma": "the bound on the components' noise",
    "delta": "the allowed probability of failure",
    "epsilon": "the gradient norm to be reached",
}


@dataclass
class Section:
    """Tables and pictures of one group of record files.

    Attributes:
        kind: entry of `ORDER`, or the experiment's name.
        anchor: id of the section in the page.
        title: heading.
        df: records of the group.
        pictures: (base64 of a PNG, kind of figure) pairs.
        table: comparisons of the records.
        missing: why a figure is not drawn, a sentence each.
    """

    kind: str
    anchor: str
    title: str
    df: pd.DataFrame
    pictures: list[tuple[str, str]]
    table: pd.DataFrame
    missing: list[str]

    @property
    def rows(self) -> list[list[str]]:
        """The table as text: all of it where it is short, else what disagrees."""
        if self.kind == "audit":
            return []
        table = self.table
        if len(table) > LONG:
            table = comparisons.disagreements(table, MOST)
        return list(map(comparisons.cells, table.to_dict("records")))

    @property
    def counts(self) -> list[list[str]]:
        """Counts of a long table."""
        if self.kind == "audit" or len(self.table) <= LONG:
            return []
        return comparisons.summary(self.table).astype(str).values.tolist()

    @property
    def block(self) -> str:
        """The first block of a section on curvature."""
        return str(self.df["block"].iloc[0])

    @property
    def methods(self) -> bool:
        """Whether the section compares methods along their own runs."""
        return self.kind == "curvature" and several_methods(self.df)

    @property
    def advised(self) -> list[dict[str, Any]]:
        """Advised numbers with their intervals, of records of advice."""
        if self.kind != "advise":
            return []
        rows = self.df[self.df["part"] == "advice"]
        return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]

    @property
    def verdicts(self) -> dict[str, int]:
        """Counts of the verdicts of records of the audit."""
        if self.kind != "audit":
            return {}
        return dict(Counter(self.df["verdict"]))

    @property
    def corrected(self) -> list[list[str]]:
        """Claims of the audit that do not hold as printed: name, place, verdict, what holds instead."""
        if self.kind != "audit":
            return []
        rows = self.df[self.df["verdict"] != "holds"].reindex(columns=["claim", "place", "verdict", "correction"])
        return rows.fillna("").astype(str).values.tolist()

    @property
    def refuted(self) -> dict[str, int]:
        """Counts of the verdicts that contradict the paper."""
        rows = self.table[self.table["verdict"].isin(REFUTED)]
        return dict(Counter(rows["part"] + " " + rows["verdict"]))

    def find(self, quantity: str, part: str = "") -> list[dict[str, Any]]:
        """Rows of the table by the beginning of their quantity and a part of their name, for the template."""
        keep = self.table["quantity"].astype(str).str.startswith(quantity)
        keep &= self.table["what"].str.contains(part, regex=False)
        return [{str(name): value for name, value in row.items()} for row in self.table[keep].to_dict("records")]


def write(path: Path, patterns: Sequence[str | Path], *, title: str, where: Mapping[str, str] | None = None) -> Path:
    """Write the page of all record files that match, and return its path.

    Args:
        path: HTML file; its folder is made if it is not there.
        patterns: record files or glob patterns, of any experiments.
        title: heading of the page.
        where: values that columns of the tables must have; see `comparisons.comparisons`.

    Raises:
        BadInput: no such records, or the file cannot be written.
    """
    html = page(sections_of(patterns, where), title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}; give a writable folder") from None
    return path


def sections_of(patterns: Sequence[str | Path], where: Mapping[str, str] | None = None) -> list[Section]:
    """Sections of the record files that match: runs of one kind and alike in their settings share one."""
    df = records.load(patterns)
    groups: dict[tuple[str, str], list[str]] = {}
    for path, head in df.attrs["headers"].items():
        rows, settings = df[df["path"] == path], pd.Series(head.get("config", {}), dtype=object)
        if head["experiment"] == "finetune":  # methods and rates are compared within a section
            settings = settings.reindex(["model", "data"])
        if head["experiment"] in ("estimators", "quadratic", "rates", "audit"):
            settings = settings[:0]
        key = settings.drop(list(ALIKE), errors="ignore").to_json(default_handler=str)
        if len(comparisons.curvature_rows(rows)):
            groups.setdefault(("curvature", key), []).append(path)
        if head["experiment"] not in ("smoothness", "hook") and len(rows):
            groups.setdefault((head["experiment"], key), []).append(path)
    sections: list[Section] = []
    for kind, key in sorted(groups, key=lambda name: [*ORDER, name[0]].index(name[0])):
        # loaded again, so that a table has the columns and the headers of its own runs alone
        sections.append(_section(kind, f"{kind}-{len(sections) + 1}", records.load(groups[kind, key]), where))
    return sections


def _section(kind: str, anchor: str, df: pd.DataFrame, where: Mapping[str, str] | None) -> Section:
    """One section with its pictures and its table."""
    config = next(iter(df.attrs["headers"].values())).get("config", {})
    run = f"{config.get('model', '')} on {config.get('data', '')}".removesuffix(" on ").removeprefix(" on ")
    titles = {
        "curvature": f"Curvature along training: {run}", "finetune": f"Fine-tuning: {run}",
        "estimators": "Gradients from losses alone: bias, variance, rounding, cost",
        "quadratic": "Example 2.3: one learning rate or two", "rates": "Theorem 3.4: does its rate hold?",
        "audit": "The paper's claims", "advise": f"Which learning rates: {run}",
        "fit": "How curvature grows with the gradient norm",
    }  # fmt: skip
    curvature, headers = comparisons.curvature_rows(df), df.attrs["headers"]
    # runs of finetune --measure hold both kinds of rows, and are in two sections
    df = df.drop(curvature.index)
    if kind == "curvature":
        df = curvature
    df.attrs["headers"] = headers
    if kind == "curvature":
        peft = config.get("peft")
        trained = config.get("method") or {"none": "full fine-tuning"}.get(peft, peft)
        if several_methods(df):
            trained = "each method"
        titles["curvature"] += f", {trained}"
    pictures, missing = [], []
    for name in _figures(kind, df):
        buffer = io.BytesIO()
        try:
            draw(name, df).savefig(buffer, format="png", dpi=150)
        except BadInput as error:  # the numbers are shown all the same
            missing.append(f"No figure {name}: {error}.")
            continue
        pictures.append((base64.b64encode(buffer.getvalue()).decode("ascii"), name))
    compared = df
    if kind == "advise":
        compared = advise.limits(df)
    title = titles.get(kind, f"Records of {kind}: {run}".removesuffix(": "))
    return Section(kind, anchor, title, df, pictures, comparisons.comparisons(compared, where), missing)


def _figures(kind: str, df: pd.DataFrame) -> list[str]:
    """Kinds of figures of a section; other records than `FIGURES` knows have none."""
    if kind in FIGURES:
        return [kind]
    if kind != "curvature":
        return []
    figures = ["fig1b"]
    if several_methods(df):
        figures = ["methods"]
    elif df["block"].nunique() == 1:
        figures = ["fig1a"]
    if set(map(depth, df["block"])) != {None}:
        figures.append("depth")
    if (df["quantity"] == "gradient_lipschitz").any() and not several_methods(df):
        figures.append("path")
    return figures


def several_methods(df: pd.DataFrame) -> bool:
    """Whether records are of several methods of training."""
    return "method" in df and df["method"].nunique() > 1


def page(sections: Sequence[Section], title: str) -> str:
    """The page as text."""
    runs: dict[str, list[str]] = {}
    for section in sections:
        for path, head in section.df.attrs["headers"].items():
            config, machine = head.get("config", {}), head.get("environment", {})
            settings = pd.Series(config, dtype=object).reindex(SETTINGS).dropna().astype(str)
            name, git = Path(path).name, str(machine.get("git") or "")[:7]
            named = ", ".join(settings.index + " " + settings)
            runs[path] = [name, head["experiment"], named, str(machine.get("threads", "")), git]
    template = environment().get_template("report.html")
    return template.render(title=title, sections=sections, runs=list(runs.values()), term=Terms(),
                           held=comparisons.coverage, notes=comparisons.notes,
                           products=_products(sections))  # fmt: skip


def environment() -> jinja2.Environment:
    """Templates of this package, with everything escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("smoothlab.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    templates.filters |= {"number": number}
    templates.globals |= {"interval": interval, "filled": filled}
    return templates


def filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table that are not empty, and their cells.

    >>> filled(["what", "reference"], [["a", ""], ["b", ""]])
    (['what'], [['a'], ['b']])
    """
    nonempty = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [columns[index] for index in nonempty], [[row[index] for index in nonempty] for row in rows]


class Terms:
    """Terms of a page: the first call defines a term where it stands, later ones refer to it."""

    def __init__(self) -> None:
        self.defined: list[str] = []

    def __call__(self, name: str) -> Markup:
        """The term as HTML."""
        if name not in TERMS:
            return escape(name)
        if name in self.defined:
            return Markup('<a href="#term-{}">{}</a>').format(name, name)
        self.defined.append(name)
        return Markup('<dfn id="term-{}">{}</dfn> <span class="soft">({})</span>').format(name, name, TERMS[name])


def _products(sections: Sequence[Section]) -> str:
    """Hessian-vector products by protocol; norm, eigenvalue and trace of a block at one point share theirs."""
    tables = [section.df for section in sections if section.kind == "curvature" and "hvps" in section.df]
    if not tables:
        return ""
    df = pd.concat(tables)
    diagonal = df[df["wrt"] == df["block"]]  # cross blocks come from the same products
    hvps = pd.to_numeric(diagonal["hvps"], errors="coerce").fillna(0)
    points = [diagonal[name] for name in ("protocol", "path", "block", "step")]
    products = hvps.groupby(points).max().groupby("protocol").sum()
    return ", ".join(f"{protocol} {number(count)}" for protocol, count in products.items())
