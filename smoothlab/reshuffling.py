"""Algorithm 1 of the paper on a synthetic finite sum, for about a thousand replicas at once.

Epoch t goes through the n summands in an order of its own, and for each i of it in turn

    x <- x - eta_x ghat_x f_i(z),   y <- y - eta_y grad_y f_i(z),   both at the same z = (x, y),

where ghat_x is exact or the zeroth-order estimate of Eq. (2) along a fresh direction v, E vv' = I. Replicas differ in
their orders and directions only, and are independent. The state is fp64; memory does not depend on the number of
epochs. Replicas go in groups whose state stays in cache; where the objective is quadratic along rays (`ray`) an
estimate costs a gradient's inner product with v, which the step in y needs anyway, and no value of f.

`smoothlab.one_replica` is the same algorithm written plainly; tests/test_reshuffling.py holds both to the same draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smoothlab.directions import Law
from smoothlab.draws import Draws, Fresh, Order, Precision
from smoothlab.errors import BadInput
from smoothlab.objectives import Objective

Array = NDArray[np.float64]
Oracle = Literal["exact", "one-sided", "two-sided"]
GROUP = 1 << 17  # entries of the state of the replicas that go together


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


@dataclass(frozen=True)
class Algorithm1:
    """Algorithm 1 with its options.

    Attributes:
        eta_x: learning rate of x.
        eta_y: learning rate of y.
        epochs: T.
        order: "reshuffle": a fresh permutation every epoch, as in Algorithm 1; "once": the first one again and again;
            "replace": n independent numbers an epoch.
        oracle: gradient of x: "exact", or "one-sided" or "two-sided" as in Eq. (2).
        mu: step of Eq. (2); 0 is its limit <grad_x f_i(z), v> v.
        law: law of the directions: gaussian as in Eq. (2), sphere of radius sqrt(d_x), rademacher.
        above: F; a replica stops at the first t with f(z_t) - f* > F. None: never.
        below: eps^2; it stops at the first t >= 1 with (1/t) sum_{s < t} ||grad f(z_s)||^2 <= eps^2. None: never.
        halt: False goes on to T, and tells where it would have stopped.
        keep: epochs, ascending, at which f and squared gradients are kept.
        precision: of the normal numbers that are drawn; see `Fresh`.
    """

    eta_x: float
    eta_y: float
    epochs: int
    order: Order = "reshuffle"
    oracle: Oracle = "two-sided"
    mu: float = 0.0
    law: Law = "gaussian"
    above: float | None = None
    below: float | None = None
    halt: bool = True
    keep: tuple[int, ...] = ()
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for what, rate in (("eta_x", self.eta_x), ("eta_y", self.eta_y), ("mu", self.mu)):
            if not 0 <= rate < math.inf:
                raise BadInput(f"{what} = {rate}: use a finite number of at least 0")
        if self.epochs < 1:
            raise BadInput(f"{self.epochs} epochs: use at least 1")
        choices = {"order": Order, "oracle": Oracle, "law": Law, "precision": Precision}
        for what, kind in choices.items():
            if getattr(self, what) not in get_args(kind):
                raise BadInput(f"{what} '{getattr(self, what)}' is unknown: use one of {', '.join(get_args(kind))}")
        if list(self.keep) != sorted(set(self.keep)) or not all(0 <= t <= self.epochs for t in self.keep):
            raise BadInput(f"keep = {self.keep}: name epochs from 0 to {self.epochs}, ascending")
        for what, level in (("above", self.above), ("below", self.below)):
            if level is not None and not level >= 0:
                raise BadInput(f"{what} = {level}: use a number of at least 0, or None")

    def run(
        self,
        objective: Objective,
        z0: Tensor,
        replicas: int = 1000,
        seed: int | Sequence[int] = 0,
        draws: Draws | None = None,
    ) -> Result:
        """All replicas from `z0`.

        Args:
            objective: the finite sum.
            z0: where they start, [d] or [R, d].
            replicas: R.
            seed: fixes all draws; results depend on `replicas` too.
            draws: use these instead of drawing; one replica's results are then its own, whatever the others do.

        Raises:
            BadInput: sizes do not fit, z0 is not finite, or f has no finite mean after a step of a Gaussian estimate.
        """
        start = self._checked(objective, z0, replicas)
        key = (seed,) if isinstance(seed, int) else tuple(seed)
        size = max(1, GROUP // start.shape[1])
        size = -(-replicas // -(-replicas // size))  # groups of equal size
        result = Result.empty(replicas, start.shape[1], len(self.keep))
        with torch.no_grad():
            for number, members in enumerate(torch.arange(replicas).split(size)):
                mine = draws
                if mine is None:
                    mine = Fresh((*key, number), objective.n, objective.d_x, self.order, self.law, self.precision)
                _Group(self, objective, mine, start[members].clone(), members, result).run()
        return result

    def _checked(self, objective: Objective, z0: Tensor, replicas: int) -> Tensor:
        d = objective.d_x + objective.d_y
        if replicas < 1:
            raise BadInput(f"{replicas} replicas: use at least 1")
        if tuple(z0.shape) not in ((d,), (replicas, d)):
            raise BadInput(f"z0 has shape {tuple(z0.shape)}: give ({d},), or ({replicas}, {d})")
        if not torch.isfinite(z0).all():
            raise BadInput("z0 has entries that are not finite")
        if self.oracle != "exact" and self.law == "gaussian" and objective.gaussian_moments == "infinite":
            raise BadInput(
                f"{objective.gaussian_reason} (law 'sphere'): f has no finite mean after a Gaussian step, though no "
                "sample would show it"
            )
        return z0.detach().double().expand(replicas, d)


class _Group:
    """Replicas that go together; those that have stopped are written to the result and left out."""

    def __init__(
        self, how: Algorithm1, objective: Objective, draws: Draws, z: Tensor, live: Tensor, result: Result
    ) -> None:
        self.how, self.objective, self.draws, self.result = how, objective, draws, result
        self.places = {epoch: number for number, epoch in enumerate(how.keep)}
        self.shifts = objective.shifts.double() if objective.shifts.any() else None
        self.diagonal: Tensor | None = None  # of a Hessian that is diagonal and the same everywhere
        if objective.quadratic and objective.coupling is None:
            self.diagonal = objective.hessian(torch.zeros_like(z[0])).diagonal().contiguous()
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
        """Grad f(z), in scratch memory where it can be."""
        if self.diagonal is None:
            return self.objective.gradient(self.z)
        return torch.mul(self.z, self.diagonal, out=self.g)

    def _step(self, t: int, step: int, members: Tensor, gradient: Tensor | None) -> None:
        """One step of each replica on its summand; `gradient` is grad f(z) where that is known."""
        how, d_x = self.how, self.objective.d_x
        x, y = self.z[:, :d_x], self.z[:, d_x:]
        shift = None
        if self.shifts is not None:
            shift = torch.index_select(self.shifts, 0, members, out=self.work)
        if how.oracle == "exact":
            g = self._component(gradient, shift)
            x.add_(g[:, :d_x], alpha=-how.eta_x)
            y.add_(g[:, d_x:], alpha=-how.eta_y)
            return
        v = self.draws.direction(t, step, self.live)
        if how.mu == 0 or self.objective.quadratic:
            g = self._component(gradient, shift)
            slope, g_y = self._along(g[:, :d_x], v), g[:, d_x:]
        else:
            g_y = self._gradient_y() if gradient is None else gradient[:, d_x:]
            slope = self._quotient(v)
            if shift is not None:  # <shift, z> has the same difference quotient at every mu
                slope += torch.linalg.vecdot(shift[:, :d_x], v)
                g_y = g_y + shift[:, d_x:]
        x.addcmul_(slope.unsqueeze(1), v, value=-how.eta_x)
        y.add_(g_y, alpha=-how.eta_y)

    def _component(self, gradient: Tensor | None, shift: Tensor | None) -> Tensor:
        """Grad f_i(z), in memory that may be written to."""
        if shift is not None and gradient is None and self.diagonal is not None:
            return torch.addcmul(shift, self.z, self.diagonal, out=self.g)
        g = self._gradient() if gradient is None else gradient
        return g if shift is None else g.add_(shift)

    def _gradient_y(self) -> Tensor:
        """Grad_y f(z) alone, where x has no part in it."""
        y = self.z[:, self.objective.d_x :]
        if self.objective.coupling is None:
            return self.objective.y.slope(y)
        return self.objective.gradient(self.z)[:, self.objective.d_x :]

    def _along(self, g_x: Tensor, v: Tensor) -> Tensor:
        """The coefficient of v in the estimate for a quadratic f_i, or for mu = 0, from g_x, which is used up; [A]."""
        bend = self.how.mu / 2 if self.how.oracle == "one-sided" else 0.0
        if bend and self.diagonal is not None:  # <g, v> + (mu/2) <v, H v> in one pass
            g_x.addcmul_(v, self.diagonal[: g_x.shape[1]], value=bend)
        slope = torch.mul(g_x, v, out=self.products[:, : g_x.shape[1]]).sum(-1)
        if bend and self.diagonal is None:
            slope += self.objective.ray(self.z, v).curvature * bend
        return slope

    def _quotient(self, v: Tensor) -> Tensor:
        """The difference quotient of f along v, [A]."""
        how, objective, d_x = self.how, self.objective, self.objective.d_x
        moved = self.products.copy_(self.z)
        moved[:, :d_x].add_(v, alpha=how.mu)
        plus = objective.value(moved)
        if how.oracle == "one-sided":
            return (plus - objective.value(self.z)) / how.mu
        torch.add(self.z[:, :d_x], v, alpha=-how.mu, out=moved[:, :d_x])
        return (plus - objective.value(moved)) / (2 * how.mu)

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


def _or_infinite(values: Tensor, lost: Tensor) -> Array:
    found: Array = values.masked_fill(lost, math.inf).numpy()
    return found
