"""The environment of a run: versions, machine and commit, which a reader needs to judge or repeat its numbers."""

import importlib.metadata
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGES = ("smoothlab", "torch", "transformers", "peft", "numpy", "scipy", "tokenizers", "safetensors", "gguf")


def environment(**known: Any) -> dict[str, Any]:
    """Facts needed to judge or repeat the numbers: versions, machine, git commit, and what the caller adds.

    Args:
        known: what only the caller knows, e.g. device, threads, dtype.
    """
    packages: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[package] = importlib.metadata.version(package)
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "packages": packages,
        "git": _commit(),
        **known,
    }


def _cpu() -> str | None:
    # On Linux platform.processor() names the architecture or nothing; the model is in /proc.
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _commit() -> str | None:
    """The git commit of the checkout that this package runs from, with "+changes" if files differ; else None."""
    root = Path(__file__).resolve().parents[1]
    # An installed package may lie inside another project's checkout, whose commit git would answer with.
    if not (root / ".git").exists():
        return None
    answers = []
    for command in ("rev-parse HEAD", "status --porcelain --untracked-files=no"):
        try:
            git = ["git", "-C", str(root), *command.split()]
            completed = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(completed.stdout.strip())
    commit, changes = answers
    if changes:
        commit += "+changes"
    return commit
