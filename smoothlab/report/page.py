"""One self-contained HTML page from records and figures: no script, no external resource, images embedded as base64.

The page reads in light and dark, prints without cut figures, and gives every image an alternative text. Text is
escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import (
    plots,
    plots_estimators,
    plots_finetune,
    plots_rates,
    sentences,
    sentences_estimators,
    sentences_finetune,
    sentences_rates,
)
from smoothlab.stats.smoothness_table import blocks_of, points

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #fff; --row: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa5b1; --line: #3d444d; --page: #14181d; --row: #1c2128; } }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
ul { padding-left: 1.2rem; margin: .6rem 0; } li { margin: .35rem 0; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem; box-sizing: border-box; }
figcaption, caption { color: var(--soft); font-size: .88rem; text-align: left; margin: .4rem 0; }
.wide { overflow-x: auto; break-inside: avoid; }
table { border-collapse: collapse; font-size: .88rem; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem .4rem;
  border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--row); }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; } h2 { break-after: avoid; } .wide { overflow: visible; } }
"""

HOW_TO_READ = (
    "The norm of the Hessian says how fast the gradient turns when the weights move, and so how large a learning rate "
    "they bear: the larger the norm, the smaller the rate. Each block of weights is measured by itself.",
    "Estimated: the estimate of this project, for the mean loss of a minibatch; parentheses hold 95 % intervals.",
    "Appendix D.4: the paper's own settings, unit vectors and a forward difference with a fixed small step. Its "
    "formula as printed sums over the batch and has no sqrt(d), d the number of weights; rescaled means times "
    "sqrt(d)/batch, which makes it comparable.",
    "Rounding floor: what the computer's rounding alone would show where there is no curvature at all. A value near "
    "its floor is mostly rounding; one under twice its floor is not to be trusted and is drawn hollow.",
)


@dataclass(frozen=True)
class Picture:
    """A PNG with the text that stands for it (``alt``) and its caption."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Section:
    """A heading with its pictures, reading sentences and tables, in this order. All text is plain: it is escaped."""

    title: str
    sentences: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def write_report(path: Path, *, title: str, sections: Sequence[Section]) -> Path:
    """Write one self-contained page; returns its path.

    Raises:
        BadInput: where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(title, sections), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}; give a writable folder") from None
    return path


def page(title: str, sections: Sequence[Section]) -> str:
    """One self-contained HTML page."""
    return document(title, "\n".join(_section(section) for section in sections))


def document(title: str, body: str, style: str = STYLE) -> str:
    """A whole page around a body that is HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def demo_report(
    folder: Path,
    records_1a: Any,
    records_1b: Any,
    records_estimators: Any = None,
    records_rates: Any = None,
    records_finetune: Any = None,
) -> Path:
    """Figures (PNG and PDF) and ``index.html`` from the records of the runs, all in ``folder``.

    Args:
        folder: where to write; made if it is not there.
        records_1a: record file, glob pattern or several of them: full fine-tuning.
        records_1b: the same for joint training of base model and PEFT module.
        records_estimators: the same of ``smoothlab estimators``; without them their section is left out.
        records_rates: the same of ``smoothlab rates``.
        records_finetune: the same of ``smoothlab finetune``.

    Returns:
        The path of ``index.html``.

    Raises:
        BadInput: no such records, or they hold no Hessian norms, or the folder cannot be written.
    """
    folder = Path(folder)
    a, b = records.load(records_1a), records.load(records_1b)
    headers = {**a.attrs["headers"], **b.attrs["headers"]}
    told_a, told_b = sentences.fig1a(a), sentences.fig1b(b)
    sections = [
        Section("How to read this page", HOW_TO_READ),
        Section("Figure 1a: the base model along full fine-tuning", told_a, [draw(folder / "fig1a", a, told_a[0])]),
        Section(
            "Figure 1b: base model and PEFT module along joint training", told_b, [draw(folder / "fig1b", b, told_b[0])]
        ),
    ]
    lines, pictures = [], []
    for where, stem, df in (("Along full fine-tuning", "path1a", a), ("Along joint training", "path1b", b)):
        if (df["quantity"] == "gradient_lipschitz").any():
            told = [f"{where}, {line}" for line in sentences.along_path(df)]
            pictures.append(draw(folder / stem, df, told[0]))
            lines += told
    if pictures:
        sections.append(Section("Smoothness along the path of training", lines, pictures))
    doubts: list[str] = []
    if records_estimators is not None:
        c = records.load(records_estimators)
        headers |= c.attrs["headers"]
        sections.append(estimators(folder / "estimators", c))
        doubts = sentences_estimators.uncertain(c)
    if records_rates is not None:
        e = records.load(records_rates)
        headers |= e.attrs["headers"]
        sections.append(rates(folder / "rates", e))
    if records_finetune is not None:
        f = records.load(records_finetune)
        headers |= f.attrs["headers"]
        sections.append(finetune(folder / "finetune", f))
    uncertain = [(name, line) for name, df in (("1a", a), ("1b", b)) for line in sentences.uncertain(df)]
    shared = [line for name, line in uncertain if name == "1a" and ("1b", line) in uncertain]
    own = [f"Figure {name}: {line}" for name, line in uncertain if line not in shared]
    sections += [
        Section("What is uncertain", shared + own + doubts),
        Section("The numbers", tables=[values(a, "Figure 1a"), values(b, "Figure 1b")]),
        Section("Settings", tables=[settings(headers, "config", "How the runs were configured")]),
        Section("Cost", tables=[cost(a, "Figure 1a"), cost(b, "Figure 1b")]),
        Section("Environment", tables=[settings(headers, "environment", "What the runs were measured with")]),
    ]
    return write_report(
        folder / "index.html", title="smoothlab in small: smoothness, estimators, rates, fine-tuning", sections=sections
    )


def estimators(stem: Path, df: pd.DataFrame) -> Section:
    """The section of the zeroth-order estimators, its figure as PNG and PDF."""
    told = sentences_estimators.reading(df)
    alt = f"Zeroth-order gradient estimators: bias, variance, error against the step, cost. {told[0]}"
    caption = (
        "Points are measurements with 95 % intervals, lines are closed forms (for errors of derivatives: predictions). "
        "On cosh the closed form of the bias is exact but for sparse and low-rank directions, where it is the leading "
        "term in mu. Hollow: the interval holds zero. At the foot of the derivatives' panels: the best mu, measured "
        "with its interval, and predicted (black). A dotted line at 1 is an error as large as the derivative."
    )
    picture = Picture(plots.save(plots_estimators.estimators_figure(df), stem)[0].read_bytes(), alt, caption)
    title = "Zeroth-order estimators: bias, variance, rounding, cost"
    return Section(title, [*sentences_estimators.HOW_TO_READ, *told], [picture])


def rates(stem: Path, df: pd.DataFrame) -> Section:
    """The section of the rates of Theorem 3.4, its figure as PNG and PDF."""
    told = sentences_rates.reading(df)
    alt = f"The rates of Theorem 3.4: bounds, counterexample, exponents, two rates, reshuffling. {told[0]}"
    caption = (
        "Points are measurements with 95 % intervals on synthetic objectives, lines are exact recursions of quadratics "
        "or what a theorem asks for. Hollow: the recursion alone, where a run would be too long. Each line of the "
        "first row varies one option of the base."
    )
    picture = Picture(plots.save(plots_rates.rates_figure(df), stem)[0].read_bytes(), alt, caption)
    return Section("Theorem 3.4: does its rate hold, and where does it stop?", told, [picture])


def finetune(stem: Path, df: pd.DataFrame) -> Section:
    """The section of fine-tuning runs (Fig. 3), its figure as PNG and PDF."""
    told = sentences_finetune.reading(df)
    alt = f"Training loss, dev accuracy and test accuracy of hybrid, first-order and zeroth-order runs. {told[0]}"
    caption = (
        "Bands and bars are 95 % intervals of the items of one run; they say nothing of other seeds. A point on a dev "
        "curve is the evaluation whose weights were tested."
    )
    picture = Picture(plots.save(plots_finetune.finetune_figure(df), stem)[0].read_bytes(), alt, caption)
    return Section("Figure 3: hybrid, first-order and zeroth-order fine-tuning", told, [picture])


def draw(stem: Path, df: pd.DataFrame, told: str) -> Picture:
    """Draw what the stem's name says (fig1a, fig1b, path...) as PNG and PDF; ``told`` ends its alternative text."""
    if stem.name.startswith("fig1a"):
        fig, block = plots.figure(7.0, 2.9), blocks_of(df)[0]
        plots.fig1a(fig, df)
        alt = f"Hessian norm of {block} against training step and against its gradient norm"
        caption = (
            "Left: Frobenius norm of the Hessian against the step. Right: the same against the gradient norm, "
            "colored by step. Bars and bands are pointwise 95 % intervals, dashed lines are rounding floors."
        )
    elif stem.name.startswith("fig1b"):
        fig = plots.figure(7.0, 3.9)
        plots.fig1b(fig, df)
        alt = f"Hessian norms of {', '.join(blocks_of(df))} against training step, and the ratio of base to PEFT module"
        caption = (
            "Above: Frobenius norm of each block's own Hessian (log axis). Below: base / PEFT with its 95 % interval."
        )
    else:
        fig = plots.path_figure(df)
        alt = "Change of the gradient per change of the weights, of each block, against training step"
        caption = (
            "Change of the gradient per change of the weights, beside the largest absolute eigenvalue of the block. "
            "The other blocks move in the same step, so that the quotient may exceed it."
        )
    return Picture(plots.save(fig, stem)[0].read_bytes(), f"{alt}. {told}", caption)


def settings(headers: Mapping[str, Mapping[str, Any]], part: str, caption: str) -> Table:
    """One column a run: its ``config`` or ``environment``, nested entries with dotted names."""
    flat = {Path(path).name: _flat(header.get(part, {})) for path, header in headers.items()}
    names = list(dict.fromkeys(name for entries in flat.values() for name in entries))
    return Table(
        caption, ["", *flat], [[name, *(_cell(entries.get(name)) for entries in flat.values())] for name in names]
    )


def cost(df: pd.DataFrame, caption: str) -> Table:
    """Hessian-vector products by protocol and block.

    Norm, eigenvalue and trace of a block at one point share their products, and so do cross blocks: they count once.
    """
    own = df[df["wrt"] == df["block"]]
    hvps = pd.to_numeric(own["hvps"], errors="coerce").fillna(0)
    point = hvps.groupby([own["path"], own["protocol"], own["block"], own["step"]]).max()
    spent = point.groupby(["protocol", "block"]).sum().reset_index()
    rows = [
        [protocol, block, f"{int(count):,}"]
        for protocol, block, count in zip(spent["protocol"], spent["block"], spent["hvps"], strict=True)
    ]
    columns = ["protocol", "block", "products"]
    return Table(f"{caption}: Hessian-vector products", columns, [*rows, ["all", "", f"{int(point.sum()):,}"]])


def values(df: pd.DataFrame, caption: str, at_most: int = 24) -> Table:
    """The drawn Frobenius norms by step, thinned to at most 24 steps; a star marks values under twice their floor."""
    columns = [(b, p) for b in blocks_of(df) for p in dict.fromkeys(df["protocol"]) if len(points(df, b, protocol=p))]
    found = {key: points(df, key[0], protocol=key[1]).groupby("step").first() for key in columns}
    steps = sorted({step for rows in found.values() for step in rows.index})
    if len(steps) > at_most:
        steps = [steps[round(i * (len(steps) - 1) / (at_most - 1))] for i in range(at_most)]
    rows = [[step, *(_value(found[key], step) for key in columns)] for step in steps]
    return Table(
        f"{caption}: Frobenius norm (95 % interval), mean loss; a star marks values under twice their rounding floor",
        ["step", *(f"{block}, {plots.PROTOCOL_LABELS.get(protocol, protocol)}" for block, protocol in columns)], rows,
    )  # fmt: skip


def _value(rows: pd.DataFrame, step: int) -> str:
    if step not in rows.index:
        return ""
    row = rows.loc[step]
    return sentences.with_interval(row) + (" *" if row["below"] else "")


def _flat(entries: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    for picture in section.pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        parts.append(f'<figure><img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">')
        parts.append(f"<figcaption>{escape(picture.caption)}</figcaption></figure>")
    if section.sentences:
        parts.append("<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in section.sentences) + "\n</ul>")
    parts += [_table(table) for table in section.tables]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in table.columns)
    rows = "\n".join(
        "<tr>"
        + f'<th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
