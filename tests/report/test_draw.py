"""figures/draw.py on the records of benchmarks/results, and without any."""

import pytest

from figures import draw


def test_a_figure_is_drawn_and_its_comparisons_are_printed(capsys, tmp_path):
    assert draw.main(["fig3", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"fig3.png", "fig3.pdf"}
    assert "Hybrid-LoRA less ZO-FT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [(["fig9"], "fig9: no such figure: name some of fig1a, "), (["rates", "--records", "x"], "rates: no record file")],
)
def test_what_cannot_be_drawn_is_one_line(capsys, options, words):
    assert draw.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith(words) and error.count("\n") == 1
