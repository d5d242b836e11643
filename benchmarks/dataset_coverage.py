"""Do the intervals of a data set's Hessian cover? `python -m benchmarks.dataset_coverage --data-dir DIR`.

For each data set, `micro` with LoRA of rank 1 takes some Adam steps; the Hessian of each of 64 items with respect to
the LoRA matrix B of its first queries (192 weights) is computed whole, so that the mean matrix is the truth. Then
`DatasetHessian.norms` is simulated with these matrices in place of the model: minibatches of 8 items are drawn anew,
directions too. One row a data set and quantity: the share of runs whose 95 % interval holds the truth with its
Clopper-Pearson limits, the bias with its z-score, half-widths, products, and the p-value of the exact binomial test of
"the coverage is at least 95 %"; beside it the share of the intervals of one minibatch (`Hessian.norms`) that hold it.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from benchmarks.coverage import summary
from smoothlab.blocks import Block, differentiable, fixed_loss
from smoothlab.hessian.dataset import DatasetHessian, DatasetNorm, redraw
from smoothlab.hessian.norms import Hessian
from smoothlab.records import Row, environment, run

ITEMS = 64
BATCH = 8
STEPS = 30


def matrices(data: str, data_dir: Path | None, seed: int) -> Tensor:
    """Hessians [ITEMS, d, d] of single items' losses."""
    from smoothlab.experiments.finetune.experiment import Finetune

    training = Finetune(
        data=data, data_dir=data_dir, method="fo-peft", peft="lora", rank=1, steps=STEPS, train=500, dev=8, test=8,
        seed=seed,
    )  # fmt: skip
    setup = training.setup()
    list(setup.trainer().train(STEPS))
    layer = [
        p for name, p in setup.model.named_parameters() if p.requires_grad and ".0." in name and "q_proj.lora_B" in name
    ]
    block = Block("lora", tuple(layer))
    rows = []
    with differentiable([block]), sdpa_kernel(SDPBackend.MATH):
        for item in range(ITEMS):
            minibatch = setup.minibatch([item])
            loss = fixed_loss(lambda m=minibatch: setup.loss(setup.model, m), setup.model)
            gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), block.params, create_graph=True)])
            # All columns at once: a product of so short a row takes longer to call than to compute.
            columns = torch.autograd.grad(gradient, block.params, torch.eye(block.dim), is_grads_batched=True)
            h = torch.cat([c.reshape(block.dim, -1) for c in columns], 1)
            rows.append((h + h.T).double() / 2)
    return torch.stack(rows)


class Dense(Hessian):
    """A known matrix as block "h"."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        zeros = matrix.new_zeros(len(matrix))
        self.blocks, self.loss, self.gradients = {"h": Block("h", (zeros,))}, 0.0, {"h": zeros}

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """Matrix times vector."""
        return (self.matrix @ v,)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Rounding of fp64, counted as one product as for a model."""
        return 1e-15, 1


class Drawn(DatasetHessian):
    """`DatasetHessian` with the items' matrices in place of the model: the same minibatches, directions and steps."""

    def __init__(self, items: Tensor, seed: int) -> None:
        self.blocks, self.seed, self.losses, self.grad_norms = Dense(items[0]).blocks, (seed,), [], {}
        self._items = items
        numbers: Any = range(len(items))
        self._minibatches = redraw(DataLoader(numbers, batch_size=BATCH), (seed,))

    def minibatch(self, names: Sequence[str]) -> Dense:
        """The mean matrix of the next minibatch."""
        return Dense(self._items[next(self._minibatches)].mean(0))


@dataclass(frozen=True)
class DatasetCoverage:
    """Coverage of the intervals of DatasetHessian.norms on `micro`.

    Attributes:
        data: names of data sets.
        data_dir: folder with the tasks' files.
        simulations: independent runs per data set.
        precision: relative half-width at which a run stops.
        budget: products at which it stops all the same.
        seed: first seed.
    """

    name: ClassVar[str] = "dataset_coverage"
    unit: ClassVar[str] = "data set"
    data: tuple[str, ...] = ("builtin", "sst2", "wic")
    data_dir: Path | None = None
    simulations: int = 2000
    precision: float = 0.2
    budget: int = 1000
    seed: int = 0

    def place(self, row: Row) -> int:
        """The number of the data set."""
        return self.data.index(row["spectrum"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of whole data sets: two each."""
        present = [row for row in rows if row is not None]
        return present[: len(present) // 2 * 2]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Two rows a data set."""
        for name in self.data[len(done) // 2 :]:
            items = matrices(name, self.data_dir if name != "builtin" else None, self.seed)
            yield from self._rows(name, items)

    def _rows(self, name: str, items: Tensor) -> Iterator[Row]:
        mean = items.mean(0)
        truths = {"frobenius": float(mean.norm()), "trace": float(mean.trace())}
        estimates: dict[str, list[DatasetNorm]] = {quantity: [] for quantity in truths}
        covered_by_one = dict.fromkeys(truths, 0)
        for i in range(self.simulations):
            hessian = Drawn(items, self.seed + i)
            for estimate in hessian.norms(precision=self.precision, budget=self.budget):
                estimates[estimate.quantity].append(estimate)
            for single in hessian.minibatch(["h"]).norms(precision=0.05, seed=(self.seed + i,)):
                if single.quantity in truths:
                    covered_by_one[single.quantity] += single.low <= truths[single.quantity] <= single.high
        for quantity, truth in truths.items():
            replicates = estimates[quantity]
            row = summary(name, quantity, truth, replicates)
            hits = round(row["value"] * len(replicates))
            flags = sum(e.flag is not None for e in replicates)
            yield {
                **row, "dim": len(mean), "items": len(items),
                "p_value": float(stats.binomtest(hits, len(replicates), 0.95, alternative="less").pvalue),
                "sampling_share": float(np.median([e.sampling_share for e in replicates])),
                "minibatches": float(np.median([e.minibatches for e in replicates])),
                "not_reached": flags / len(replicates), "one_minibatch": covered_by_one[quantity] / len(replicates),
            }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=list(DatasetCoverage.data))
    parser.add_argument("--data-dir", type=Path, help="folder with the tasks' files; builtin needs none")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--precision", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dataset_coverage.jsonl"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = DatasetCoverage(tuple(args.data), args.data_dir, args.simulations, args.precision)
    run(experiment, args.out, environment=environment(device="cpu", threads=1), overwrite=args.overwrite)


if __name__ == "__main__":
    main()
