"""Writes small logged runs with portable directions, and reads them again, under whichever torch runs it.

    python -m tests.optim.portable_log write FOLDER    trains, and prints a checksum of each run's last weights
    python -m tests.optim.portable_log read FOLDER     replays, and prints the same

Two pythons with different versions of torch, or different ATEN_CPU_CAPABILITY, must print the same for one folder. It
imports no more than torch and numpy, so that any environment with these can run it.
"""

import hashlib
import sys
from pathlib import Path

import torch
from torch import nn

from smoothlab.blocks import Block
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, named
from smoothlab.zeroth.estimators import ZerothOrder

STEPS = 4
RUNS: dict[str, tuple[Distribution, int, str, torch.dtype]] = {
    "gaussian": (named("gaussian", generator="portable"), 3, "plain", torch.float32),
    "orthogonal": (Gaussian(generator="portable"), 3, "orthogonal", torch.float32),
    "bfloat16": (named("gaussian", generator="portable"), 1, "plain", torch.bfloat16),
    "sphere": (named("sphere", generator="portable"), 1, "plain", torch.float64),
    "rademacher": (named("rademacher", generator="portable"), 2, "plain", torch.float32),
    "coordinate": (named("coordinate", generator="portable"), 1, "plain", torch.float32),
    "sparse": (named("sparse(0.3)", generator="portable"), 1, "plain", torch.float32),
    "lowrank": (named("lowrank(3)", generator="portable"), 2, "plain", torch.float32),
}


def start(dtype: torch.dtype) -> Block:
    """Weights of simple fractions, the same on every machine."""
    shapes = ((70, 31), (1001,), (3, 5, 7))
    params = []
    for shape in shapes:
        count = torch.Size(shape).numel()
        params.append(nn.Parameter(((torch.arange(count) * 37 % 101 - 50) / 64).to(dtype).view(shape)))
    return Block("x", tuple(params))


def checksum(block: Block) -> str:
    """Of all weights to the bit."""
    digest = hashlib.sha256()
    for p in block.params:
        digest.update(p.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write(folder: Path) -> dict[str, str]:
    """Train and log every run; the checksums of the last weights."""
    checksums = {}
    for name, (distribution, q, average, dtype) in RUNS.items():
        x = start(dtype)
        oracle = ZerothOrder(0.01, q=q, average=average, distribution=distribution)  # type: ignore[arg-type]
        group = {"params": x.params, "lr": 0.003, "oracle": oracle, "name": "x", "weight_decay": 0.1}
        log = SeedLog(folder / f"{name}.log", 7, {0: x}, {0: distribution})
        optimizer = HybridSGD([group], seed=7, log=log)
        for _ in range(STEPS):
            optimizer.step(lambda x=x: torch.stack([p.double().cos().sum() for p in x.params]).sum())
        log.close()
        checksums[name] = checksum(x)
    return checksums


def read(folder: Path) -> dict[str, str]:
    """Replay every log of the folder; the checksums of the last weights."""
    checksums = {}
    for name, (distribution, _, _, dtype) in RUNS.items():
        x = start(dtype)
        assert replay(folder / f"{name}.log", {0: x}, {0: distribution}) == STEPS
        checksums[name] = checksum(x)
    return checksums


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, text in {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2])).items():
        print(name, text)
