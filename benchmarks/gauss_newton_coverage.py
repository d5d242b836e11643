"""Do the intervals of the Gauss-Newton trace cover? `python -m benchmarks.gauss_newton_coverage`.

tr G = ||A||_F^2 with one column of A for each output (`smoothlab.hessian.gauss_newton`). Of `micro` after some Adam
steps of LoRA on the built-in task, A [d, n] of n items is computed column by column, which gives the exact trace; of a
small net the whole Jacobian is. Probes depend on A by its Gram matrix K = A'A alone, so that `gauss_newton_trace` is
simulated with a linear model of two classes that has the same K. One row a block, as in
benchmarks/coverage.py, with the p-value of the exact binomial test of "the coverage is at least 95 %".
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.coverage import summary
from smoothlab.blocks import Block, differentiable, fixed_loss, flatten
from smoothlab.hessian.gauss_newton import Outputs, gauss_newton_trace
from smoothlab.records import Row, environment, run

ITEMS, STEPS = 64, 30
MODELS = ("micro, builtin", "small net")


def columns(outputs: Outputs, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Gram matrices A'A [n, n] of each block's part of A, and of all blocks together under "all".

    Column (n, i) is J_n' times column i of a root of w_n (diag p_n - p_n p_n').
    """
    rows: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    params = [p for block in blocks for p in block.params]
    for f, weight in zip(outputs.logits, outputs.weights, strict=True):
        p = f.detach().double().softmax(0)
        values, vectors = torch.linalg.eigh(weight.double() * (torch.diag(p) - torch.outer(p, p)))
        for value, vector in zip(values[1:], vectors.T[1:], strict=True):  # the first is 0, that of equal logits
            direction = (value.clamp_min(0).sqrt() * vector).to(f.dtype)
            gradients = iter(torch.autograd.grad(f, params, direction, retain_graph=True))
            for block in blocks:
                rows[block.name].append(flatten(next(gradients) for _ in block.params))
    grams = {}
    for name, parts in rows.items():
        a = torch.stack(parts)
        # Chunks in fp64: a product of fp32 rows of millions of entries is off by its rounding.
        grams[name] = sum((chunk.double() @ chunk.double().T for chunk in a.split(1 << 18, 1)), torch.zeros(()))
    grams["all"] = sum(grams.values(), torch.zeros(()))
    return grams


def micro(seed: int = 0, items: int = ITEMS, steps: int = STEPS) -> dict[str, Tensor]:
    """Gram matrices of `micro` with LoRA on the first items of the built-in task, after some steps."""
    from smoothlab.experiments.finetune.experiment import Finetune
    from smoothlab.llm.outputs import loss_outputs

    training = Finetune(data="builtin", method="fo-peft", peft="lora", steps=steps, train=200, dev=8, test=8, seed=seed)
    setup = training.setup()
    list(setup.trainer().train(steps))
    peft = [p for p in setup.model.parameters() if p.requires_grad]
    base = [p for name, p in setup.model.named_parameters() if not p.requires_grad and ".0." in name]
    blocks = [Block("first layer", tuple(base)), Block("peft", tuple(peft))]
    with differentiable(blocks):
        minibatch = setup.minibatch(list(range(items)))
        outputs = fixed_loss(lambda: loss_outputs(setup.model, minibatch), setup.model)()
        return columns(outputs, blocks)


def small_net(seed: int = 0) -> dict[str, Tensor]:
    """Gram matrices of a net of two layers with 40 outputs of 4 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, last, inputs = nn.Linear(4, 5).double(), nn.Linear(5, 4).double(), torch.randn(40, 4).double()
    blocks = [Block("first", tuple(first.parameters())), Block("last", tuple(last.parameters()))]
    return columns(Outputs(last(torch.tanh(first(inputs))), torch.full((40,), 1 / 40)), blocks)


class Linear:
    """Outputs of two classes, f_n = (0, 2 l_n'w), at w = 0: p = 1/2, and A has the rows l_n of a root of K."""

    def __init__(self, gram: Tensor) -> None:
        values, vectors = torch.linalg.eigh(gram)
        self.root = vectors * values.clamp_min(0).sqrt()
        self.w = nn.Parameter(torch.zeros(len(gram), dtype=torch.float64))
        self.block = Block("w", (self.w,))

    def __call__(self) -> Outputs:
        """Outputs with unit weights."""
        scores = 2 * self.root @ self.w
        return Outputs(torch.stack([torch.zeros_like(scores), scores], 1), torch.ones(len(scores)))


@dataclass(frozen=True)
class GaussNewtonCoverage:
    """Coverage of the intervals of gauss_newton_trace.

    Attributes:
        models: names of MODELS.
        simulations: independent runs per block.
        precision: half-width relative to the trace at which a run stops.
        seed: of the model, and first seed of the runs.
    """

    name: ClassVar[str] = "gauss_newton_coverage"
    unit: ClassVar[str] = "model"
    models: tuple[str, ...] = MODELS
    simulations: int = 1000
    precision: float = 0.2
    seed: int = 0

    def place(self, row: Row) -> int:
        """The number of the model."""
        return self.models.index(row["spectrum"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of whole models: three blocks each."""
        present = [row for row in rows if row is not None]
        return present[: len(present) // 3 * 3]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Three rows a model."""
        for name in self.models[len(done) // 3 :]:
            make = {"micro, builtin": micro, "small net": small_net}[name]
            yield from self.simulated(name, make(self.seed))

    def simulated(self, name: str, grams: Mapping[str, Tensor]) -> Iterator[Row]:
        """A row for each block."""
        for block, gram in grams.items():
            model, truth = Linear(gram), float(gram.trace())
            estimates = []
            for i in range(self.simulations):
                estimates += gauss_newton_trace(
                    model, [model.block], precision=self.precision, seed=(self.seed + i,), budget=1000
                )
            row = summary(name, "gauss_newton_trace", truth, estimates)
            hits = round(row["value"] * len(estimates))
            yield {
                **row, "block": block, "outputs": len(gram), "precision": self.precision,
                "effective_rank": truth**2 / float((gram**2).sum()),
                "p_value": float(stats.binomtest(hits, len(estimates), 0.95, alternative="less").pvalue),
                "not_reached": sum(e.flag is not None for e in estimates) / len(estimates),
            }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="of: " + "; ".join(MODELS))
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--precision", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gauss_newton_coverage.jsonl"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = GaussNewtonCoverage(tuple(args.models), args.simulations, args.precision)
    run(experiment, args.out, environment=environment(device="cpu", threads=1), overwrite=args.overwrite)


if __name__ == "__main__":
    main()
