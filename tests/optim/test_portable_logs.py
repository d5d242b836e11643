"""Logs of portable directions replay to the same bits under other instruction sets and versions of torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distributions import Gaussian
from tests.optim import portable_log

ROOT = Path(__file__).parents[2]
LOGS = Path(__file__).with_name("logs")
"""Logs that `python -m tests.optim.portable_log write` made under torch 2.13.0 on AVX512."""
WEIGHTS = {
    "gaussian": "1dbefd8bb51bc09d",
    "orthogonal": "116b3ebed0a3d0b3",
    "bfloat16": "610d1bca3b11c7f3",
    "sphere": "9cdf97804d913524",
    "rademacher": "17ee03a0753c6e53",
    "coordinate": "012c18e3efc8ecda",
    "sparse": "b3fa62ba7ac7715a",
    "lowrank": "c7078375e246b36a",
}  # fmt: skip
"""Checksums of the weights that training ended with there."""


def lines(python: str, action: str, folder: Path, **environment: str) -> str:
    command = [python, "-m", "tests.optim.portable_log", action, str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True, text=True).stdout


def test_logs_of_another_machine_replay_to_its_weights() -> None:
    assert portable_log.read(LOGS) == WEIGHTS


def test_a_run_is_replayed_to_the_bit(tmp_path: Path) -> None:
    assert portable_log.write(tmp_path) == portable_log.read(tmp_path)


def test_a_fused_sum_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and sums that are rounded at once, as many machines do, are other weights."""
    from smoothlab.zeroth import directional

    monkeypatch.setattr(directional, "add_scaled", lambda target, z, scale, generator: target.add_(z, alpha=scale))
    monkeypatch.setattr(portable_log, "RUNS", {"gaussian": portable_log.RUNS["gaussian"]})
    assert portable_log.read(LOGS)["gaussian"] != WEIGHTS["gaussian"]


@pytest.mark.check
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_makes_the_same_bits(capability: str, tmp_path: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has one instruction set for torch")
    written = lines(sys.executable, "write", tmp_path, ATEN_CPU_CAPABILITY=capability)
    assert lines(sys.executable, "read", tmp_path) == written


@pytest.mark.slow
@pytest.mark.network
def test_a_log_of_one_version_of_torch_is_read_under_another(tmp_path: Path) -> None:
    """SMOOTHLAB_OTHER_PYTHON names a python with another torch; without it one is installed, of about 5 GB."""
    other = os.environ.get("SMOOTHLAB_OTHER_PYTHON", str(tmp_path / "other/bin/python"))
    if not Path(other).exists():
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "other")], check=True)
        subprocess.run([other, "-m", "pip", "install", "-q", "torch==2.11.0", "numpy", "scipy"], check=True)
    version = subprocess.run([other, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    assert version.stdout.strip() not in ("", torch.__version__)
    for writer, reader in ((other, sys.executable), (sys.executable, other)):
        folder = tmp_path / Path(writer).parent.parent.name / "logs"
        written = lines(writer, "write", folder)
        assert lines(reader, "read", folder) == written


def test_generators_are_not_mixed_up(tmp_path: Path) -> None:
    x = portable_log.start(torch.float32)
    plain, portable = Gaussian(), Gaussian(generator="portable")
    log = SeedLog(tmp_path / "log", 7, {0: x}, {0: portable})
    with pytest.raises(BadInput, match=r"is for portable directions, these are other ones \(torch\)"):
        log.append(0, 0, Directional(plain, (((7, 0, 0, 0), 1.0),)), 1e-3, 0.0)
    with pytest.raises(BadInput, match="its directions are of generator portable, these of torch: use distributions"):
        replay(tmp_path / "log", {0: x}, {0: plain})
    both = {0: x, 1: Block("y", (torch.nn.Parameter(torch.ones(2)),))}
    SeedLog(tmp_path / "both", 7, both, {0: portable, 1: plain}).close()
    assert b'"stream": "cpu/' in (tmp_path / "both").read_bytes(), "what is bound to a machine binds the log"


def test_other_weights_at_step_0_are_refused(tmp_path: Path) -> None:
    x = portable_log.start(torch.float32)
    with torch.no_grad():
        x.params[2][0, 0, 0] += 1
    with pytest.raises(BadInput, match="starts from other weights than these: give the model that its run began with"):
        replay(LOGS / "gaussian.log", {0: x}, {0: portable_log.RUNS["gaussian"][0]})
