"""Slopes and curvatures of a loss along a line, from evaluations of the loss alone.

A direction is looked at up to three times. First with two evaluations, at a step that changes the loss by 200 times its
rounding. Where these disagree by more than rounding and 0.5 % of a slope or 1 % of a curvature, two at twice the step
take the next term of Taylor's series out. Where that disagrees too, polynomials are fitted to eight evaluations at each
of up to four scales, and the finest scale that resolves the number decides. A loss that is infinite or NaN at a step
agrees with nothing: shorter steps are taken until it is finite. Where no scale resolves a slope, as the loss jumps by
100 times its rounding (a model with int8 activations does), that is told as a gap of its own, "rough".

Rounding is taken to be `ROUNDINGS` eps |f|, which the losses of deep models exceed ten times. So the first disagreement
at a point has four evaluations next to it say what rounding is. Without them every direction of a model of 30 layers
took all three looks.
"""

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from smoothlab.blocks import Block, dot, norm
from smoothlab.hessian.disagreements import DOUBTFUL, Disagreement, WrongProducts
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.shift import Shift

ROUNDINGS = 4.0  # rounding error of a loss, in units of eps |f|: sums of many terms are off by a few
_LOSS_CHANGE = 200.0  # change of the loss, in units of its rounding, at which a direction is first looked at
_SCALES = (0.125, 0.5, 2.0, 8.0)  # of the third look, in units of the first look's step
_POSITIONS = np.array([-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0])
_COARSE = 0.02  # share of a slope that may be curvature where one evaluation is to do
_RESOLVED = 0.03  # a scale whose standard error is this share of the number resolves it
_NONZERO = 5.0  # standard errors from which a number is not 0
_ROUGH = 100.0  # scatter, in units of the assumed rounding, from which a slope that nothing resolves is told

Pair = tuple[np.ndarray, np.ndarray]
"""Slope and curvature [2], and the error of each [2]."""


def check_repeats(point: LossAtPoint) -> None:
    """Refuse a loss that is another one when it is evaluated again; costs one evaluation, at the first call.

    Evaluations that agree with the gradient have repeated the loss already: it is asked for where they do not.

    Raises:
        WrongProducts: names both values.
    """
    if point.repeats:
        return
    # Threads and GPUs may split the sums of a loss in another way each time: several roundings are allowed.
    second, eps = point.evaluate(), max(torch.finfo(g.dtype).eps for g in point.gradients.values())
    if not abs(second - point.loss) <= 8 * ROUNDINGS * eps * abs(point.loss):
        raise WrongProducts(
            f"the loss is {point.loss:.12g} and then {second:.12g} at the same parameters: switch off dropout and "
            "other randomness (model.eval(), or smoothlab.blocks.fixed_loss), and fix the minibatch"
        )
    point.repeats = True


class LineCheck:
    """Slopes and curvatures of the loss along directions of one block, against g'v and v'Hv.

    Costs two evaluations of the loss a direction, two more where they disagree, and up to 32 more where these do, too;
    five once a point for its rounding, see `_rounds_more`; three vectors of the block's size.

    Args:
        point: loss, gradients and graph at the current parameters.
        block: whose directions are looked at.

    Attributes:
        gaps: the largest disagreement of each kind, "gradient" and "curvature".
    """

    def __init__(self, point: LossAtPoint, block: Block) -> None:
        self.block, self.gradient, self._evaluate = block, point.gradients[block.name], point.evaluate
        self._point = point
        self._shift, self.start = Shift(block), point.loss
        self.weights = [p.detach().reshape(-1) for p in block.params]  # views, not copies, of the block's memory
        self.size = math.sqrt(sum(dot(w, w) for w in self.weights))
        eps = torch.finfo(self.gradient.dtype).eps
        self._assumed = ROUNDINGS * eps * abs(self.start)
        # A moved weight is rounded to its precision, which moves the loss by g'(rounding).
        pairs = zip(self.weights, block.split(self.gradient), strict=True)
        self._of_weights = eps * math.sqrt(sum(norm(w * g) ** 2 for w, g in pairs))
        self.gaps = {"gradient": Disagreement("gradient"), "curvature": Disagreement("curvature")}

    @property
    def rounding(self) -> float:
        """Rounding error of one evaluation: the loss's, as assumed or measured, and the moved weights'."""
        return max(self._assumed, self._point.loss_rounding or 0.0) + self._of_weights

    def at(self, v: Tensor, s: float) -> tuple[float, float]:
        """The move along the unit vector v that rounding let through, and by how much it changes the loss."""
        with self._shift.along(v, s):
            value = self._evaluate()
        return self._shift.realized, value - self.start

    def compare(self, v: Tensor, where: str, curvature: float | None, least: float = 0.0) -> None:
        """Compare along the unit vector v, whose v'Hv is `curvature`; None: it is not known, and not compared.

        Slopes below `least` are as good as 0.
        """
        if not self.agrees(v, curvature, least=least):
            self.compare_by_fits(v, where, curvature, least=least)

    def agrees(self, v: Tensor, curvature: float | None, *, least: float = 0.0, longest: float = float("inf")) -> bool:
        """Whether the slope along the unit vector v is right to 0.5 %, and its curvature to 1 %."""
        slope = dot(self.gradient, v)
        step = min(self._step(slope, curvature or 0.0), longest)

        def matches(values: np.ndarray, noise: np.ndarray) -> bool:
            claimed = curvature
            if claimed is None:
                claimed = values[1]
            # Beside a steep curvature a small slope is not resolved, and need not be: it moves the loss by less.
            least_slope = max(abs(slope), least) + abs(claimed) * step
            if not abs(values[0] - slope) <= noise[0] + DOUBTFUL * least_slope:
                return False
            # Rounding beyond what is assumed must not excuse a number that it hides: longer steps resolve it.
            resolved = _RESOLVED if self.rounding > self._assumed + self._of_weights else math.inf
            if noise[0] > resolved * least_slope:
                return False
            if curvature is None:
                return True
            disagrees = abs(values[1] - claimed) > noise[1] + 2 * DOUBTFUL * abs(claimed)
            return not disagrees and bool(noise[1] <= resolved * abs(claimed))

        short = self._differences(v, step)
        if short is None:
            return False
        if matches(*short):
            return True
        long = self._differences(v, 2 * step)
        if long is None:
            return False
        # Twice the step has a quarter of the rounding. Richardson: its error is four times that of the shorter one.
        if matches(*long) or matches((4 * short[0] - long[0]) / 3, (4 * short[1] + long[1]) / 3):
            return True
        return self._rounds_more(v, step, short) and self.agrees(v, curvature, least=least, longest=longest)

    def _rounds_more(self, v: Tensor, step: float, differences: Pair) -> bool:
        """Whether the loss is found to round more than was assumed; measured once a point, with five evaluations.

        f(s) + f(-s) - 2 f(0) has no slope in it. Where s is so short that its curvature, as `differences` shows it at
        `step`, is a tenth of the assumed rounding, it is the rounding of three evaluations, that of f(0) twice, which
        all differences of the point share: half of the larger of two is taken for the bound of one.
        """
        if self._point.loss_rounding is not None:
            return False
        check_repeats(self._point)  # a loss that is another one each time has no rounding
        even = abs(float(differences[0][1])) * step**2
        shortened = step * min(1 / 64, math.sqrt(0.1 * self._assumed / even) if even else 1.0)
        noises = [abs(self.at(v, s)[1] + self.at(v, -s)[1]) / 2 for s in (shortened, 0.7 * shortened)]
        measured = max(noises)
        self._point.loss_rounding = measured if math.isfinite(measured) else 0.0
        return self._point.loss_rounding > self._assumed

    def _differences(self, v: Tensor, step: float) -> Pair | None:
        """First and second difference along v, with the rounding of each.

        None where weights round the move away, or the loss is not finite at one end.
        """
        (up, above), (down, below) = self.at(v, step), self.at(v, -step)
        length = (up - down) / 2
        if not length > 0.5 * step or not math.isfinite(above + below):
            return None
        values = np.array([(above - below) / (2 * length), (above + below) / length**2])
        return values, np.array([2 * self.rounding / length, 4 * self.rounding / length**2])

    def short_step(self, v: Tensor) -> float:
        """The step along the unit vector v whose slope, if any, changes the loss by 200 roundings at most."""
        slope = dot(self.gradient, v)
        if not slope:
            return 0.0
        return min(_LOSS_CHANGE * self.rounding / abs(slope), self._step(slope, 0.0))

    def follows_slope(self, move: Tensor) -> bool:
        """Whether a move of the block changes the loss as its slope says, to 2 % and two roundings; one evaluation."""
        length = norm(move)
        v = move / length
        moved, change = self.at(v, length)
        expected = dot(self.gradient, v) * moved
        return moved > 0.5 * length and abs(change - expected) <= 2 * self.rounding + _COARSE * abs(expected)

    def compare_by_fits(
        self, v: Tensor, where: str, curvature: float | None, step: float | None = None, *, least: float = 0.0
    ) -> None:
        """Compare along v by fits at four scales around `step`, if the loss is the same when it is evaluated again."""
        check_repeats(self._point)
        slope, claimed = dot(self.gradient, v), curvature or 0.0
        if step is None:
            step = self._step(slope, claimed)
        fitted, overflows = self._judge_by_fits(v, where, slope, curvature, step, least), False
        while not fitted and self._overflows(v, _SCALES[0] * step):
            overflows = True
            step *= _SCALES[0] / _SCALES[-1]
            fitted = self._judge_by_fits(v, where, slope, curvature, step, least)
        if overflows and not fitted:  # shorter moves are rounded away: the loss is finite at the point alone
            self.gaps["gradient"] = Disagreement("gradient", math.inf, where, slope, math.inf)

    def _judge_by_fits(
        self, v: Tensor, where: str, slope: float, curvature: float | None, step: float, least: float
    ) -> bool:
        """Judge slope and curvature at the finest scales around a step that resolve them; whether there was a fit.

        Coarser scales are left out as soon as both are judged. A slope that none resolves in a rough loss is kept as
        a gap of the kind "rough".
        """
        unresolved = ["gradient"] if curvature is None else ["gradient", "curvature"]
        fitted, smoothest = False, math.inf
        for scale in _SCALES:
            fit = self._fit(v, scale * step)
            if fit is None:
                continue
            fitted = True
            values, errors, scatter = fit
            smoothest = min(smoothest, scatter)
            claimed = curvature or 0.0
            if "gradient" in unresolved and self._judge(
                "gradient", where, slope, float(values[0]), float(errors[0]), max(abs(claimed) * step, least)
            ):
                unresolved.remove("gradient")
            if "curvature" in unresolved and self._judge(
                "curvature", where, claimed, float(values[1]), float(errors[1]), 0.0
            ):
                unresolved.remove("curvature")
            if not unresolved:
                break
        # At the finest scale a smooth loss follows its polynomial, but for its rounding, which is unknown at 0.
        if fitted and "gradient" in unresolved and 0 < _ROUGH * self._assumed < smoothest:
            self.gaps["rough"] = Disagreement("rough", smoothest / self._assumed, where, slope)
        return fitted

    def _step(self, slope: float, curve: float) -> float:
        """The step whose curvature changes the loss by 200 roundings, and whose slope changes it by at most 2 %."""
        change = max(_LOSS_CHANGE * self.rounding, 1e-6 * abs(self.start)) or 1e-6  # the size of a loss of 0 is unknown
        longest = 0.01 * (self.size or 1.0)
        if slope:
            longest = min(longest, max(0.02 * abs(self.start), change) / abs(slope))
        if curve:
            longest = min(math.sqrt(2 * change / abs(curve)), longest)
        return longest

    def _overflows(self, v: Tensor, step: float) -> bool:
        """Whether the loss is infinite or NaN at one end of the step."""
        return not math.isfinite(self.at(v, step)[1] + self.at(v, -step)[1])

    def _fit(self, v: Tensor, step: float) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Slope and curvature, the error of each, and the scatter about the polynomial of degree 4 through 0.

        None where moves are lost, or the loss is not finite.
        """
        moves, y = np.array([self.at(v, s) for s in _POSITIONS * step]).T
        x = moves / step
        if np.abs(x - _POSITIONS).max() > 0.1 or not np.isfinite(y).all():
            return None
        powers = np.vander(x, 5, increasing=True)[:, 1:]
        solution, *_ = np.linalg.lstsq(powers, y, rcond=None)
        degrees = len(x) - powers.shape[1]
        scatter = (float(((y - powers @ solution) ** 2).sum()) / degrees) ** 0.5
        # Evaluations that are all alike have no scatter, and are rounded all the same.
        noise = float(stats.t.ppf(0.999, degrees)) * max(scatter, self.rounding / 4)
        first, second = noise * np.linalg.inv(powers.T @ powers).diagonal()[:2] ** 0.5
        values = np.array([solution[0] / step, 2 * solution[1] / step**2])
        return values, np.array([first / step, 2 * second / step**2]), scatter

    def _judge(self, kind: str, where: str, claimed: float, value: float, error: float, least: float) -> bool:
        """Compare `claimed` with a fit's number, if that is resolved, and keep the largest disagreement.

        Numbers below `least` are as good as 0 beside what else moves the loss. Returns whether it is resolved.
        """
        size = max(abs(value), abs(claimed), least)
        # A slope where there is none is one, to whatever precision.
        if not (error <= _RESOLVED * size or (claimed == 0.0 and abs(value) > _NONZERO * error)):
            return False
        gap = max(abs(value - claimed) - error, 0.0) / size
        if gap > self.gaps[kind].size:
            self.gaps[kind] = Disagreement(kind, gap, where, claimed, value)
        return True
