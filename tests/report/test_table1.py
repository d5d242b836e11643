"""figures/table1.py on the records of benchmarks/results/table1, and without any."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("table1", ROOT / "figures" / "table1.py")
assert spec is not None and spec.loader is not None
table1 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table1)


@pytest.mark.check
def test_every_method_is_in_the_table_beside_the_papers_number(capsys):
    assert table1.main([]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    block = lines[lines.index(next(line for line in lines if line.startswith("| sst2 "))) :]
    for name, paper in table1.PAPER.items():
        (row,) = [line for line in block[:10] if line.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert 0 < float(cells[1]) < 100 and cells[3].count(",") == 2 and float(cells[4]) == paper[0]
    assert "| Hybrid-Prompt | eta_y 10, eta_x 3e-4, mu 0.001; eta_y 3, eta_x 3e-4, mu 0.001; " in told
    assert "| 50, 200, 0 | 1e-3, 1e-7; 20,000; mu 1e-5 |" in told and "| ZO-FT | eta_x 1e-4, mu 0.001; " in told
    assert "the larger class, or chance | 50.9" in told and "Hybrid-LoRA less FO-LoRA" in told


def test_without_records_one_line_says_how_to_make_them(capsys, tmp_path):
    assert table1.main(["--records", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("table1: no records in ") and error.count("\n") == 1 and "benchmarks.table1" in error
