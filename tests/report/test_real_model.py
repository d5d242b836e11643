"""figures/real_model.py against numbers worked out by hand from records of a few items."""

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from smoothlab import records
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.smoothness import Smoothness

from .curved_path import BASE, PEFT, rows

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("figures_real_model", ROOT / "figures" / "real_model.py")
assert spec is not None and spec.loader is not None
real_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real_model)

FO = Finetune(data="sst2", method="fo-peft", peft="lora", steps=50, batch=8, eta_y=1e-3)
HYBRID = replace(FO, method="hybrid", sides=1)
RUNS = {  # settings, right answers, steps a second
    "zero-shot": (replace(FO, steps=0), "1000", None),
    "sst2-fo-lora-seed0": (FO, "1000", 0.5),
    "sst2-fo-lora-seed1": (replace(FO, seed=1), "1010", 0.5),
    "sst2-zo-seed0": (replace(FO, method="zo", peft="auto"), "0110", 0.25),
    "sst2-zo-seed2": (replace(FO, method="zo", peft="auto", seed=2), "0110", 0.25),
    "sst2-hybrid-lora-seed0": (HYBRID, "1110", 0.25),
    "sst2-hybrid-lora-forwards-seed0": (replace(HYBRID, steps=25), "1000", 0.25),
}


def write(folder: Path) -> None:
    for name, (run, right, speed) in RUNS.items():
        writer = records.Writer(folder / f"{name}.jsonl", "finetune", asdict(run), {})
        forwards = run.steps * run.evaluations
        writer.write({"part": "dev", "trial": 0, "step": run.steps, "forwards": forwards, "steps_per_second": speed})
        correct = right.count("1")
        shifted = {"calibrated_accuracy": 0.5} if not run.steps else {}
        writer.write({"part": "test", **shifted, "eta_x": run.eta_x, "eta_y": run.eta_y, "accuracy": correct / 4,
                      "count": 4, "chance": 0.5, "majority": 0.75, "right": right})  # fmt: skip
        writer.end()
    (folder / "sst2-zo-seed1.jsonl").touch()  # a run that is being started


def test_differences_at_equal_steps_and_forwards(tmp_path: Path) -> None:
    """d = (0, 1, 1, 0), with (1, -1) added: mean 1/3, variance 5/9, of the mean 5/54, Student's t with 5: 2.5706."""
    write(tmp_path)
    table = real_model.differences(real_model.methods_of(tmp_path)["sst2"])
    assert sorted(table["what"]) == [
        "Hybrid-LoRA less FO-LoRA", "Hybrid-LoRA less FO-LoRA", "Hybrid-LoRA less ZO-FT", "ZO-FT less FO-LoRA",
    ]  # fmt: skip
    assert (table["seeds"] == 1).all()  # FO-LoRA has 0 and 1, ZO-FT 0 and 2
    table = table[table["what"] == "Hybrid-LoRA less FO-LoRA"].set_index("budget")
    steps, forwards = table.loc["steps"], table.loc["forwards"]
    half = 2.570582 * (5 / 54) ** 0.5
    assert steps["what"] == "Hybrid-LoRA less FO-LoRA" and steps["steps"] == "50 and 50"
    assert steps[["measured", "low", "high"]].tolist() == pytest.approx([0.5, 1 / 3 - half, 1 / 3 + half])
    # Twice the forwards, at half the steps a second.
    assert steps[["forwards", "seconds"]].tolist() == [2.0, 2.0] and steps["verdict"] == "ties"
    assert forwards["steps"] == "25 and 50" and forwards[["measured", "forwards"]].tolist() == [0.0, 1.0]


def test_tables_and_figure_are_made_of_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert real_model.main(["--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    # Clopper and Pearson's limits of 1 of 4 are 0.63 and 80.59 %, of 2 of 4 6.76 and 93.24 %.
    assert "| FO-LoRA | 50 | 50 | 2 | eta_y 0.001 | 37.5 (6.8 to 93.2) of 4 | 25.0, 50.0 |" in told
    assert "| ZO-FT | 50 | 100 | 4 | eta_x 1e-4 | 50.0 (6.8 to 93.2) of 4 | 50.0, 50.0 |" in told
    assert "| zero-shot | 0 | 0 |  |  | 25.0 (0.6 to 80.6) of 4 | 25.0 |" in told
    assert "| zero-shot, calibrated | 0 | 0 |  |  | 50.0 (6.8 to 93.2) of 4 | 50.0 |" in told
    assert "FO-LoRA, calibrated" not in told
    assert "| the larger class, or chance | | | | | 75.0 | |" in told
    row = "| Hybrid-LoRA less FO-LoRA | steps | 50 and 50 | +50.0 (-44.9 to +111.6) | 1 x 4 | 2.00 x | 2.00 x | ties |"
    assert row in told
    for budget in ("steps", "forwards"):
        assert f"The zeroth-order part beside first-order PEFT at equal {budget} on sst2: ties 1." in told
    assert "An interval of one seed is that of its items" in told
    assert (tmp_path / "out" / "real_differences.png").stat().st_size > 1000


def test_base_over_lora_in_three_norms(tmp_path: Path) -> None:
    path = tmp_path / "fig1-fo-lora-seed0.jsonl"
    writer = records.Writer(path, "smoothness", asdict(Smoothness(method="fo-peft", peft="lora")), {})
    for row in rows([BASE, PEFT], [0, 10, 20]):
        writer.write({"method": "fo-peft"} | {name: value for name, value in row.items() if name != "kind"})
    writer.end()
    lines = real_model.curvature(records.load(path))
    table = pd.DataFrame([[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]])
    written = [json.loads(line) for line in path.read_text().splitlines()]
    values: dict[tuple[str, str], list[float]] = {}
    for row in written:
        if row.get("protocol") == "estimated":
            values.setdefault((row["block"], row["quantity"]), []).append(row["value"])
    per_weight = (49_152 / 3_494_400) ** 0.5
    for line, quantity, factor in ((0, "frobenius", 1.0), (1, "frobenius", per_weight), (2, "spectral", 1.0)):
        pairs = zip(values["base", quantity], values["peft", quantity], strict=True)
        middle = sorted(factor * base / peft for base, peft in pairs)[1]
        assert float(table.loc[line, 2]) == pytest.approx(middle, rel=5e-3)
    assert table[0].tolist() == ["Frobenius norm", "per weight", "spectral norm"] and (table[6] == "3").all()
    assert table[4].tolist() == ["3", "3", "3"] and table[5].tolist() == ["0", "0", "0"]


def test_without_records_one_line_says_how_to_make_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_model.main(["--records", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("real_model: no finished runs in ") and "benchmarks.real_model --run" in line
