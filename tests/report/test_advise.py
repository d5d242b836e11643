"""The page's section on advice: what is advised stands first, limits are compared, short runs are drawn."""

import json
from pathlib import Path

from smoothlab import records
from smoothlab.report import advise, draw, page

ROWS = [
    {"part": "limit", "option": "eta_y", "source": "predicted", "condition": "exact", "value": 0.5, "low": 0.2,
     "high": 2.0},
    {"part": "trial", "option": "eta_y", "rate": 0.5, "run": 0, "loss_before": 1.0, "loss_after": 0.8, "steps": 5},
    {"part": "trial", "option": "eta_y", "rate": 1.5, "run": 1, "loss_before": 1.0, "loss_after": None, "steps": 2},
    {"part": "limit", "option": "eta_y", "source": "predicted and tried", "condition": "loss above its start",
     "value": 0.9, "low": 0.6, "high": 1.4},
    {"part": "comparison", "factor": 1.0, "loss_before": 1.0, "loss_after": 0.25, "steps": 200},
    {"part": "comparison", "factor": 0.5, "loss_before": 1.0, "loss_after": 0.5, "steps": 200},
    {"part": "comparison", "factor": 2.0, "loss_before": 1.0, "loss_after": None, "steps": 7},
    {"part": "advice", "option": "eta_y", "source": "predicted and tried", "weakest": "that curvature stays",
     "value": 0.45, "low": 0.3, "high": 0.7},
    {"part": "cost", "forwards": 100, "seconds": 1.0, "training_steps": 30.0, "command": "smoothlab finetune"},
]  # fmt: skip


def written(folder: Path) -> Path:
    head = {"kind": "header", "experiment": "advise", "config": {"model": "micro", "data": "builtin"}}
    lines = [{**head, "environment": {}}, *({"kind": "row", **row} for row in ROWS)]
    path = folder / "advise.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_limits_and_advice_are_the_table(tmp_path: Path) -> None:
    table = advise.limits(records.load(written(tmp_path)))
    assert list(table["what"]) == ["predicted by exact", "predicted and tried", ""]
    assert list(table["quantity"]) == ["eta_y"] * 3 and list(table["value"]) == [0.5, 0.9, 0.45]


def test_the_text_says_how_longer_runs_ended(tmp_path: Path) -> None:
    assert advise.text(records.load(written(tmp_path)))[-3] == (
        "loss of longer runs, 1 at the start: 0.5 times the usual rates 0.500, 1 times the usual rates 0.250, "
        "2 times the usual rates unstable after 7 steps"
    )


def test_the_page_says_what_is_advised_and_draws_the_runs(tmp_path: Path) -> None:
    path = written(tmp_path)
    (section,) = page.sections_of([path])
    assert section.title == "Which learning rates: micro on builtin" and len(section.pictures) == 1
    assert [row["value"] for row in section.advised] == [0.45] and len(section.rows) == 3
    html = page.page([section], "advice")
    assert "Advised: eta_y 0.450 (0.300 to 0.700), predicted and tried." in " ".join(html.split())
    (axes,) = draw("advise", records.load(path)).axes
    marks = {line.get_label(): len(line.get_xdata()) for line in axes.lines if line.get_marker() in "os"}
    assert marks == {"stable run": 1, "unstable run": 1}


def test_limits_stand_above_the_losses_with_their_intervals(tmp_path: Path) -> None:
    (axes,) = draw("advise", records.load(written(tmp_path))).axes
    bars = [bar.get_segments()[0] for bar in axes.collections if bar.get_label() == "_interval"]
    assert [(bar[0, 0], bar[1, 0]) for bar in bars] == [(0.2, 2.0), (0.6, 1.4)]
    marks = [line for line in axes.lines if line.get_marker() == "D"]
    names = {line.get_color(): line.get_label() for line in marks if not len(line.get_xdata())}
    limits = {names[line.get_color()]: line.get_xdata()[0] for line in marks if len(line.get_xdata())}
    assert limits == {"limit predicted (eigenvalue)": 0.5, "limit predicted and tried": 0.9}
    losses = max(line.get_ydata()[0] for line in axes.lines if line.get_marker() in "os")
    assert losses < bars[0][0, 1] < bars[1][0, 1] < axes.get_ylim()[1] and max(axes.get_yticks()) <= losses
