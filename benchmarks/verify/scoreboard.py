"""Runs `smoothlab verify` on public packages, each in an environment of its own.

`python -m benchmarks.verify.scoreboard` installs each pinned package where it is missing.

An environment holds the pinned package and what else it needs; torch and smoothlab come from the one that this runs in,
by a .pth file. Rows go to benchmarks/results/scoreboard.jsonl. Not part of CI: it installs from the package index.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

from smoothlab import __version__, record_files
from smoothlab.records import Row, Writer, environment

ROOT = Path(__file__).resolve().parents[2]


class Package(NamedTuple):
    """A step to look at.

    Attributes:
        spec: what pip installs, pinned; "" where the step is written from its description.
        maker: FILE:NAME below benchmarks/verify.
        options: more options of `smoothlab verify`.
    """

    spec: str
    maker: str
    options: tuple[str, ...] = ()


PACKAGES: dict[str, Package] = {
    "smoothlab HybridSGD": Package("", "described.py:hybrid_sgd"),
    "MeZO, as described": Package("", "described.py:mezo"),
    "ZO-Bench ZO-SGD, as described": Package("", "described.py:zo_bench_sgd"),
    "LOZO, as described": Package("", "described.py:lozo"),
    "es-at-scale, as described": Package("", "described.py:es_at_scale"),
    "torchzero MeZO": Package("torchzero==0.4.4", "packages.py:torchzero_mezo"),
    "torchzero SPSA": Package("torchzero==0.4.4", "packages.py:torchzero_spsa"),
    "mezo": Package("mezo==0.0.1", "packages.py:mezo"),
    "zotitan": Package("zotitan==0.1.0", "packages.py:zotitan", ("--dtype", "float32")),
    "zosolvers": Package("zosolvers==0.1.5", "packages.py:zosolvers"),
    "gaussianzeroorder": Package("gaussianzeroorder==0.1.0", "packages.py:gaussianzeroorder"),
    "noisyopt SPSA": Package("noisyopt==0.2.3", "packages.py:noisyopt_spsa"),
    "nevergrad SPSA": Package("nevergrad==1.0.12", "packages.py:nevergrad_spsa"),
    "eggroll-es": Package("eggroll-es==0.2.0", "packages.py:eggroll_es", ("--dtype", "float32")),
    "torcheggroll": Package("torcheggroll==0.2.0", "packages.py:torcheggroll"),
    "evotorch PGPE": Package("evotorch==0.6.1", "packages.py:evotorch_pgpe"),
    "evostra": Package("evostra==2.5.2", "packages.py:evostra"),
    "grad-free-optim NESAdam": Package("grad-free-optim==0.0.4", "packages.py:grad_free_optim", ("--dtype", "float32")),
}


def python_of(package: Package, folder: Path) -> Path:
    """The interpreter of the package's environment, which is made where it is missing."""
    if not package.spec:
        return Path(sys.executable)
    home = folder / package.spec.partition("==")[0].lower()
    python = home / "bin" / "python"
    marker = home / ".installed"
    if not marker.exists():
        venv.create(home, with_pip=False)
        site = next((home / "lib").glob("python*/site-packages"))
        base = [path for path in sys.path if path.endswith("site-packages")]
        (site / "base.pth").write_text("\n".join(base) + "\n")
        subprocess.run([python, "-m", "pip", "install", "-q", package.spec], check=True)
        marker.touch()
    return python


def verified(name: str, package: Package, folder: Path) -> tuple[list[Row], str]:
    """The rows of one package, and the command that made them."""
    out = folder / f"{name.replace(' ', '_')}.jsonl"
    words = ["verify", f"benchmarks/verify/{package.maker}", *package.options]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    command = [python_of(package, folder), "-m", "smoothlab", *words, "--threads", "1", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False, stdout=subprocess.DEVNULL)
    if not out.exists():
        return [], ""
    rows = [row for row in record_files.read(out).rows if row is not None]
    return rows, f"smoothlab {' '.join(words)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of packages; all by default")
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir()) / "smoothlab_scoreboard")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scoreboard.jsonl")
    args = parser.parse_args()
    args.envs.mkdir(parents=True, exist_ok=True)
    writer = Writer(args.out, "scoreboard", {}, environment(device="cpu", threads=1), overwrite=True)
    for name in args.names or PACKAGES:
        package = PACKAGES[name]
        rows, command = verified(name, package, args.envs)
        print(name, len(rows), "rows", flush=True)
        version = package.spec.partition("==")[2] or (__version__ if name.startswith("smoothlab") else None)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        for row in rows:
            writer.write({"package": name, "version": version, "date": date, "command": command, **row})
    writer.end()


if __name__ == "__main__":
    main()
