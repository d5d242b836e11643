"""A zeroth-order estimator of one's own: differences of fourth order, and whether its moments are what they should be.

    ghat = [8 (f(x + mu z) - f(x - mu z)) - (f(x + 2 mu z) - f(x - 2 mu z))] / (12 mu) z

has a bias of order mu^4 instead of mu^2. Any object with `distribution`, `sides` and this call is an estimator, which
`HybridSGD` takes as the oracle of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from smoothlab import Block, Directional, Distribution, Gaussian, HybridSGD, ZerothOrder
from smoothlab.blocks import standing_at
from smoothlab.zeroth.rng import stream_name

WEIGHTS = {1: 8, -1: -8, 2: -1, -2: 1}


@dataclass(frozen=True)
class FourthOrder:
    """Fourth-order differences along one Gaussian direction."""

    mu: float = 1e-2
    sides: int = 2
    distribution: Distribution = field(default_factory=Gaussian)

    def __call__(self, loss, block: Block, seed: Sequence[int]) -> Directional:  # type: ignore[no-untyped-def]
        """The estimate: a seed and its coefficient. The weights themselves are never written."""
        views = block.views(self.distribution.draw(block, seed))
        difference = 0.0
        for multiple, weight in WEIGHTS.items():
            moved = [p.detach() + multiple * self.mu * z for p, z in zip(block.params, views, strict=True)]
            with torch.no_grad(), standing_at(block, moved):
                difference += weight * float(loss())
        coefficient = difference / (12 * self.mu)
        return Directional(self.distribution, ((tuple(seed), coefficient),), stream=stream_name("cpu"))


if __name__ == "__main__":
    x = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    block = Block("x", (x,))
    gradient = 4 * x.detach() ** 3  # of sum x^4, whose two-sided Gaussian estimate has the bias 12 mu^2 x
    for name, estimator in {"fourth order": FourthOrder(0.5), "two-sided": ZerothOrder(0.5)}.items():
        estimates = torch.stack([estimator(lambda: (x**4).sum(), block, (k,)).dense(block) for k in range(10_000)])
        squares = estimates.square().sum(1) / gradient.square().sum()
        ratio = f"{float(squares.mean()):.2f} +- {float(squares.std() / 100):.2f}"
        bias = float((estimates.mean(0) - gradient).norm())
        noise = float(estimates.var(0).sum() ** 0.5 / 100)
        print(f"{name}: E ||ghat||^2/||g||^2 = {ratio} (d + 2 = 5 without bias), bias {bias:.2f} +- {noise:.2f}")
    optimizer = HybridSGD([{"params": [x], "lr": 1e-3, "oracle": FourthOrder(), "name": "x"}])
    print("a step from f =", float(optimizer.step(lambda: (x**4).sum())), "to", float((x**4).sum().detach()))
