"""What is said of BOFT, LoRA-GA and their mix: from this project's records and from made-up ones."""

from pathlib import Path

import numpy as np
import pytest

from smoothlab import records
from smoothlab.claims import second_hybrid
from tests.claims.holding import claim

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
ITEMS = 200


def found(patterns: tuple[str, ...], experiment: str) -> list[Path]:
    paths = [path for pattern in patterns for path in sorted(RESULTS.glob(pattern))]
    return [path for path in paths if records.header(path)["experiment"] == experiment]


def start(folder: Path, method: str, value: float, seed: int = 0) -> Path:
    """A record of curvature before the first step, with an interval of 10 % each way."""
    path = folder / f"{method}-start-{seed}.jsonl"
    out = records.Writer(path, "smoothness", {"model": "micro", "data": "sst2", "peft": method, "seed": seed}, {})
    for block, factor in (("peft", 1.0), ("base", 100.0)):
        size = factor * value
        out.write({
            "step": 0, "protocol": "estimated", "block": block, "wrt": block, "quantity": "frobenius", "value": size,
            "low": 0.9 * size, "high": 1.1 * size,
        })  # fmt: skip
    out.end()
    return path


def run(folder: Path, method: str, right: int, seed: int) -> Path:
    """A record of a run with so many right answers, of other items for every seed and method."""
    path = folder / f"{method}-{seed}.jsonl"
    chosen = np.random.default_rng([seed, len(method)]).permutation(ITEMS) < right
    out = records.Writer(path, "finetune", {"model": "micro", "data": "sst2", "peft": method, "seed": seed}, {})
    out.write({"part": "dev", "trial": 0, "accuracy": 0.5})
    out.write({"part": "test", "trial": 0, "right": "".join(str(int(one)) for one in chosen)})
    out.end()
    return path


@pytest.mark.parametrize("name", ["orthogonal-curvature", "aligned-curvature", "aligned-pays", "mix-pays"])
def test_verdicts(name: str) -> None:
    entry = claim(second_hybrid, name)
    (experiment, *_) = entry.experiments
    finding = entry.finding(0, found(entry.records, experiment))
    assert finding.verdict == entry.verdict
    assert finding.certificates
    assert entry.finding(0).verdict == "open", "without records nothing is known"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"lora": 1.0, "boft": 0.5, "unitary": 0.5}, "holds"),
        ({"lora": 1.0, "boft": 0.5, "unitary": 0.95}, "open"),
        ({"lora": 1.0, "boft": 0.5, "unitary": 2.0}, "open"),
        ({"lora": 1.0, "boft": 2.0, "unitary": 2.0}, "false as printed"),
        ({"lora": 1.0}, "open"),
    ],
)
def test_norms_are_compared_by_intervals(tmp_path: Path, values: dict[str, float], verdict: str) -> None:
    paths = [start(tmp_path, method, value) for method, value in values.items()]
    assert claim(second_hybrid, "orthogonal-curvature").finding(0, paths).verdict == verdict


def test_norms_of_two_minibatches_are_not_mixed(tmp_path: Path) -> None:
    paths = [start(tmp_path, "lora", 1.0, seed=0), start(tmp_path, "lora-ga", 3.0, seed=1)]
    assert not claim(second_hybrid, "aligned-curvature").finding(0, paths).certificates


@pytest.mark.parametrize(
    ("right", "seeds", "verdict"),
    [
        ({"boft-ga": 180, "boft": 120, "lora-ga": 120}, 3, "holds"),
        ({"boft-ga": 180, "boft": 120, "lora-ga": 180}, 3, "open"),
        ({"boft-ga": 120, "boft": 180, "lora-ga": 180}, 3, "false as printed"),
        ({"boft-ga": 180, "boft": 120, "lora-ga": 120}, 1, "open"),  # says nothing of other seeds
    ],
)
def test_accuracies_are_compared_over_seeds(tmp_path: Path, right: dict[str, int], seeds: int, verdict: str) -> None:
    paths = [run(tmp_path, method, count, seed) for method, count in right.items() for seed in range(seeds)]
    assert claim(second_hybrid, "mix-pays").finding(0, paths).verdict == verdict
