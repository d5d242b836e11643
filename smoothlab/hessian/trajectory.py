"""Measurements along a training run: schedules of points, and protocols.

Two protocols can be recorded at the same points. *estimated*: exact products, deflation and probes, norms of the mean
loss with intervals (`smoothlab.hessian.norms`). *paper*: Appendix D.4 as printed, i.e. forward differences with h =
1e-5 along unit vectors, the sum over the batch, sqrt(mean ||Hv||^2) without the factor sqrt(d) that E ||Hv||^2 =
||H||_F^2 / d asks for. Both only read the parameters, or move them by pointing elsewhere: training with them is
training without them, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from torch import Tensor

from smoothlab.blocks import Block, Loss, by_name, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.dataset import DatasetHessian
from smoothlab.hessian.deflation import IMAGES, gram_matrix
from smoothlab.hessian.diagonal import split_blocks
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.gauss_newton import gauss_newton_trace
from smoothlab.hessian.gradients import gradient
from smoothlab.hessian.layers import Layers
from smoothlab.hessian.selfchecks import check_gradient
from smoothlab.stats.probes import effective_rank, sum_of_squares
from smoothlab.zeroth.distributions import draw

Row = dict[str, Any]
Schedule = Literal["linear", "log"]
Product = Literal["exact", "central", "forward"]

PAPER_H = 1e-5  # Appendix D.4


def schedule(steps: int, points: int, kind: Schedule = "linear") -> list[int]:
    """At most `points` distinct steps from 0 (before training) to `steps` (after it), both included.

    "linear": evenly spaced. "log": 0 and geometrically spaced from 1 on.

    >>> from smoothlab import schedule
    >>> schedule(100, 3), schedule(100, 3, "log")
    ([0, 50, 100], [0, 1, 100])
    """
    if steps < 0 or points < 1:
        raise BadInput(f"{points} points along {steps} steps: ask for at least one point and no negative steps")
    if points == 1 or steps == 0:
        return [0]
    if kind == "linear":
        spaced = np.linspace(0, steps, points)
    else:
        spaced = np.r_[0, np.geomspace(1, steps, points - 1)]
    # Short runs round several points to one step.
    return sorted(set(spaced.round().astype(int).tolist()))


def estimated(
    loss: Loss,
    blocks: Sequence[Block],
    *,
    cross: Sequence[tuple[str, str]] = (),
    product: Product = "exact",
    precision: float = 0.05,
    seed: Sequence[int] = (0,),
    kinks: bool = False,
    trace: float | None = None,
    layers: Sequence[Block] = (),
    diagonal: int = 0,
    closely: bool = False,
    noise: dict[str, float] | None = None,
) -> Iterator[Row]:
    """Rows of the estimated protocol at the current parameters, each block's once measured, then the cross blocks'.

    `kinks` marks a loss that is known not to be twice differentiable (ReLU): exact products ignore kinks. `trace`,
    `layers` (rows of `Hessian.norms`) and `diagonal` are those of `Hessian.norms`. `closely` checks the gradient in
    more directions than every point does (`selfchecks.check_gradient`). `noise` keeps the relative rounding error of
    exact products, which takes a product to measure, from one point of a run to the next.
    """
    hessian: ExactHessian | FiniteDifferenceHessian
    if product == "exact":
        hessian = ExactHessian(loss, blocks)
        hessian.kept_noise = noise
    elif product in ("central", "forward"):
        hessian = FiniteDifferenceHessian(loss, blocks, scheme=product)
    else:
        raise BadInput(f"product '{product}' is unknown: use exact, central or forward")
    if closely:
        check_gradient(hessian)
    gradients = hessian.gradients
    common = _common("estimated", hessian.loss, gradients)
    for name, split in split_blocks(blocks, layers).items():
        common |= _of_layers(common[name], split.layers, gradients[name])
    del gradients  # a copy, which would stay for as long as the caller takes rows
    estimates = hessian.norms_by_block(
        list(hessian.blocks), cross, precision, seed, trace=trace, rows=layers, diagonal=diagonal
    )
    for estimate in estimates:
        fields: Row = {**common[estimate.block], **asdict(estimate), "h": None, "normalized": None}
        kinked = kinks
        if isinstance(hessian, FiniteDifferenceHessian) and estimate.block in hessian.steps:
            step = hessian.steps[estimate.block]
            fields["h"] = step.h
            kinked = kinks or step.kinks
        if kinked:
            fields["flag"] = ", ".join(filter(None, (fields["flag"], "kinks")))
        yield fields


def paper(
    loss: Loss,
    blocks: Sequence[Block],
    *,
    batch: int,
    probes: int = 100,
    seed: Sequence[int] = (0,),
    h: float = PAPER_H,
) -> Iterator[Row]:
    """Rows of Appendix D.4 at the current parameters, one a block; see the module's first lines.

    `value`, its interval and `floor` are as printed (sum over the batch, no sqrt(d)); `normalized` is value sqrt(d) /
    batch, which an estimated value can be compared with. `floor` is what rounding adds to `value`, in quadrature.
    """
    for block in blocks:
        hessian = FiniteDifferenceHessian(loss, [block], h=h, scheme="forward", effective=False)
        squares, images = [], []
        for i in range(probes):
            # Directions are drawn on the sphere of radius sqrt(d); the appendix moves along unit vectors.
            v = draw(block, "sphere", [*seed, *block.name.encode(), i]).div_(block.dim**0.5)
            image = hessian.product(v, block.name, [block.name])[0]
            squares.append(norm(image) ** 2)
            if i < IMAGES:
                images.append(image)
        squared = sum_of_squares(squares, effective_rank(gram_matrix(images)))
        value, low, high = (batch * max(x, 0.0) ** 0.5 for x in squared)
        floor = batch * hessian.rounding(v, block.name)
        yield _common("paper", hessian.loss, hessian.gradients)[block.name] | {
            "block": block.name, "wrt": block.name, "quantity": "frobenius", "value": value, "low": low, "high": high,
            "hvps": probes, "h": h, "floor": floor, "flag": _flag(value, floor),
            # The total is not known here: each block has gradients of its own.
            "normalized": value * block.dim**0.5 / batch, "grad_norm_total": None, "sign": None,
        }  # fmt: skip


def _flag(value: float | None, floor: float | None) -> str | None:
    if value is not None and floor is not None and value < 2 * floor:
        return "below floor"
    return None


def _common(protocol: str, loss: float, gradients: Mapping[str, Tensor]) -> dict[str, Row]:
    """Fields shared by all rows of a block, by block."""
    norms = {name: norm(g) for name, g in gradients.items()}
    total = sum(x**2 for x in norms.values()) ** 0.5
    rows: dict[str, Row] = {}
    for name, g in gradients.items():
        rows[name] = {"protocol": protocol, "loss": loss, "grad_norm": norms[name], "grad_norm_total": total}
        rows[name]["dim"] = g.numel()
    return rows


def _of_layers(row: Row, layers: Layers, gradient: Tensor) -> dict[str, Row]:
    """Fields shared by all rows of a layer's own block, by layer, from those of the block that it is a part of."""
    squares = layers.dots(gradient, gradient)
    rows = {}
    for name, square, dim in zip(layers.names, squares.tolist(), layers.dims, strict=True):
        rows[name] = row | {"grad_norm": square**0.5, "dim": dim}
    return rows


def of_dataset(hessian: DatasetHessian, precision: float) -> Iterator[Row]:
    """Rows of the Hessian of the data set's mean loss at the current parameters, each block's once measured.

    `loss` and `grad_norm` are estimates of the data set's, from the minibatches that the block has seen.
    """
    for estimate in hessian.norms_by_block(precision=precision):
        yield {
            "protocol": "dataset", "loss": float(np.mean(hessian.losses)),
            "grad_norm": hessian.grad_norms[estimate.block], "grad_norm_total": None,
            "dim": hessian.blocks[estimate.block].dim, **asdict(estimate), "h": None, "normalized": None,
        }  # fmt: skip


def gauss_newton(
    loss: Loss,
    outputs: Callable[[], tuple[Tensor, Tensor]],
    blocks: Sequence[Block],
    *,
    precision: float = 0.05,
    seed: Sequence[int] = (0,),
    layers: Sequence[Block] = (),
) -> Iterator[Row]:
    """Rows of the Gauss-Newton trace of each block at the current parameters, then of each layer.

    `outputs` are those of `loss`, see `smoothlab.hessian.gauss_newton`.
    """
    value, gradients = gradient(loss, by_name(blocks))
    common = _common("estimated", value, gradients)
    for name, split in split_blocks(blocks, layers).items():
        common |= _of_layers(common[name], split.layers, gradients[name])
    for estimate in gauss_newton_trace(outputs, blocks, precision=precision, seed=seed, rows=layers):
        yield {**common[estimate.block], **asdict(estimate), "h": None, "normalized": None}


def has_kinks(loss: Loss, block: Block) -> bool:
    """Whether central differences along a random direction show kinks of the gradient (ReLU): about 14 gradients."""
    hessian = FiniteDifferenceHessian(loss, [block])
    return hessian.has_kinks(draw(block, "gaussian", [0, *b"kinks"]), block.name)


class PathSmoothness:
    """Path-based smoothness of each block b over one update: ||g_b(k+1) - g_b(k)|| / ||w_b(k+1) - w_b(k)||.

    Both gradients are of one minibatch. Made before the update; `rows` after it. Other blocks move too, so cross blocks
    enter. `floor` is the quotient that the rounding of the two gradients alone produces.
    """

    def __init__(self, loss: Loss, blocks: Sequence[Block]) -> None:
        self._loss, self._blocks = loss, by_name(blocks)
        self._value, self._gradients = gradient(loss, self._blocks)
        self._start = {name: block.copies() for name, block in self._blocks.items()}

    def rows(self) -> Iterator[Row]:
        """Rows of path smoothness, one a block, at the parameters after the update."""
        _, after = gradient(self._loss, self._blocks)
        common = _common("estimated", self._value, self._gradients)
        for name, block in self._blocks.items():
            squared = 0.0
            for p, start in zip(block.params, self._start[name], strict=True):
                squared += norm((p.detach() - start).reshape(-1)) ** 2
            update_length = squared**0.5
            value = floor = None
            if update_length:  # an update may leave a block where it was: a rate of 0, or a step that rounds away
                hessian = FiniteDifferenceHessian(self._loss, [block])
                noise = hessian.gradient_noise(draw(block, "gaussian", [0]), name)
                value = norm(after[name] - self._gradients[name]) / update_length
                floor = 2**0.5 * noise / update_length
            yield common[name] | {
                "block": name, "wrt": name, "quantity": "gradient_lipschitz", "value": value, "low": None, "high": None,
                "hvps": 0, "h": update_length, "floor": floor, "flag": _flag(value, floor), "normalized": None,
                "sign": None,
            }  # fmt: skip
