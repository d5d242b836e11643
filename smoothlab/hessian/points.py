"""Where along a training run curvature is measured, and how: the settings of every measuring point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smoothlab.blocks import Block
from smoothlab.hessian.dataset import DatasetHessian
from smoothlab.hessian.gauss_newton import Outputs
from smoothlab.hessian.trajectory import Product

Protocols = Literal["estimated", "paper", "both"]


@dataclass(frozen=True)
class Points:
    """The steps of a run at which curvature is measured, and how.

    >>> import torch
    >>> from smoothlab import Block, Points
    >>> Points(steps=[0, 100], blocks=[Block("x", (torch.zeros(3),))], cross=[]).protocol
    'estimated'

    Attributes:
        steps: steps at which curvature is measured, before the update; the total number of steps is the end of the run.
        blocks: blocks to measure, those that training keeps frozen too.
        cross: pairs of block names whose cross block H_ab is measured too.
        protocol: how norms are measured: "estimated" (Hessian-vector products, with 95 % intervals), "paper" (Appendix
            D.4 as printed), or "both".
        product: "exact", "central" or "forward" Hessian-vector products of protocol "estimated".
        precision: relative half-width of the Frobenius norms' 95 % intervals at which probing stops.
        probes: number of unit vectors a block in protocol "paper".
        path: measure ||g(k+1) - g(k)|| / ||w(k+1) - w(k)|| of each block over the update, too.
        minibatch: "step": the minibatch of the step; "fixed": minibatch 0 at all points.
        batch: number of examples in a minibatch, over which protocol "paper" sums.
        seed: seed of the probes.
        dataset: function of a seed that makes a `DatasetHessian`, which is measured too; None leaves it out.
        trace: relative half-width of the traces' intervals to which probing goes on where it can be reached.
        layers: layers whose row norms and traces are measured from the products of their block.
        diagonal: products a point that the layers' own norms ||H_ll||_F share; 0 leaves them out.
        outputs: outputs(model, part) of which the loss is a cross-entropy, whose Gauss-Newton trace is measured too;
            None leaves it out.
        outputs_precision: relative half-width of that trace's interval.
    """

    steps: Sequence[int]
    blocks: Sequence[Block]
    cross: Sequence[tuple[str, str]] = ()
    protocol: Protocols = "estimated"
    product: Product = "exact"
    precision: float = 0.05
    probes: int = 100
    path: bool = True
    minibatch: Literal["step", "fixed"] = "step"
    batch: int = 1
    seed: int = 0
    dataset: Callable[[Sequence[int]], DatasetHessian] | None = None
    trace: float | None = None
    layers: Sequence[Block] = ()
    diagonal: int = 0
    outputs: Callable[[Any, Any], Outputs] | None = None
    outputs_precision: float = 0.05
