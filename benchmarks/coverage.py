"""Do the intervals cover? `python -m benchmarks.coverage` simulates `block_norms` on known spectra, stopping included.

One row a spectrum and quantity: the share of simulations whose 95 % interval holds the truth (`value`, with its
Clopper-Pearson limits `low` and `high`), the median half-width beside the ideal one (1.96 standard deviations of the
estimator itself), and the products spent; widths and errors are relative to the truth, but for the trace. A diagonal
matrix serves for any with its eigenvalues, since start vectors and probes are rotation invariant.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.norms import NormEstimate, block_norms
from smoothlab.records import Row, environment, run, whole

DIM = 500


def _top_ten(shape: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Ten eigenvalues of the given shape that hold `share` of ||H||_F^2, the rest equal."""
    rest = np.full(DIM - 10, ((1 - share) / (DIM - 10)) ** 0.5)
    return np.concatenate([share**0.5 * shape / np.linalg.norm(shape), rest * np.where(np.arange(DIM - 10) % 2, 1, -1)])


def spectra() -> dict[str, np.ndarray]:
    """The spectra: broad, decaying, dominated, low rank, indefinite, and a trained block's if its record is there."""
    i = np.arange(1, DIM + 1)
    goe = np.random.default_rng(0).standard_normal((DIM, DIM))
    found = {
        "flat": np.where(i % 2, 1.0, -1.0),
        "semicircle": np.linalg.eigvalsh(goe + goe.T) / (2 * DIM) ** 0.5,
        "power 1/2": i**-0.5,
        "power 1": 1.0 / i,
        "exponential 50": np.exp(-i / 50),
        "outlier": np.where(i == 1, 1.0, 0.03),
        "low rank 3": np.where(i <= 3, 1.0 / i, 0.0),
        "low rank 20, equal": np.where(i <= 20, 1.0, 0.0),
        "ten, geometric": _top_ten(0.7 ** np.arange(10)),
        "ten, harmonic": _top_ten(1 / np.arange(1.0, 11)),
        "ten, even": _top_ten(np.arange(10.0, 0, -1)),
        "ten, alternating signs": _top_ten(np.linspace(1, 0.5, 10) * (-1.0) ** np.arange(10)),
        "ten, equal": _top_ten(np.ones(10)),
    }
    trained = Path(__file__).with_name("results") / "trained_block_spectrum.txt"
    if trained.exists():
        found["trained block of micro"] = np.loadtxt(trained)
    return found


class Diagonal:
    """A Hessian with the given eigenvalues, as block "h"."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        self.diagonal = torch.tensor(eigenvalues, dtype=torch.float64)
        self.blocks = {"h": Block("h", (torch.zeros(len(eigenvalues), dtype=torch.float64),))}
        self.loss = 0.0
        self.gradients = {"h": torch.zeros(len(eigenvalues), dtype=torch.float64)}

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """Elementwise product."""
        return tuple(self.diagonal * v for _ in wrt)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Rounding of fp64, counted as one product as for a model."""
        return 1e-15, 1

    def truth(self) -> dict[str, float]:
        """The quantities that are estimated."""
        h = self.diagonal
        return {"frobenius": float(h.norm()), "spectral": float(h.abs().max()), "trace": float(h.sum())}


def _row(spectrum: str, quantity: str, truth: float, found: list[NormEstimate]) -> Row:
    value, low, high = (np.array([getattr(e, f) for e in found]) for f in ("value", "low", "high"))
    hits = int(((low <= truth) & (truth <= high)).sum())
    interval = stats.binomtest(hits, len(found)).proportion_ci(0.95)
    size = truth if quantity != "trace" else 1.0
    hvps = np.array([e.hvps for e in found])
    ideal = 1.96 * value.std() if quantity != "spectral" else None
    return {
        "spectrum": spectrum, "quantity": quantity, "truth": truth, "simulations": len(found),
        "value": hits / len(found), "low": interval.low, "high": interval.high,
        "half_width": float(np.median(high - low) / 2 / size),
        "ideal_half_width": None if ideal is None else float(ideal / size),
        "error_95": float(np.quantile(np.abs(value - truth), 0.95) / size),
        "hvps": float(np.median(hvps)), "hvps_95": float(np.quantile(hvps, 0.95)),
    }  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """Coverage of the intervals of block_norms.

    Attributes:
        simulations: independent runs per spectrum.
        precision: relative half-width of the Frobenius norm's interval at which a run stops.
        only: names of spectra, all by default.
        seed: first seed.
    """

    name: ClassVar[str] = "coverage"
    unit: ClassVar[str] = "spectrum"
    simulations: int = 2000
    precision: float = 0.05
    only: tuple[str, ...] = ()
    seed: int = 0

    def place(self, row: Row) -> int:
        """The number of the spectrum."""
        return list(spectra()).index(row["spectrum"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Whole spectra stand: each has a row for every quantity."""
        return whole(rows, self.place, lambda row: row["quantity"])

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Three rows a spectrum."""
        behind = {row["spectrum"] for row in done}
        names = [n for n in spectra() if not self.only or n in self.only]
        for name in (n for n in names if n not in behind):
            hessian = Diagonal(spectra()[name])
            found: dict[Any, list[NormEstimate]] = {q: [] for q in hessian.truth()}
            for i in range(self.simulations):
                for e in block_norms(hessian, precision=self.precision, seed=(self.seed + i,)):
                    found[e.quantity].append(e)
            for quantity, truth in hessian.truth().items():
                yield _row(name, quantity, truth, found[quantity])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--only", nargs="*", default=[], help="names of spectra (default all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.jsonl"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Coverage(args.simulations, args.precision, tuple(args.only))
    run(
        experiment,
        args.out,
        environment=environment(device="cpu", dtype="float64", threads=1),
        overwrite=args.overwrite,
    )


if __name__ == "__main__":
    main()
