"""The contract of Hessian-vector products on blocks, which estimates and self-checks are made from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from smoothlab.blocks import Block


class Products(ABC):
    """Products with the Hessian of one loss at one point, blocks by name.

    `product(v, along, wrt)` is H_bc v for v on block c = `along` and each b in `wrt`; with b != c this is a cross
    block, H_xy in the paper. Cost is counted in gradients of the loss (one forward and one backward pass).

    Attributes:
        blocks: disjoint blocks by name.
        loss: the loss at the point.
        gradients: gradient of each block, flat [dim].
        kept_noise: relative rounding error of products by block, if it is kept between points of one run: then it is
            measured where it is missing.
        differences: whether products are finite differences, which kinks and long steps part from the Hessian.
    """

    blocks: dict[str, Block]
    loss: float
    gradients: dict[str, Tensor]
    kept_noise: dict[str, float] | None = None
    differences: ClassVar[bool] = False

    @abstractmethod
    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """H_bc v for c = `along` and each b of `wrt`, as flat vectors [b.dim]."""

    def quotient(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...] | None:
        """An approximation of `product` at half its cost whose error is even in v, or None where there is none."""
        return None

    @abstractmethod
    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Relative rounding error of the product H_cc v = `image`, and how many more products measuring it took."""

    def truncation(self, along: str) -> float:
        """Relative error of products beside rounding, as far as it is known."""
        return 0.0
