"""Checks that the gradient and the Hessian-vector products of a block are those of its loss, by evaluating the loss.

Autograd is silently wrong wherever a backward pass is not the derivative of its forward pass (detached norms,
straight-through rounding, an embedding's `padding_idx`), and double backward wherever that backward pass is itself not
differentiated (`once_differentiable`, torch's own `weight_norm` on a CPU). Intervals of probes do not see it: the
products are exact products with another matrix. What does see it:

- symmetry: T = Q H Q' has two triangles, of which Lanczos knows the lower one without a product;
- slopes: (f(theta + s v) - f(theta - s v)) / (2 s) -> g'v;
- curvatures: (f(theta + s v) - 2 f(theta) + f(theta - s v)) / s^2 -> v'Hv,

v being the top Ritz vector, whose v'Hv is known, a direction in which all kinds of parameters move, and which joins Q,
so that its product is not lost, and others of `smoothlab.hessian.directions`.

A disagreement that `smoothlab.hessian.line_check` has established beyond rounding is flagged; from 1 % (slopes) or 5 %
(`GROSS`) on, the measurement is refused. Kinks (ReLU) also part differences of the loss from exact products: where the
graph holds such an operation, a curvature that disagrees is flagged "kinks" and not refused.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from torch import Tensor

from smoothlab.blocks import Block, dot
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.directions import ALL_KINDS, ROWS, TOP, Directions, SilentDirection
from smoothlab.hessian.disagreements import DOUBTFUL, Disagreement, refuse_gross
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.line_check import LineCheck, check_repeats
from smoothlab.hessian.products import Products


def check_gradient(point: LossAtPoint) -> None:
    """Refuse blocks whose gradient by autograd is not the loss's; about 8 evaluations of the loss a block.

    Raises:
        WrongProducts: names the block and the direction.
    """
    check_repeats(point)
    for block in point.blocks.values():
        check = LineCheck(point, block)
        directions = Directions(check, point.graph)
        check.compare(directions.mixed(), ALL_KINDS, None)
        v, slope = directions.scattered()
        check.compare(v, "a random direction", None, slope)
        rows = directions.along_rows()
        if dot(check.gradient, rows):  # else no slope that a detached norm could have made up
            check.compare(rows, ROWS, None)
        _compare_silent(check, directions.silent(), None)
        _compare_padding(check, directions)
        refuse_gross(block.name, list(check.gaps.values()))


def check_products(run: Deflation) -> list[Disagreement]:
    """Disagreements of a block whose Krylov space is there and whose probes are to come; one product joins its basis.

    Raises:
        WrongProducts: a gross one; names what is wrong, likely causes, and what would be right.
    """
    gaps: list[Disagreement] = []
    if isinstance(run.hessian, LossAtPoint):
        check = LineCheck(run.hessian, run.block)
        directions = Directions(check, run.hessian.graph)
        _compare_products(check, directions, run)
        _compare_rows_and_silent(check, directions, run.form)
        _compare_padding(check, directions)
        gaps += check.gaps.values()
    # Asymmetry up to three times the products' own errors is no doubt about their matrix.
    error = run.noise + run.hessian.truncation(run.name)
    gaps.append(Disagreement("symmetry", max(run.asymmetry() - 3 * error, 0.0), "its Lanczos vectors"))
    return _judged(run.name, gaps, run.hessian)


def check_plainly(point: LossAtPoint, block: Block, product: Callable[[Tensor], Tensor]) -> list[Disagreement]:
    """Disagreements of a block whose products are not kept, from one product and four evaluations.

    Args:
        point: loss, gradients and graph at the current parameters.
        block: the block.
        product: H v for v on it.

    Raises:
        WrongProducts: see `check_products`.
    """
    check = LineCheck(point, block)

    def form(v: Tensor) -> float:
        return dot(v, product(v))

    directions = Directions(check, point.graph)
    mixed = directions.mixed()  # without Lanczos vectors one product must show the curvature of all kinds
    check.compare(mixed, ALL_KINDS, form(mixed))
    _compare_rows_and_silent(check, directions, form)
    _compare_padding(check, directions)
    return _judged(block.name, check.gaps.values(), point)


def _compare_products(check: LineCheck, directions: Directions, run: Deflation) -> None:
    """The top Ritz vector r and a direction q of all kinds of parameters, which joins Q: if possible in one move.

    In r + b q with 2 b^2 |q'Hq| = |r'Hr| both weigh, and cannot cancel; r'Hq is known, as H q is projected on Q. Where
    that takes b above 3, a step long enough for q is too long for r, and each is looked at by itself.
    """
    values, vectors = np.linalg.eigh(run.projected())
    largest = int(np.abs(values).argmax())
    value, coefficients = float(values[largest]), vectors[:, largest]
    if not run.deflate(directions.mixed()):  # Q holds it already, the block being small
        check.compare(run.in_full_space(coefficients), TOP, value)
        mixed = directions.mixed()
        check.compare(mixed, ALL_KINDS, run.form(mixed))
        return
    # The Ritz vector is made after the product, which takes the most memory of a point; Q has one more row by now.
    top = run.in_full_space(np.append(coefficients, 0.0))
    mixed, column = run.basis.rows[-1], run.columns[-1]
    curvature = float(column[-1])
    b = (abs(value) / abs(2 * curvature)) ** 0.5 if curvature else 1.0
    if 1 / 3 <= b <= 3:
        combined = value + b**2 * curvature + 2 * b * float(coefficients @ column[:-1])
        if check.agrees(top.add(mixed, alpha=b).mul_((1 + b**2) ** -0.5), combined / (1 + b**2)):
            return
    check.compare(top, TOP, value)
    check.compare(mixed, ALL_KINDS, curvature)


def _compare_rows_and_silent(check: LineCheck, directions: Directions, form: Callable[[Tensor], float] | None) -> None:
    """Rows along themselves and entries without gradient, by one evaluation together where it sees nothing.

    Along rows no small part of a slope is looked for, and entries without gradient have none to add to it. Where the
    move of both is not explained by its slope, each is looked at by itself. form(v) = v'Hv.
    """
    rows = directions.along_rows()
    step = check.short_step(rows)
    silent = directions.silent()
    move = rows.mul_(step).add_(silent.v, alpha=0.1 * silent.length)
    if not (step or silent.length) or check.follows_slope(move):
        return
    if step:
        rows = directions.along_rows()  # made again, as the move has taken its memory
        if not check.follows_slope(rows * step):
            check.compare(rows, ROWS, None)
    _compare_silent(check, silent, form)


def _compare_silent(check: LineCheck, silent: SilentDirection, form: Callable[[Tensor], float] | None) -> None:
    """Entries whose gradient is exactly 0."""
    if silent.length > 0.0 and not check.follows_slope(0.1 * silent.length * silent.v):
        curvature = None if form is None else form(silent.v)
        check.compare_by_fits(silent.v, silent.where, curvature, 0.1 * silent.length)


def _compare_padding(check: LineCheck, directions: Directions) -> None:
    """Padding rows that have a gradient from elsewhere (a tied head)."""
    for padding in directions.padding_rows():
        if dot(check.gradient, padding.v) and not check.agrees(padding.v, None, longest=0.05 * padding.length):
            check.compare_by_fits(padding.v, padding.where, None, 0.05 * padding.length)


def _judged(name: str, gaps: Iterable[Disagreement], hessian: Products | LossAtPoint) -> list[Disagreement]:
    """Disagreements with their causes, as far as one can know; a gross one is refused."""
    explained = [_explained(gap, hessian) for gap in gaps]
    refuse_gross(name, explained)
    return explained


def _explained(gap: Disagreement, hessian: Products | LossAtPoint) -> Disagreement:
    """A disagreement of curvature with its cause: differences, or the loss's kinks."""
    if gap.kind in ("gradient", "rough") or gap.size <= DOUBTFUL or not isinstance(hessian, LossAtPoint):
        return gap
    if hessian.differences:
        return replace(gap, kind="differences")
    if gap.kind == "curvature" and hessian.graph.nonsmooth:
        return replace(gap, kind="kinks")
    return gap
