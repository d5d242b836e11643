import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import smoothlab

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that `pip install .` makes, from a copy: a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77", reason="building without network needs setuptools >= 77 here")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "smoothlab", source / "smoothlab", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, source]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options], check=True)
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_the_wheel_carries_every_file_of_the_package(wheel):
    held = {name for name in wheel.namelist() if name.startswith("smoothlab/")}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "smoothlab").rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name}
    assert held == there
    assert {"smoothlab/py.typed", "smoothlab/llm/micro/model.safetensors", "smoothlab/llm/micro/tokenizer.json"} <= held


def test_the_wheel_has_the_command_and_the_version(wheel):
    told = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "smoothlab = smoothlab.__main__:main" in told["entry_points.txt"]
    assert f"Version: {smoothlab.__version__}\n" in told["METADATA"]
    assert "License-Expression: Apache-2.0" in told["METADATA"]
    assert "Apache License" in told["LICENSE"]
