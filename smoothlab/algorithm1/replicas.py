"""Replicas of Algorithm 1 that go together, step by step: their state, what is seen of it, and what became of them.

`smoothlab.algorithm1.engine` has the algorithm's options and makes the groups.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smoothlab.algorithm1.sampling import Draws
from smoothlab.objectives import FiniteSum, Objective

if TYPE_CHECKING:
    from smoothlab.algorithm1.engine import Algorithm1

Array = NDArray[np.float64]


class Observed(NamedTuple):
    """What a point z tells: squared norms of both parts of grad f(z) and, where asked for, f(z) - f*; [A] each."""

    square_x: Tensor
    square_y: Tensor
    gap: Tensor | None
    gradient: Tensor


@dataclass(frozen=True)
class Result:
    """What became of R replicas; tau is where one stopped, at most T.

    Attributes:
        epochs: tau, int [R].
        average_x: (1/tau) sum_{t < tau} ||grad_x f(z_t)||^2, [R]; infinite where the replica diverged, NaN if tau = 0.
        average_y: the same of grad_y.
        gap: f(z_tau) - f*, [R]; infinite where the replica diverged.
        z: z_tau, [R, d].
        left: first t with f(z_t) - f* above `Algorithm1.above`, or where it diverged; -1 if there is none or none
            was asked for, int [R].
        reached: first t >= 1 with (1/t) sum_{s < t} ||grad f(z_s)||^2 at most `Algorithm1.below`, or -1.
        diverged: whether the gradient (or f where it was asked for) was not finite any more, bool [R].
        kept_gap: f(z_t) - f* at the epochs `Algorithm1.keep`, [len(keep), R]; after tau it stays what it was there.
        kept_x: ||grad_x f(z_t)||^2 likewise.
        kept_y: ||grad_y f(z_t)||^2 likewise.
    """

    epochs: NDArray[np.int64]
    average_x: Array
    average_y: Array
    gap: Array
    z: Array
    left: NDArray[np.int64]
    reached: NDArray[np.int64]
    diverged: NDArray[np.bool_]
    kept_gap: Array
    kept_x: Array
    kept_y: Array

    @property
    def average(self) -> Array:
        """(1/tau) sum_{t < tau} ||grad f(z_t)||^2, [R]."""
        return self.average_x + self.average_y

    @classmethod
    def empty(cls, replicas: int, d: int, kept: int) -> "Result":
        """Arrays to be filled."""

        def numbers(*shape: int) -> Array:
            return np.full(shape, math.inf)

        def never() -> NDArray[np.int64]:
            return np.full(replicas, -1)

        return cls(
            never(), numbers(replicas), numbers(replicas), numbers(replicas), numbers(replicas, d), never(), never(),
            np.zeros(replicas, dtype=bool), numbers(kept, replicas), numbers(kept, replicas), numbers(kept, replicas),
        )  # fmt: skip


class Group:
    """Replicas that go together; those that have stopped are written to the result and left out."""

    def __init__(
        self, how: "Algorithm1", objective: FiniteSum, draws: Draws, z: Tensor, live: Tensor, result: Result
    ) -> None:
        self.how, self.objective, self.draws, self.result = how, objective, draws, result
        self.places = {epoch: number for number, epoch in enumerate(how.keep)}
        zeros = torch.zeros(len(z), dtype=torch.float64)
        self._take(z, live, zeros, zeros.clone())

    def _take(self, z: Tensor, live: Tensor, sum_x: Tensor, sum_y: Tensor) -> None:
        """Go on with these; scratch memory is made once, as fresh pages cost more than what is done with them."""
        self.z, self.live, self.sum_x, self.sum_y = z, live, sum_x, sum_y
        self.g, self.work, self.products = torch.empty_like(z), torch.empty_like(z), torch.empty_like(z)

    def run(self) -> None:
        """Epochs until all have stopped, at most T."""
        how = self.how
        for t in range(how.epochs + 1):
            seen = self._stop(t, self._observe(how.above is not None or t in self.places or t == how.epochs))
            if not len(self.live):
                return
            if t in self.places:
                self._keep(self.places[t], seen)
            self.sum_x += seen.square_x
            self.sum_y += seen.square_y
            first: Tensor | None = seen.gradient  # the epoch begins where it was taken
            for step, members in enumerate(self.draws.order(t, self.live)):
                self._step(t, step, members, first)
                first = None

    def _observe(self, gap: bool) -> Observed:
        g, d_x = self._gradient(), self.objective.d_x
        value = self.objective.value(self.z) - self.objective.f_star if gap else None
        squares = torch.mul(g, g, out=self.products)
        return Observed(squares[:, :d_x].sum(-1), squares[:, d_x:].sum(-1), value, g)

    def _gradient(self) -> Tensor:
        """grad f(z)."""
        return self.objective.gradient(self.z)

    def _step(self, t: int, step: int, members: Tensor, gradient: Tensor | None) -> None:
        """One step of each replica on its summand; `gradient` is grad f(z) where that is known."""
        how, d_x = self.how, self.objective.d_x
        x, y = self.z[:, :d_x], self.z[:, d_x:]
        if how.oracle == "exact":
            g = self._summand(members, gradient)
            x.add_(g[:, :d_x], alpha=-how.eta_x)
            y.add_(g[:, d_x:], alpha=-how.eta_y)
            return
        slope, g_y = self._estimate(members, gradient)
        if how.q == 1:
            v = self.draws.direction(t, step, self.live)
            x.addcmul_(slope(v).unsqueeze(1), v, value=-how.eta_x)
        else:
            total = torch.zeros_like(x)
            for number in range(step * how.q, (step + 1) * how.q):
                v = self.draws.direction(t, number, self.live)
                total.addcmul_(slope(v).unsqueeze(1), v)
            x.add_(total, alpha=-how.eta_x / how.q)
        y.add_(g_y, alpha=-how.eta_y)

    def _summand(self, members: Tensor, gradient: Tensor | None) -> Tensor:
        """grad f_i(z)."""
        return self.objective.gradient_of(self.z, members)

    def _estimate(self, members: Tensor, gradient: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The coefficient of v in the estimate, as a function of v [A, d_x] that gives [A], and grad_y f_i(z)."""
        d_x = self.objective.d_x
        g = self._summand(members, gradient)
        if self.how.mu == 0:
            return lambda v: torch.linalg.vecdot(g[:, :d_x], v), g[:, d_x:]
        return lambda v: self._quotient(v, lambda z: self.objective.value_of(z, members)), g[:, d_x:]

    def _quotient(self, v: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """The difference quotient of a function of z along v, [A]."""
        how, d_x = self.how, self.objective.d_x
        moved = self.products.copy_(self.z)
        moved[:, :d_x].add_(v, alpha=how.mu)
        plus = value(moved)
        if how.oracle == "one-sided":
            return (plus - value(self.z)) / how.mu
        torch.add(self.z[:, :d_x], v, alpha=-how.mu, out=moved[:, :d_x])
        return (plus - value(moved)) / (2 * how.mu)

    def _stop(self, t: int, seen: Observed) -> Observed:
        """Take out those whose time it is at the start of epoch t, all of them at T; what was seen of the others."""
        how, result = self.how, self.result
        gone = ~torch.isfinite(seen.square_x + seen.square_y)
        if seen.gap is not None:
            gone |= ~torch.isfinite(seen.gap)
        stops = gone.clone() if t < how.epochs else torch.ones_like(gone)
        if how.below is not None and t:
            stops |= self._mark(result.reached, t, ~gone & (self.sum_x + self.sum_y <= how.below * t))
        if how.above is not None and seen.gap is not None:
            stops |= self._mark(result.left, t, gone | (seen.gap > how.above))
        if stops.any():
            self._write(t, seen, stops, gone)
            stays = ~stops
            gap = None if seen.gap is None else seen.gap[stays]
            seen = Observed(seen.square_x[stays], seen.square_y[stays], gap, seen.gradient[stays])
            self._take(self.z[stays], self.live[stays], self.sum_x[stays], self.sum_y[stays])
        return seen

    def _mark(self, times: NDArray[np.int64], t: int, now: Tensor) -> Tensor:
        """Note t as the time of those that have none yet; which of them stop."""
        members = self.live[now].numpy()
        times[members] = np.where(times[members] < 0, t, times[members])
        return now if self.how.halt else torch.zeros_like(now)

    def _write(self, t: int, seen: Observed, stops: Tensor, gone: Tensor) -> None:
        members, z = self.live[stops].numpy(), self.z[stops]
        result, lost = self.result, gone[stops]
        result.diverged[members] = lost.numpy()
        result.epochs[members] = t
        result.z[members] = z.numpy()
        result.average_x[members] = _or_infinite(self.sum_x[stops] / t, lost)
        result.average_y[members] = _or_infinite(self.sum_y[stops] / t, lost)
        result.gap[members] = _or_infinite(self.objective.value(z) - self.objective.f_star, lost)
        for epoch, number in self.places.items():
            if epoch >= t:
                result.kept_gap[number, members] = result.gap[members]
                result.kept_x[number, members] = _or_infinite(seen.square_x[stops], lost)
                result.kept_y[number, members] = _or_infinite(seen.square_y[stops], lost)

    def _keep(self, number: int, seen: Observed) -> None:
        members = self.live.numpy()
        if seen.gap is not None:
            self.result.kept_gap[number, members] = seen.gap.numpy()
        self.result.kept_x[number, members] = seen.square_x.numpy()
        self.result.kept_y[number, members] = seen.square_y.numpy()


class Shifted(Group):
    """Components f + <c_i, z>: f is evaluated once for all, in scratch memory where its Hessian is one diagonal."""

    def __init__(
        self, how: "Algorithm1", objective: Objective, draws: Draws, z: Tensor, live: Tensor, result: Result
    ) -> None:
        self.mean = objective
        self.shifts = objective.shifts.double() if objective.shifts.any() else None
        self.diagonal: Tensor | None = None  # of a Hessian that is diagonal and the same everywhere
        if objective.quadratic and objective.coupling is None:
            self.diagonal = objective.hessian(torch.zeros_like(z[0])).diagonal().contiguous()
        super().__init__(how, objective, draws, z, live, result)

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
        if shift is not None and gradient is None and self.diagonal is not None:
            return torch.addcmul(shift, self.z, self.diagonal, out=self.g)
        g = self._gradient() if gradient is None else gradient
        return g if shift is None else g.add_(shift)

    def _estimate(self, members: Tensor, gradient: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """See `Group`; <c_i, z> has the same difference quotient at every mu."""
        d_x = self.mean.d_x
        if self.how.mu == 0 or self.mean.quadratic:
            g = self._summand(members, gradient)
            g_x, several = g[:, :d_x], self.how.q > 1
            return (lambda v: self._along(g_x.clone() if several else g_x, v)), g[:, d_x:]
        g_y, shift = self._gradient_y() if gradient is None else gradient[:, d_x:], self._shift(members)
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
        bend = self.how.mu / 2 if self.how.oracle == "one-sided" else 0.0
        if bend and self.diagonal is not None:  # <g, v> + (mu/2) <v, H v> in one pass
            g_x.addcmul_(v, self.diagonal[: g_x.shape[1]], value=bend)
        slope = torch.mul(g_x, v, out=self.products[:, : g_x.shape[1]]).sum(-1)
        if bend and self.diagonal is None:
            slope += self.mean.ray(self.z, v).curvature * bend
        return slope


def _or_infinite(values: Tensor, lost: Tensor) -> Array:
    found: Array = values.masked_fill(lost, math.inf).numpy()
    return found
