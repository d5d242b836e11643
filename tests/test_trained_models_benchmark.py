"""`python -m benchmarks.trained_models` for a few steps: what it leaves, and that it is made once."""

from pathlib import Path

import pytest

from benchmarks import trained_models
from benchmarks.trained_models import SHAPES, main


@pytest.mark.check
@pytest.mark.parametrize("name", SHAPES)
def test_a_model_is_trained_saved_and_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig

    command = ["trained_models", name, "--folder", str(tmp_path), "--steps", "4", "--items", "128"]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 1, "four steps leave it at chance"
    told = capsys.readouterr()
    assert f"{name} is not above the larger class: train it for more --steps" in told.err
    config = AutoConfig.from_pretrained(tmp_path / name / "model")
    for option, value in SHAPES[name].options.items():
        assert getattr(config, option) == value
    monkeypatch.setattr(trained_models, "write_random", None)  # is not called again
    weights = (tmp_path / name / "model" / "model.safetensors").read_bytes()
    assert main() == 1
    assert capsys.readouterr().out == told.out
    assert (tmp_path / name / "model" / "model.safetensors").read_bytes() == weights
