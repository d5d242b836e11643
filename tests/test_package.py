"""The wheel and the source archive: all files of the package, and a clean environment that uses them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import smoothlab

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools writes arguments of its own into sys.argv
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both archives, made from a copy: a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77", reason="building without network needs setuptools >= 77 here")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "smoothlab", source / "smoothlab", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    return out


def files() -> set[str]:
    """Files of the package in the checkout."""
    paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / "smoothlab").rglob("*") if path.is_file())
    return {path for path in paths if "__pycache__" not in path}


def test_both_archives_carry_every_file_of_the_package(built: Path) -> None:
    held = {name for name in zipfile.ZipFile(next(built.glob("*.whl"))).namelist() if name.startswith("smoothlab/")}
    assert held == files()
    assert {"smoothlab/py.typed", "smoothlab/llm/micro/model.safetensors", "smoothlab/llm/micro/tokenizer.json"} <= held
    archive = tarfile.open(next(built.glob("*.tar.gz")))
    names = {name.partition("/")[2] for name in archive.getnames()}
    assert files() <= names and {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_wheel_has_the_command_and_the_version(built: Path) -> None:
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    texts = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "smoothlab = smoothlab.__main__:main" in texts["entry_points.txt"]
    assert f"Version: {smoothlab.__version__}\n" in texts["METADATA"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "Apache License" in texts["LICENSE"]


def disagreements(version: str, citation: str, changelog: str, tags: list[str]) -> list[str]:
    """What contradicts the version: a tag of this commit; once it is no .dev version, citation and changelog."""
    releases = re.findall(r"^## \[(\d\S*)\]", changelog, re.MULTILINE)
    cited = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    found = [f"tag {tag}" for tag in tags if re.match(r"v\d", tag) and tag != f"v{version}"]
    if cited != releases[:1]:
        found.append(f"CITATION.cff {cited}, CHANGELOG.md {releases[:1]}")
    if ".dev" not in version and releases[:1] != [version]:
        found.append(f"CHANGELOG.md {releases[:1]}")
    return found


def test_tag_package_citation_and_changelog_have_one_version() -> None:
    told = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    citation, changelog = (ROOT / "CITATION.cff").read_text(), (ROOT / "CHANGELOG.md").read_text()
    assert not disagreements(smoothlab.__version__, citation, changelog, told.stdout.split())
    release = citation.replace("0.1.0", "0.2.0"), changelog.replace("[0.1.0]", "[0.2.0]")
    assert not disagreements("0.2.0", *release, ["v0.2.0"])
    assert disagreements("0.2.0.dev0", citation, changelog, ["v0.2.0"]) == ["tag v0.2.0"]
    assert len(disagreements("0.2.0", citation, changelog, [])) == 1
    assert len(disagreements("0.2.0.dev0", release[0], changelog, [])) == 1


@pytest.mark.check
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_an_environment_of_its_own_uses_it(kind: str, built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")  # without pip, which would bring an older setuptools
    python = tmp_path / "venv" / "bin" / "python"
    # Dependencies, torch among them, are those of this environment; smoothlab itself must not be.
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    archive = next(built.glob(kind))
    install = [sys.executable, "-m", "pip", "--python", python, "install", *options, archive]
    subprocess.run(install, check=True, env=env, cwd=tmp_path)
    where = [python, "-c", "import smoothlab; print(smoothlab.__file__)"]
    assert str(tmp_path) in subprocess.check_output(where, text=True, env=env, cwd=tmp_path)
    command = [tmp_path / "venv" / "bin" / "smoothlab", "audit", "eq-2", "--out", "out/audit.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["eq-2", "holds"]
    use = (
        "import smoothlab.llm.models as m; print(sum(p.numel() for p in m.load_lm('micro', seed=0).model.parameters()))"
    )
    assert int(subprocess.check_output([python, "-c", use], text=True, env=env, cwd=tmp_path)) > 3_000_000
