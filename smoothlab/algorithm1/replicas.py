"""Replicas of Algorithm 1 that go together, step by step: options, state, and observations.

`smoothlab.algorithm1.engine` makes the groups.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smoothlab.algorithm1.result import Result, or_infinite
from smoothlab.algorithm1.sampling import Draws, Order, Precision
from smoothlab.errors import BadInput
from smoothlab.objectives import FiniteSum, Objective
from smoothlab.zeroth.distributions import named

Oracle = Literal["exact", "one-sided", "two-sided"]


@dataclass(frozen=True)
class Options:
    """The options of Algorithm 1, see `smoothlab.Algorithm1`."""

    eta_x: float
    eta_y: float
    epochs: int
    order: Order = "reshuffle"
    oracle: Oracle = "two-sided"
    mu: float = 0.0
    distribution: str = "gaussian"
    above: float | None = None
    below: float | None = None
    halt: bool = True
    keep: tuple[int, ...] = ()
    precision: Precision = "float32"
    q: int = 1
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, rate in (("eta_x", self.eta_x), ("eta_y", self.eta_y), ("mu", self.mu)):
            if not 0 <= rate < math.inf:
                raise BadInput(f"{name} = {rate}: use a finite number of at least 0")
        if self.epochs < 1:
            raise BadInput(f"{self.epochs} epochs: use at least 1")
        if not isinstance(self.q, int) or self.q < 1:
            raise BadInput(f"q = {self.q} directions a step: use an integer of at least 1")
        for name, kind in (("order", Order), ("oracle", Oracle), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                raise BadInput(f"{name} '{getattr(self, name)}' is unknown: use one of {', '.join(get_args(kind))}")
        named(self.distribution)  # refuses an unknown name
        if list(self.keep) != sorted(set(self.keep)) or not all(0 <= t <= self.epochs for t in self.keep):
            raise BadInput(f"keep = {self.keep}: name epochs from 0 to {self.epochs}, ascending")
        for name, level in (("above", self.above), ("below", self.below)):
            if level is not None and not level >= 0:
                raise BadInput(f"{name} = {level}: use a number of at least 0, or None")


class Observed(NamedTuple):
    """Squared norms of both parts of grad f(z) and, where asked for, f(z) - f*, [A] each; and the gradient [A, d]."""

    square_x: Tensor
    square_y: Tensor
    gap: Tensor | None
    gradient: Tensor

    def of(self, members: Tensor) -> "Observed":
        """The observations of some replicas."""
        gap = None if self.gap is None else self.gap[members]
        return Observed(self.square_x[members], self.square_y[members], gap, self.gradient[members])


class Group:
    """Replicas that go together; those that have stopped are written to the result and left out."""

    def __init__(
        self, options: Options, objective: FiniteSum, draws: Draws, z: Tensor, live: Tensor, result: Result
    ) -> None:
        self.options, self.objective, self.draws, self.result = options, objective, draws, result
        zeros = torch.zeros(len(z), dtype=torch.float64)
        self._continue_with(z, live, zeros, zeros.clone())

    def _continue_with(self, z: Tensor, live: Tensor, sum_x: Tensor, sum_y: Tensor) -> None:
        """Go on with these; scratch memory is made once, as fresh pages cost more than what is done with them."""
        self.z, self.live, self.sum_x, self.sum_y = z, live, sum_x, sum_y
        self.g, self.work, self.products = torch.empty_like(z), torch.empty_like(z), torch.empty_like(z)

    def run(self) -> None:
        """Epochs until all have stopped, at most T."""
        options = self.options
        for t in range(options.epochs + 1):
            with_gap = options.above is not None or t in options.keep or t == options.epochs
            observed = self._stop(t, self._observe(with_gap))
            if not len(self.live):
                return
            if t in options.keep:
                self._keep(options.keep.index(t), observed)
            self.sum_x += observed.square_x
            self.sum_y += observed.square_y
            first: Tensor | None = observed.gradient  # the epoch begins at the point where it was taken
            for step, members in enumerate(self.draws.order(t, self.live)):
                self._step(t, step, members, first)
                first = None

    def _observe(self, gap: bool) -> Observed:
        g, d_x, value = self._gradient(), self.objective.d_x, None
        if gap:  # only then, as a value of f costs as much as its gradient
            value = self.objective.value(self.z) - self.objective.f_star
        squares = torch.mul(g, g, out=self.products)
        return Observed(squares[:, :d_x].sum(-1), squares[:, d_x:].sum(-1), value, g)

    def _gradient(self) -> Tensor:
        """grad f(z)."""
        return self.objective.gradient(self.z)

    def _step(self, t: int, step: int, members: Tensor, gradient: Tensor | None) -> None:
        """One step of each replica on its summand; `gradient` is grad f(z) where that is known."""
        options, d_x = self.options, self.objective.d_x
        x, y = self.z[:, :d_x], self.z[:, d_x:]
        if options.oracle == "exact":
            g = self._summand(members, gradient)
            x.add_(g[:, :d_x], alpha=-options.eta_x)
            y.add_(g[:, d_x:], alpha=-options.eta_y)
            return
        slope, g_y = self._estimate(members, gradient)
        if options.q == 1:  # the step itself is the sum: no memory for one, and one pass less
            v = self.draws.direction(t, step, self.live)
            x.addcmul_(slope(v).unsqueeze(1), v, value=-options.eta_x)
        else:
            # All q slopes are taken at the same z, so that x moves after the last of them.
            total = torch.zeros_like(x)
            for number in range(step * options.q, (step + 1) * options.q):
                v = self.draws.direction(t, number, self.live)
                total.addcmul_(slope(v).unsqueeze(1), v)
            x.add_(total, alpha=-options.eta_x / options.q)
        y.add_(g_y, alpha=-options.eta_y)

    def _summand(self, members: Tensor, gradient: Tensor | None) -> Tensor:
        """grad f_i(z)."""
        return self.objective.gradient_of(self.z, members)

    def _estimate(self, members: Tensor, gradient: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The coefficient of v in the estimate, as a function of v [A, d_x] that gives [A], and grad_y f_i(z)."""
        d_x = self.objective.d_x
        g = self._summand(members, gradient)
        if self.options.mu == 0:
            return lambda v: torch.linalg.vecdot(g[:, :d_x], v), g[:, d_x:]
        return lambda v: self._quotient(v, lambda z: self.objective.value_of(z, members)), g[:, d_x:]

    def _quotient(self, v: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """The difference quotient of a function of z along v, [A]."""
        options, d_x = self.options, self.objective.d_x
        moved = self.products.copy_(self.z)
        moved[:, :d_x].add_(v, alpha=options.mu)
        plus = value(moved)
        if options.oracle == "one-sided":
            return (plus - value(self.z)) / options.mu
        torch.add(self.z[:, :d_x], v, alpha=-options.mu, out=moved[:, :d_x])
        return (plus - value(moved)) / (2 * options.mu)

    def _stop(self, t: int, observed: Observed) -> Observed:
        """Take out the replicas that stop at the start of epoch t, all at T; return the observations of the others."""
        options, result = self.options, self.result
        lost = ~torch.isfinite(observed.square_x + observed.square_y)
        if observed.gap is not None:
            lost |= ~torch.isfinite(observed.gap)
        stops = lost | (t == options.epochs)
        if options.below is not None and t:  # an average over t < 0 is none
            stops |= self._mark(result.reached, t, ~lost & (self.sum_x + self.sum_y <= options.below * t))
        if options.above is not None and observed.gap is not None:
            stops |= self._mark(result.left, t, lost | (observed.gap > options.above))
        if stops.any():
            self._write(t, observed, stops, lost)
            stays = ~stops
            observed = observed.of(stays)
            self._continue_with(self.z[stays], self.live[stays], self.sum_x[stays], self.sum_y[stays])
        return observed

    def _mark(self, times: NDArray[np.int64], t: int, reached: Tensor) -> Tensor:
        """Note t as the time of those that have none yet; which of them stop."""
        members = self.live[reached].numpy()
        times[members] = np.where(times[members] < 0, t, times[members])
        return reached & self.options.halt

    def _write(self, t: int, observed: Observed, stops: Tensor, lost: Tensor) -> None:
        members, z = self.live[stops].numpy(), self.z[stops]
        result, observed, lost = self.result, observed.of(stops), lost[stops]
        result.diverged[members] = lost.numpy()
        result.epochs[members] = t
        result.z[members] = z.numpy()
        result.average_x[members] = or_infinite(self.sum_x[stops] / t, lost)
        result.average_y[members] = or_infinite(self.sum_y[stops] / t, lost)
        result.gap[members] = or_infinite(self.objective.value(z) - self.objective.f_star, lost)
        # A replica that has stopped stays where it is, at all epochs to come.
        for number, epoch in enumerate(self.options.keep):
            if epoch >= t:
                result.kept_gap[number, members] = result.gap[members]
                result.kept_x[number, members] = or_infinite(observed.square_x, lost)
                result.kept_y[number, members] = or_infinite(observed.square_y, lost)

    def _keep(self, number: int, observed: Observed) -> None:
        members = self.live.numpy()
        if observed.gap is not None:
            self.result.kept_gap[number, members] = observed.gap.numpy()
        self.result.kept_x[number, members] = observed.square_x.numpy()
        self.result.kept_y[number, members] = observed.square_y.numpy()


class Shifted(Group):
    """Components f + <c_i, z>: f is evaluated once for all, in scratch memory where its Hessian is one diagonal."""

    def __init__(
        self, options: Options, objective: Objective, draws: Draws, z: Tensor, live: Tensor, result: Result
    ) -> None:
        self.mean = objective
        self.shifts: Tensor | None = None  # left out where all are 0, as for one component: one pass less a step
        if objective.shifts.any():
            self.shifts = objective.shifts.double()
        self.diagonal: Tensor | None = None  # of a Hessian that is diagonal and the same everywhere
        if objective.quadratic and objective.coupling is None:
            self.diagonal = objective.hessian(torch.zeros_like(z[0])).diagonal().contiguous()
        super().__init__(options, objective, draws, z, live, result)

    def _gradient(self) -> Tensor:
        """grad f(z), in scratch memory where it can be."""
        if self.diagonal is None:
            return self.mean.gradient(self.z)
        return torch.mul(self.z, self.diagonal, out=self.g)

    def _shift(self, members: Tensor) -> Tensor | None:
        if self.shifts is None:
            return None
        return torch.index_select(self.shifts, 0, members, out=self.work)

    def _summand(self, members: Tensor, gradient: Tensor | None) -> Tensor:
        """grad f_i(z), in memory that may be written to."""
        shift = self._shift(members)
        if gradient is None:
            if shift is not None and self.diagonal is not None:  # in one pass
                return torch.addcmul(shift, self.z, self.diagonal, out=self.g)
            gradient = self._gradient()
        return gradient if shift is None else gradient.add_(shift)

    def _estimate(self, members: Tensor, gradient: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The coefficient of v, and grad_y f_i(z); <c_i, z> has the same difference quotient at every mu."""
        d_x = self.mean.d_x
        if self.options.mu == 0 or self.mean.quadratic:
            g = self._summand(members, gradient)
            if self.options.q == 1:
                return lambda v: self._along(g[:, :d_x], v), g[:, d_x:]
            return lambda v: self._along(g[:, :d_x].clone(), v), g[:, d_x:]
        g_y = self._gradient_y() if gradient is None else gradient[:, d_x:]
        shift = self._shift(members)
        if shift is None:
            return lambda v: self._quotient(v, self.mean.value), g_y

        def slope(v: Tensor) -> Tensor:
            return self._quotient(v, self.mean.value) + torch.linalg.vecdot(shift[:, :d_x], v)

        return slope, g_y + shift[:, d_x:]

    def _gradient_y(self) -> Tensor:
        """grad_y f(z) alone, where x has no part in it."""
        if self.mean.coupling is None:
            return self.mean.y.slope(self.z[:, self.mean.d_x :])
        return self.mean.gradient(self.z)[:, self.mean.d_x :]

    def _along(self, g_x: Tensor, v: Tensor) -> Tensor:
        """The coefficient of v in the estimate for a quadratic f_i, or for mu = 0, from g_x, which is used up; [A]."""
        # f(x + mu v) - f(x - mu v) has no even terms; f(x + mu v) - f(x) has the Hessian's.
        curvature = self.options.mu / 2 if self.options.oracle == "one-sided" else 0.0
        if curvature and self.diagonal is not None:  # <g, v> + (mu/2) <v, H v> in one pass
            g_x.addcmul_(v, self.diagonal[: g_x.shape[1]], value=curvature)
        slope = torch.mul(g_x, v, out=self.products[:, : g_x.shape[1]]).sum(-1)
        if curvature and self.diagonal is None:
            slope += self.mean.curvature_along(v) * curvature
        return slope
