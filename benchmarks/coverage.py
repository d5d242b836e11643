"""Do the intervals cover? `python -m benchmarks.coverage` simulates `Hessian.norms` on known spectra and its stopping.

One row a spectrum and quantity: the share of simulations whose 95 % interval holds the truth (`value`, with its
Clopper-Pearson limits `low` and `high`), the bias of the estimate with its standard error and z-score (for the spectral
norm, a lower bound, how much it is low), the median half-width beside the ideal one (1.96 standard deviations of the
estimator itself), for the spectral norm the upper bound over the estimate (median and 95 % quantile), and the products
spent; widths, biases and errors are relative to the truth, but for the trace. A diagonal matrix serves for any with its
eigenvalues, since start vectors and probes are rotation invariant. Cross blocks H_ba, measured along with H_aa and
H_bb, whose precision is what stops them, have a row each. Diagonal matrices have exact products; a tanh network in
fp32 shows what rounding does, and probes that are differences of gradients.
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
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.norms import Hessian, NormEstimate
from smoothlab.records import Row, environment, run

DIM = 500


def _top_ten(shape: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Ten eigenvalues of the given shape that hold `share` of ||H||_F^2, the rest equal."""
    remaining = np.full(DIM - 10, ((1 - share) / (DIM - 10)) ** 0.5)
    return np.concatenate(
        [share**0.5 * shape / np.linalg.norm(shape), remaining * np.where(np.arange(DIM - 10) % 2, 1, -1)]
    )


def spectra() -> dict[str, np.ndarray]:
    """The spectra: broad, decaying, dominated, low rank, indefinite, and a trained block's if its record is there."""
    i = np.arange(1, DIM + 1)
    goe = np.random.default_rng(0).standard_normal((DIM, DIM))
    by_name = {
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
        by_name["trained block of micro"] = np.loadtxt(trained)
    return by_name


SIZES = (120, 80)  # of the two blocks of a cross block


def couplings() -> dict[str, np.ndarray]:
    """Symmetric matrices of two blocks: a cross block as large as theirs, of rank one, decaying, or off their tops."""
    a, b = SIZES
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((a + b, a + b))
    cross = rng.standard_normal(SIZES)
    decay = 1 / np.arange(1.0, a + 1)[:, None] / np.arange(1.0, b + 1)
    hidden = np.where((np.arange(a) >= 60)[:, None] & (np.arange(b) >= 40), cross, 0.0)
    matrices = {"cross, dense": (noise + noise.T) / 2}
    kinds = {"cross, one pair": np.outer(cross[:, 0], cross[0]), "cross, decaying": cross * decay,
             "cross, off the top": hidden, "cross, small": 0.01 * cross}  # fmt: skip
    for name, block in kinds.items():
        h = np.diag(np.concatenate([1 / np.arange(1.0, a + 1), 2 / np.arange(1.0, b + 1)]))
        h[:a, a:], h[a:, :a] = block, block.T
        matrices[name] = h
    return matrices


class Coupled(Hessian):
    """A dense Hessian of blocks "a" and "b"."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = torch.tensor(matrix)
        self.blocks = {n: Block(n, (torch.zeros(d, dtype=torch.float64),)) for n, d in zip("ab", SIZES, strict=True)}
        self.loss = 0.0
        self.gradients = {name: torch.zeros(block.dim, dtype=torch.float64) for name, block in self.blocks.items()}

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """H_bc v for the blocks b in `wrt`, c = `along`."""
        rows = {"a": slice(0, SIZES[0]), "b": slice(SIZES[0], None)}
        return tuple(self.matrix[rows[name], rows[along]] @ v for name in wrt)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Rounding of fp64, counted as one product as for a model."""
        return 1e-15, 1

    def truth(self) -> float:
        """||H_ba||_F."""
        return float(self.matrix[SIZES[0] :, : SIZES[0]].norm())


class Diagonal(Hessian):
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


NETWORKS: dict[str, dict[str, Any]] = {
    "network, products": {"quotients": False},
    "network, quotients": {},
    "network, rough quotients": {"speed": 40.0},
}
"""Options of `network` by name."""


def network(*, quotients: bool = True, speed: float = 1.0, dtype: torch.dtype = torch.float32) -> ExactHessian:
    """A tanh layer of 64 x 64 weights, block "h", on 12 inputs, with the mean of sin(speed * outputs)^2 / speed^2.

    Its probes are forward differences of gradients where `quotients` allows it; the larger `speed`, the longer are
    third derivatives beside the Hessian, and the differences' error.
    """
    generator = torch.Generator().manual_seed(3)
    weights, readout = (torch.randn(n, 64, generator=generator, dtype=torch.float64).to(dtype) / 8 for n in (64, 4))
    inputs = torch.randn(12, 64, generator=generator, dtype=torch.float64).to(dtype)
    parameter = torch.nn.Parameter(weights)

    def loss() -> Tensor:
        outputs = torch.tanh(inputs @ parameter.T) @ readout.T
        return (speed * outputs).sin().square().mean() / speed**2

    return ExactHessian(loss, [Block("h", (parameter,))], quotients=quotients)


def whole(hessian: ExactHessian) -> dict[str, float]:
    """The quantities that are estimated, from a product along each coordinate."""
    dim = hessian.blocks["h"].dim
    unit = torch.zeros(dim, dtype=torch.float64)
    matrix = torch.empty(dim, dim, dtype=torch.float64)
    for i in range(dim):
        unit[i] = 1
        (matrix[i],) = hessian.product(unit, "h", ["h"])
        unit[i] = 0
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    return {"frobenius": float(matrix.norm()), "spectral": norm, "trace": float(matrix.trace())}


def summary(spectrum: str, quantity: str, truth: float, estimates: Sequence[NormEstimate]) -> Row:
    """One row: the coverage of estimates of one truth, their bias, widths and cost."""
    value, low, high = (np.array([getattr(e, f) for e in estimates]) for f in ("value", "low", "high"))
    hits = int(((low <= truth) & (truth <= high)).sum())
    interval = stats.binomtest(hits, len(estimates)).proportion_ci(0.95)
    size = truth if quantity != "trace" else 1.0
    hvps = np.array([e.hvps for e in estimates])
    ideal = 1.96 * value.std() if quantity != "spectral" else None
    error = value.std(ddof=1) / len(estimates) ** 0.5
    above = high / value if quantity == "spectral" else None
    return {
        "spectrum": spectrum, "quantity": quantity, "truth": truth, "simulations": len(estimates),
        "value": hits / len(estimates), "low": interval.low, "high": interval.high,
        "half_width": float(np.median(high - low) / 2 / size),
        "ideal_half_width": None if ideal is None else float(ideal / size),
        "bias": float((value.mean() - truth) / size), "bias_error": float(error / size),
        "bias_z": float((value.mean() - truth) / error) if error > 1e-12 * size else None,
        "error_95": float(np.quantile(np.abs(value - truth), 0.95) / size),
        "bound": None if above is None else float(np.median(above)),
        "bound_95": None if above is None else float(np.quantile(above, 0.95)),
        "hvps": float(np.median(hvps)), "hvps_95": float(np.quantile(hvps, 0.95)),
    }  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """Coverage of the intervals of Hessian.norms.

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
        """The number of the spectrum or cross block."""
        return self.names().index(row["spectrum"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of complete spectra are kept: each has a row for every quantity; a cross block has one row."""
        present = [row for row in rows if row is not None]
        quantities: dict[str, list[str]] = {}
        for row in present:
            quantities.setdefault(row["spectrum"], []).append(row["quantity"])
        complete = (["cross"], ["frobenius", "spectral", "trace"])
        return [row for row in present if sorted(quantities[row["spectrum"]]) in complete]

    def names(self) -> list[str]:
        """Spectra, cross blocks and networks, in order."""
        return [n for n in [*spectra(), *couplings(), *NETWORKS] if not self.only or n in self.only]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Three rows a spectrum, and one a cross block."""
        finished = {row["spectrum"] for row in done}
        for name in (n for n in self.names() if n not in finished):
            yield from self._cross(name) if name in couplings() else self._spectrum(name)

    def _cross(self, name: str) -> Iterator[Row]:
        hessian = Coupled(couplings()[name])
        options: dict[str, Any] = {"cross": [("b", "a")], "precision": self.precision}
        estimates = [hessian.norms(seed=(self.seed + i,), **options)[-1] for i in range(self.simulations)]
        yield summary(name, "cross", hessian.truth(), estimates)

    def _spectrum(self, name: str) -> Iterator[Row]:
        hessian: Hessian
        if name in NETWORKS:
            hessian = network(**NETWORKS[name])
            truths = whole(network(**NETWORKS[name], dtype=torch.float64))
        else:
            hessian = Diagonal(spectra()[name])
            truths = hessian.truth()
        estimates: dict[Any, list[NormEstimate]] = {q: [] for q in truths}
        for i in range(self.simulations):
            for e in hessian.norms(precision=self.precision, seed=(self.seed + i,)):
                estimates[e.quantity].append(e)
        for quantity, truth in truths.items():
            yield summary(name, quantity, truth, estimates[quantity])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0, help="of the first simulation")
    parser.add_argument("--only", nargs="*", default=[], help="names of spectra (default all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.jsonl"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Coverage(args.simulations, args.precision, tuple(args.only), args.seed)
    run(
        experiment,
        args.out,
        environment=environment(device="cpu", dtype="float64", threads=1),
        overwrite=args.overwrite,
    )


if __name__ == "__main__":
    main()
