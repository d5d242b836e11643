"""The README's Python, run as it stands, block after block in one namespace as a reader would paste it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_training_and_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), found)
    start = found["partition"](found["load_lm"]("micro", seed=0).model)["base"].params
    again = found["partition"](found["fresh"])["base"].params
    assert all(p.equal(q) for p, q in zip(found["x"].params, again, strict=True))
    assert not all(p.equal(q) for p, q in zip(found["x"].params, start, strict=True))


def test_moments_and_an_objective() -> None:
    found: dict[str, Any] = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), found)
    assert found["linear_factor"](found["ZerothOrder"](q=4, average="orthogonal"), 100) == 25.0
    assert len(found["found"].average) == 1000 and torch.as_tensor(found["found"].average).isfinite().all()


@pytest.mark.slow
def test_curvature_in_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in BLOCKS[:2]:
        exec(compile(block, "README.md", "exec"), found)
    text = Path("out/hook.jsonl").read_text(encoding="utf-8")
    assert '"block": "base"' in text and '"block": "peft"' in text
