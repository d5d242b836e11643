"""The README: an entrance of at most 120 lines, whose three snippets run alone, and twice."""

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_an_entrance_of_120_lines_with_three_snippets() -> None:
    assert len(README.splitlines()) <= 120
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("number", range(3))
def test_each_snippet_runs_alone_and_twice(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # files of the first run must not stop the second one
        namespace: dict[str, Any] = {}
        exec(compile(BLOCKS[number], f"README.md, snippet {number + 1}", "exec"), namespace)
    printed = capsys.readouterr().out
    if number == 0:
        assert printed.count("quantity='frobenius'") == 2
    elif number == 1:
        assert namespace["optimizer"].steps == 3
    else:
        assert 0 < float(printed.splitlines()[-1].removeprefix("tensor(").split(",")[0].rstrip(")")) < 1e4
