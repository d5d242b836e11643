"""Do the gradient and the Hessian-vector products of a block belong to its loss? Each measurement asks the loss itself.

Autograd is silently wrong wherever a backward pass is not the derivative of its forward pass (detached norms,
straight-through rounding, an embedding's `padding_idx`), and double backward wherever that backward pass is itself not
differentiated (`once_differentiable`, torch's own `weight_norm` on a CPU). Intervals of probes do not see it: the
products are exact products with another matrix. What does see it:

- symmetry: T = Q H Q' has two triangles. After Lanczos, H q_j = sum_{i <= j} T_ij q_i + t_j q_{j+1}, so that the lower
  one is known without a product: T_{j+1,j} = t_j, and 0 below;
- slopes: (f(theta + s v) - f(theta - s v)) / (2 s) -> g'v;
- curvatures: (f(theta + s v) - 2 f(theta) + f(theta - s v)) / s^2 -> v'Hv.

Directions v: the top Ritz vector, whose v'Hv is known; one in which all kinds of parameters move, each kind (what the
same operation reads) so far that it changes the loss alike, and which joins Q, so that its product is not lost; rows of
matrices along themselves, where a normalization of rows that is held constant has a slope and the loss has none; the
entries whose gradient is exactly 0, which must not move the loss to first order; and rows `padding_idx` that the
minibatch looks up. A random direction would do for none of it: in a million dimensions it moves the loss by less than
its rounding.

A direction is looked at up to three times. First with two evaluations, at a step that changes the loss by 200 times its
rounding. Where these disagree by more than rounding and 0.5 % of a slope or 1 % of a curvature, two at twice the step
take the next term of Taylor's series out. Where that disagrees too, polynomials are fitted to eight evaluations at each
of four scales, and the finest scale that resolves the number decides. Disagreement is then beyond doubt, and is
flagged; from 1 % (slopes) or 5 % (`GROSS`) on, the measurement is refused. Kinks (ReLU) also part differences of the
loss from exact products: where the graph holds such an operation, a curvature that disagrees is flagged "kinks" and not
refused.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from smoothlab.blocks import Block, Loss, dot, norm
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.disagreements import DOUBTFUL, Disagreement, WrongProducts, refuse_gross
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.loss_graph import LossGraph, groups_by_reader
from smoothlab.shift import Shift

_ROUNDINGS = 4.0  # rounding error of a loss, in units of eps |f|: sums of many terms are off by a few
_ABOVE = 200.0  # change of the loss, in units of its rounding, at which a direction is first looked at
_SCALES = (8.0, 2.0, 0.5, 0.125)  # of the second look, in units of the first look's step
_POSITIONS = (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0)
_COARSE = 0.02  # share of a slope that may be curvature where one evaluation is to do
_RESOLVED = 0.03  # a scale whose standard error is this share of the number resolves it


class LineCheck:
    """Slopes and curvatures of the loss along directions of one block, against g'v and v'Hv.

    Costs two evaluations of the loss a direction, two more where they disagree, and 32 more where these do, too; three
    vectors of the block's size.

    Args:
        point: loss, gradients and graph at the current parameters.
        block: whose directions are looked at.

    Attributes:
        gaps: the largest disagreement of each kind, "gradient" and "curvature".
    """

    def __init__(self, point: LossAtPoint, block: Block) -> None:
        self.block, self.gradient, self._evaluate = block, point.gradients[block.name], point.evaluate
        self._shift, self.start = Shift(block), point.loss
        self.theta = torch.cat([p.detach().reshape(-1) for p in block.params])
        self.size = norm(self.theta)
        eps = torch.finfo(self.theta.dtype).eps
        # A moved weight is rounded to its precision, which moves the loss by g'(rounding).
        self.rounding = _ROUNDINGS * eps * abs(self.start) + eps * norm(self.theta * self.gradient)
        self.gaps = {"gradient": Disagreement("gradient"), "curvature": Disagreement("curvature")}

    def at(self, v: Tensor, s: float) -> tuple[float, float]:
        """The move along the unit vector v that rounding let through, and by how much it changes the loss."""
        with self._shift.along(v, s):
            value = self._evaluate()
        return self._shift.realized, value - self.start

    def look(self, v: Tensor, where: str, curvature: float | None, least: float = 0.0) -> None:
        """Compare along the unit vector v, whose v'Hv is `curvature`; None: it is not known, and not compared.

        Slopes below `least` are as good as 0.
        """
        if not self.agrees(v, curvature, least=least):
            self.look_again(v, where, curvature, least=least)

    def agrees(self, v: Tensor, curvature: float | None, *, least: float = 0.0, longest: float = float("inf")) -> bool:
        """Whether the slope along the unit vector v is right to 0.5 %, and its curvature to 1 %."""
        slope = dot(self.gradient, v)
        step = min(self._step(slope, curvature or 0.0), longest)

        def right(first: float, second: float, noise: float, noise_second: float) -> bool:
            curved = abs(second if curvature is None else curvature) * step
            if not abs(first - slope) <= noise + DOUBTFUL * (max(abs(slope), least) + curved):
                return False
            return curvature is None or abs(second - curvature) <= noise_second + 2 * DOUBTFUL * abs(curvature)

        near = self._differences(v, step)
        if near is None:
            return False
        if right(*near):
            return True
        far = self._differences(v, 2 * step)
        if far is None:
            return False
        first, second = ((4 * near[i] - far[i]) / 3 for i in (0, 1))
        noise, noise_second = ((4 * near[i] + far[i]) / 3 for i in (2, 3))
        return right(first, second, noise, noise_second)

    def _differences(self, v: Tensor, step: float) -> tuple[float, float, float, float] | None:
        """First and second difference along v, then the rounding of each; None where weights round the move away."""
        (up, above), (down, below) = self.at(v, step), self.at(v, -step)
        length = (up - down) / 2
        if not length > 0.5 * step:
            return None
        first, second = (above - below) / (2 * length), (above + below) / length**2
        return first, second, 2 * self.rounding / length, 4 * self.rounding / length**2

    def starts_right(self, v: Tensor) -> bool:
        """Whether one short step along the unit vector v changes the loss as its slope, if any, says, to 2 %."""
        slope = dot(self.gradient, v)
        if not slope:
            return True
        step = min(_ABOVE * self.rounding / abs(slope), self._step(slope, 0.0))
        moved, change = self.at(v, step)
        right = abs(change - slope * moved) <= 2 * self.rounding + _COARSE * abs(slope * moved)
        return right and moved > 0.5 * step

    def rests(self, v: Tensor, step: float) -> bool:
        """Whether a step along v changes the loss by nothing but its slope."""
        moved, change = self.at(v, step)
        return abs(change - dot(self.gradient, v) * moved) <= 2 * self.rounding

    def look_again(
        self, v: Tensor, where: str, curvature: float | None, step: float | None = None, *, least: float = 0.0
    ) -> None:
        """Compare along v by fits at four scales around `step`."""
        slope, bend = dot(self.gradient, v), curvature or 0.0
        if step is None:
            step = self._step(slope, bend)
        slopes, curvatures = [], []  # finest scale first
        for scale in reversed(_SCALES):
            fit = self._fit(v, scale * step)
            if fit is not None:
                slopes.append(fit[:2])
                curvatures.append(fit[2:])
        self._judge("gradient", where, slope, slopes, max(abs(bend) * step, least))
        if curvature is not None:
            self._judge("curvature", where, curvature, curvatures, 0.0)

    def _step(self, slope: float, curve: float) -> float:
        """The step whose curvature changes the loss by 200 roundings, and whose slope changes it by at most 2 %."""
        change = max(_ABOVE * self.rounding, 1e-6 * abs(self.start)) or 1e-6  # a loss of 0 tells no rounding
        longest = 0.01 * (self.size or 1.0)
        if slope:
            longest = min(longest, max(0.02 * abs(self.start), change) / abs(slope))
        if curve:
            longest = min(math.sqrt(2 * change / abs(curve)), longest)
        return longest

    def _fit(self, v: Tensor, step: float) -> tuple[float, float, float, float] | None:
        """Slope and curvature with their errors from a polynomial of degree 4 through 0; None where moves are lost."""
        seen = np.array([self.at(v, s * step) for s in _POSITIONS])
        x, y = seen[:, 0] / step, seen[:, 1]
        if np.abs(x - np.array(_POSITIONS)).max() > 0.1 or not np.isfinite(y).all():
            return None
        powers = np.vander(x, 5, increasing=True)[:, 1:]
        solution, *_ = np.linalg.lstsq(powers, y, rcond=None)
        free = len(x) - powers.shape[1]
        scatter = (float(((y - powers @ solution) ** 2).sum()) / free) ** 0.5
        # Evaluations that are all alike have no scatter, and are rounded all the same.
        noise = float(stats.t.ppf(0.999, free)) * max(scatter, self.rounding / 4)
        first, second = noise * np.linalg.inv(powers.T @ powers).diagonal()[:2] ** 0.5
        return solution[0] / step, first / step, 2 * solution[1] / step**2, 2 * second / step**2

    def _judge(self, kind: str, where: str, claimed: float, fits: Sequence[tuple[float, float]], least: float) -> None:
        """Hold `claimed` against the finest scale that resolves the number, and keep the largest disagreement.

        Numbers below `least` are as good as 0 beside what else moves the loss.
        """
        for value, error in fits:
            size = max(abs(value), abs(claimed), least)
            if error <= _RESOLVED * size:
                gap = max(abs(value - claimed) - error, 0.0) / size
                if gap > self.gaps[kind].size:
                    self.gaps[kind] = Disagreement(kind, gap, where, claimed, value)
                return


def check_repeats(point: LossAtPoint) -> None:
    """Refuse a loss that is another one when it is evaluated again; costs one evaluation.

    Raises:
        WrongProducts: tells both values.
    """
    again, eps = point.evaluate(), max(torch.finfo(g.dtype).eps for g in point.gradients.values())
    if not abs(again - point.loss) <= 8 * _ROUNDINGS * eps * abs(point.loss):
        raise WrongProducts(
            f"the loss is {point.loss:.12g} and then {again:.12g} at the same parameters: switch off dropout and other "
            "randomness (model.eval(), or smoothlab.blocks.fixed_loss), and fix the minibatch"
        )


def check_gradient(loss: Loss, blocks: Sequence[Block]) -> None:
    """Refuse blocks whose gradient by autograd is not the loss's; about 12 evaluations of the loss a block.

    Raises:
        WrongProducts: names the block and the direction.
    """
    point = LossAtPoint(loss, blocks)
    check_repeats(point)
    for block in blocks:
        check = LineCheck(point, block)
        check.look(_mixed(check, point.graph), ALL_KINDS, None)
        check.look(*_scattered(check, point.graph))
        rows = _along_rows(check, point.graph)
        if dot(check.gradient, rows):
            check.look(rows, ROWS, None)
        _look_at_the_rest(check, point.graph, None)
        refuse_gross(block.name, list(check.gaps.values()))


def check_products(run: Deflation) -> list[Disagreement]:
    """Disagreements of a block whose Krylov space is there and whose probes are to come; one product joins its basis.

    Raises:
        WrongProducts: a gross one; names what is wrong, likely causes, and what would be right.
    """
    hessian = run.hessian
    gaps: list[Disagreement] = []
    if isinstance(hessian, LossAtPoint):
        check = LineCheck(hessian, run.block)
        values, vectors = np.linalg.eigh(run.projected())
        top = int(np.abs(values).argmax())
        _look_at_products(check, run, run.in_full_space(vectors[:, top]), vectors[:, top], float(values[top]))
        _look_along_rows(check, hessian.graph)
        _look_at_the_rest(check, hessian.graph, run.form)
        gaps += [_explained(gap, hessian) for gap in check.gaps.values()]
    symmetry = _asymmetry(run)
    gaps.append(_explained(symmetry, hessian) if isinstance(hessian, LossAtPoint) else symmetry)
    refuse_gross(run.name, gaps)
    return gaps


def check_plainly(point: LossAtPoint, block: Block, product: Callable[[Tensor], Tensor]) -> list[Disagreement]:
    """Disagreements of a block whose products are not kept, from one product and five evaluations.

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

    mixed = _mixed(check, point.graph)
    check.look(mixed, ALL_KINDS, form(mixed))
    _look_along_rows(check, point.graph)
    _look_at_the_rest(check, point.graph, form)
    disagreements = [_explained(gap, point) for gap in check.gaps.values()]
    refuse_gross(block.name, disagreements)
    return disagreements


TOP = "the top Ritz vector"
ALL_KINDS = "a direction of all kinds of parameters"
ROWS = "rows of weights along themselves"


def _look_at_products(check: LineCheck, run: Deflation, top: Tensor, coefficients: np.ndarray, value: float) -> None:
    """The top Ritz vector r and a direction q of all kinds of parameters, which joins Q: if possible in one move.

    In r + b q with 2 b^2 |q'Hq| = |r'Hr| both weigh, and cannot cancel; r'Hq is known, as H q is projected on Q. Where
    that takes b above 3, a step long enough for q is too long for r, and each is looked at by itself.
    """
    hessian = run.hessian
    assert isinstance(hessian, LossAtPoint)
    if run.deflate(_mixed(check, hessian.graph)) is None:  # Q holds it already: the block is small
        check.look(top, TOP, value)
        mixed = _mixed(check, hessian.graph)
        check.look(mixed, ALL_KINDS, run.form(mixed))
        return
    mixed, column = run.basis.rows[-1], run.columns[-1]
    own = float(column[-1])
    b = (abs(value) / abs(2 * own)) ** 0.5 if own else 1.0
    if 1 / 3 <= b <= 3:
        both = value + b**2 * own + 2 * b * float(coefficients @ column[:-1])
        if check.agrees(top.add(mixed, alpha=b).mul_((1 + b**2) ** -0.5), both / (1 + b**2)):
            return
    check.look(top, TOP, value)
    check.look(mixed, ALL_KINDS, own)


def _look_along_rows(check: LineCheck, graph: LossGraph) -> None:
    """Rows along themselves, by one evaluation where it sees nothing: what it is to see is no small part of a slope."""
    v = _along_rows(check, graph)
    if not check.starts_right(v):
        check.look(v, ROWS, None)


def _look_at_the_rest(check: LineCheck, graph: LossGraph, form: Callable[[Tensor], float] | None) -> None:
    """Entries without gradient, and padding rows that have one from elsewhere (a tied head); form(v) = v'Hv."""
    silent = _silent(check)
    if silent.length > 0.0 and not check.rests(silent.v, 0.1 * silent.length):
        curvature = None if form is None else form(silent.v)
        check.look_again(silent.v, silent.where, curvature, 0.1 * silent.length)
    for i, row in _padded(check, graph):
        padding = _padding_row(check, i, row)
        if dot(check.gradient, padding.v) and not check.agrees(padding.v, None, longest=0.05 * padding.length):
            check.look_again(padding.v, padding.where, None, 0.05 * padding.length)


class _Still(NamedTuple):
    """A unit vector along which nothing but the slope should move the loss, and how long the weights are there."""

    v: Tensor
    where: str
    length: float


def _padded(check: LineCheck, graph: LossGraph) -> Iterator[tuple[int, int]]:
    """(position of an embedding in the block, its row padding_idx) where the minibatch looks that row up."""
    for i, p in enumerate(check.block.params):
        if id(p) in graph.padded:
            yield i, graph.padded[id(p)]


def _scattered(check: LineCheck, graph: LossGraph) -> tuple[Tensor, str, None, float]:
    """A random unit vector in which each kind of parameters has a slope of the same size, and that size.

    A gradient that is projected (OSF) is right along itself; it is not along a random vector. Its slope is small,
    ||g||/sqrt(d), but so is its curvature, and the step can be long.
    """
    v = _signs(check.gradient)
    parts, gradients = check.block.split(v), check.block.split(check.gradient)
    groups = groups_by_reader(graph, check.block.params)
    typical = {}  # root mean square gradient of each kind
    for name, positions in groups.items():
        entries = sum(parts[i].numel() for i in positions)
        typical[name] = _length(gradients, positions) / math.sqrt(entries)
    largest = max(typical.values()) or 1.0
    for name, positions in groups.items():
        for i in positions:
            parts[i].mul_(largest / max(typical[name], 1e-3 * largest))
    size = norm(v)
    slope = norm(v * check.gradient) / size  # the root mean square over signs
    return v.mul_(1 / size), "a random direction", None, slope


def _length(parts: Sequence[Tensor], positions: Sequence[int]) -> float:
    """Euclidean norm of some parts of a vector together."""
    return math.sqrt(sum(dot(parts[i], parts[i]) for i in positions))


def _mixed(check: LineCheck, graph: LossGraph) -> Tensor:
    """A unit vector in which each kind of parameters moves along its gradient and, half as far, along itself.

    Each kind moves the loss alike, so that a small gradient is looked at as closely as a large one. Along itself,
    because wrong normalizations are wrong there. Without any gradient it is a constant vector.
    """
    groups = groups_by_reader(graph, check.block.params)
    v = torch.zeros_like(check.gradient)
    parts, gradients, weights = map(check.block.split, (v, check.gradient, check.theta))
    sizes = {name: _length(gradients, positions) for name, positions in groups.items()}
    largest = max(sizes.values())
    for name, positions in groups.items():
        if sizes[name] == 0.0:
            continue
        reach = largest / max(sizes[name], 1e-3 * largest)
        own = _length(weights, positions)
        for i in positions:
            parts[i].add_(gradients[i], alpha=reach / sizes[name])
            if own:
                parts[i].add_(weights[i], alpha=0.5 * reach / own)
    size = norm(v)
    if size == 0.0:
        return v.fill_(v.numel() ** -0.5)
    return v.mul_(1 / size)


def _along_rows(check: LineCheck, graph: LossGraph) -> Tensor:
    """A unit vector in which rows of weights grow or shrink, so that each raises the loss, each kind of them alike.

    Where a norm of rows is taken for a constant (a detached norm, DoRA), such a row has a slope, and the loss has none.
    A vector is one row. Without any such slope it is 0.
    """
    groups = groups_by_reader(graph, check.block.params)
    v = torch.zeros_like(check.gradient)
    parts, gradients, weights = (check.block.split(x) for x in (v, check.gradient, check.theta))
    slopes = dict.fromkeys(groups, 0.0)
    for name, positions in groups.items():
        for i in positions:
            p = check.block.params[i]
            rows = weights[i].view(len(p) if p.dim() > 1 and p.numel() else 1, -1)
            products = (rows * gradients[i].view_as(rows)).sum(1, keepdim=True)
            torch.mul(rows, products.sign(), out=parts[i].view_as(rows))
            slopes[name] += float(products.abs().sum())
    largest = max(slopes.values()) or 1.0
    for name, positions in groups.items():
        for i in positions:
            parts[i].mul_(largest / max(slopes[name], 1e-3 * largest))
    size = norm(v)
    return v.mul_(1 / size) if size > 0.0 else v


def _silent(check: LineCheck) -> _Still:
    """Random signs on the entries whose gradient is exactly 0; of length 0 where every entry has a gradient."""
    v = torch.zeros_like(check.gradient)
    parts, gradients, weights = map(check.block.split, (v, check.gradient, check.theta))
    for part, gradient, weight in zip(parts, gradients, weights, strict=True):
        still = gradient == 0
        if still.any():
            # As far as the weights are large, or a little where they are 0.
            part.add_(_signs(part).mul_(still), alpha=norm(weight) / weight.numel() ** 0.5 or 1e-2)
    length = norm(v)
    if length:
        v.mul_(1 / length)
    return _Still(v, "the entries whose gradient is 0", length)


def _padding_row(check: LineCheck, position: int, row: int) -> _Still:
    """Random signs on one row of an embedding."""
    v = torch.zeros_like(check.gradient)
    p = check.block.params[position]
    entries = check.block.split(v)[position].view(p.shape)[row]
    entries.copy_(_signs(entries) / entries.numel() ** 0.5)
    length = norm(p.detach().reshape(-1)) / len(p) ** 0.5
    return _Still(v, f"row padding_idx = {row} of an embedding", length)


def _signs(like: Tensor) -> Tensor:
    """Pseudo-random signs in the shape of `like`, the same whenever asked for; the global generator is not touched."""
    generator = torch.Generator(like.device).manual_seed(like.numel())
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _asymmetry(run: Deflation) -> Disagreement:
    """Asymmetry beyond three times the products' own errors."""
    error = run.noise + run.hessian.truncation(run.name)
    return Disagreement("symmetry", max(run.asymmetry() - 3 * error, 0.0), "its Lanczos vectors")


def _explained(gap: Disagreement, hessian: LossAtPoint) -> Disagreement:
    """A disagreement of curvature with its cause, as far as one can know: differences, or the loss's kinks."""
    if gap.kind == "gradient" or gap.size <= DOUBTFUL:
        return gap
    if hessian.differences:
        return replace(gap, kind="differences")
    if gap.kind == "curvature" and hessian.graph.nonsmooth:
        return replace(gap, kind="kinks")
    return gap
