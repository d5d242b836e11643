"""Exact Hessian-vector products by double backward, and the norm of one block in one line."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from smoothlab.blocks import Block, Loss, by_name, dot, flatten
from smoothlab.hessian.gradients import LossAtPoint, block_gradients, difference_quotient, explained_errors, finite
from smoothlab.hessian.norms import Hessian, NormEstimate
from smoothlab.shift import Shift


class ExactHessian(LossAtPoint, Hessian):
    """Exact Hessian-vector products by double backward: one gradient graph is kept, each product goes through it once.

    H_bc v = d/d theta_b <grad_c f, v> (Pearlmutter 1994). Scaled dot-product attention runs on its MATH kernel, the one
    that has second derivatives; it equals the others up to rounding. Kinks (ReLU) are ignored: the product is the
    Hessian of the smooth piece. The parameters are only read; `.grad`, buffers and flags are not touched.

    >>> import torch
    >>> from smoothlab import Block, ExactHessian
    >>> x, y = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    >>> blocks = [Block("x", (x,)), Block("y", (y,))]
    >>> hessian = ExactHessian(lambda: (x**2 + x * y + y**2).sum(), blocks)
    >>> round(hessian.norms(cross=[("x", "y")])[-1].value, 6)   # ||I||_F
    1.414214

    Args:
        loss: deterministic loss of one minibatch.
        blocks: blocks to differentiate, disjoint.
        quotients: let probes of blocks of wide matrices, such as a base model, be forward differences of gradients,
            which cost half as much, once one of them has agreed with the exact product to 2 % (`Deflation`).

    Raises:
        BadInput: the loss is not finite, does not depend on a block, or an operation has no second derivative.
    """

    def __init__(self, loss: Loss, blocks: Sequence[Block], *, quotients: bool = True) -> None:
        self.blocks = by_name(blocks)
        self._loss, self._quotients = loss, quotients
        with sdpa_kernel(SDPBackend.MATH):
            self._graph = self._differentiate(create_graph=True)

    @property
    def gradients(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Gradient of each block, flat [dim]; copied when asked for, to save memory."""
        return {name: flatten(g.detach() for g in parts) for name, parts in self._graph.items()}

    def evaluate(self) -> float:
        """The loss where the parameters are now, by the same operations: with gradients on, attention by MATH."""
        with sdpa_kernel(SDPBackend.MATH):
            return float(self._loss().detach())

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """H_bc v for c = `along` and each b of `wrt`; about two gradients, whatever the number of blocks."""
        outputs, directions = [], []
        for g, part in zip(self._graph[along], self.blocks[along].views(v), strict=True):
            if g.grad_fn:  # a gradient without a graph is constant: its second derivatives are 0, and autograd fails
                outputs.append(g)
                directions.append(part)
        params = [p for name in wrt for p in self.blocks[name].params]
        # Activations that a checkpointed model recomputes here must come from the same attention kernel as before.
        with sdpa_kernel(SDPBackend.MATH), explained_errors():
            parts = list(torch.autograd.grad(outputs, params, directions, retain_graph=True, allow_unused=True))
        parts.reverse()  # popped from the end, each part is freed as soon as it is copied
        images = []
        for name in wrt:
            image = torch.empty(self.blocks[name].dim, dtype=v.dtype, device=v.device)
            for target in self.blocks[name].views(image):
                part = parts.pop()
                if part is None:  # autograd's word for a derivative that is 0
                    target.zero_()
                else:
                    target.copy_(part)
            images.append(image)
        return tuple(images)

    def quotient(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...] | None:
        """H_bc v by a forward difference of gradients, about half a product's work; None beside kinks, or in 16 bit.

        The move h v is as long as sqrt(eps) ||theta_c||, where truncation and rounding are about equal. Truncation,
        h / 2 times the third derivative along v and v, does not change its sign with v, while H v does.
        """
        squared, eps = dot(v, v), torch.finfo(v.dtype).eps
        size = float(torch.nn.utils.get_total_norm([p.detach() for p in self.blocks[along].params]))
        if not (self._quotients and squared and size) or self.graph.nonsmooth or v.dtype.itemsize == 2:
            return None
        blocks = {name: self.blocks[name] for name in wrt}
        shift = Shift(self.blocks[along])
        with shift.along(v, math.sqrt(eps / squared) * size), sdpa_kernel(SDPBackend.MATH):
            ends = block_gradients(finite(self._loss()), blocks, create_graph=False)
        move = shift.realized / squared
        del shift  # its copy of the block, before the images take memory
        images = []
        for name, block in blocks.items():
            starts = [g.detach() for g in self._graph[name]]
            images.append(difference_quotient(block, ends.pop(name), starts, move))
        return tuple(images)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Relative rounding error of the product, from H(cv)/c against H v = `image` with c = 3/7.

        Multiplying by 3/7 changes every mantissa, so the two roundings are independent: the length of each is
        ||difference|| / sqrt(2).
        """
        difference = self.product(v * (3 / 7), along, [along])[0].mul_(7 / 3).sub_(image)
        size = dot(image, image)
        if not size:
            return 0.0, 1
        return math.sqrt(dot(difference, difference) / (2 * size)), 1


def frobenius(
    loss: Loss, params: Iterable[Tensor], *, precision: float = 0.05, seed: Sequence[int] = (0,)
) -> NormEstimate:
    """||H||_F of a loss with respect to parameters, as `ExactHessian` measures it, with its 95 % interval.

    >>> import torch, smoothlab
    >>> w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    >>> round(smoothlab.frobenius(lambda: (w**4).sum() / 4, [w]).value, 12)   # ||diag(3, 3, 3)||_F
    5.196152422707

    Args:
        loss: deterministic loss of one minibatch, e.g. `lambda: model(**batch).loss` in eval mode.
        params: parameters, e.g. `model.parameters()`; those that require no gradient are left out.
        precision: half-width of the interval, relative to the norm.
        seed: seed of the start vector and the probes.
    """
    block = Block("params", tuple(p for p in params if p.requires_grad))
    return ExactHessian(loss, [block]).norms(precision=precision, seed=seed)[0]
