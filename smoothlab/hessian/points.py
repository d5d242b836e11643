"""Settings of measuring points: the steps of a training run at which curvature is measured, and how."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smoothlab.blocks import Block, Loss
from smoothlab.hessian.dataset import DatasetHessian
from smoothlab.hessian.gauss_newton import Outputs
from smoothlab.hessian.trajectory import Product, Row, estimated, gauss_newton, of_dataset, paper

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


def rows_at(
    points: Points, loss: Loss, outputs: Callable[[], Outputs] | None, *, seed: tuple[int, int], kinks: bool
) -> Iterator[Row]:
    """Rows of curvature at the current parameters, by each protocol in turn; path smoothness is not among them.

    Args:
        points: what is measured.
        loss: mean loss of the minibatch.
        outputs: the minibatch's outputs, of which `loss` is a cross-entropy, for the Gauss-Newton trace; None leaves it
            out.
        seed: seed of the probes.
        kinks: whether the gradient of a measured block jumps, as that of ReLU networks does.
    """
    protocols: list[Iterator[Row]] = []
    if points.protocol != "paper":
        protocols.append(estimated(
            loss, points.blocks, cross=points.cross, product=points.product, precision=points.precision, seed=seed,
            kinks=kinks, trace=points.trace, layers=points.layers, diagonal=points.diagonal,
        ))  # fmt: skip
    if outputs is not None:
        protocols.append(gauss_newton(
            loss, outputs, points.blocks, precision=points.outputs_precision, seed=seed, layers=points.layers,
        ))  # fmt: skip
    if points.protocol != "estimated":
        protocols.append(paper(loss, points.blocks, batch=points.batch, probes=points.probes, seed=seed))
    if points.dataset is not None:
        protocols.append(of_dataset(points.dataset(seed), points.precision))
    return itertools.chain(*protocols)
