"""Algorithm 1 of the paper on a synthetic finite sum, for about a thousand replicas at once.

Epoch t goes through the n summands in an order of its own, and for each i of it in turn

    x <- x - eta_x ghat_x f_i(z),   y <- y - eta_y grad_y f_i(z),   both at the same z = (x, y),

where ghat_x is exact or the mean of q zeroth-order estimates of Eq. (2) along fresh directions v, E vv' = I. Replicas
differ in their orders and directions only, and are independent. The state is fp64; memory does not depend on the
number of epochs. Replicas go in groups whose state stays in cache; where the objective is quadratic along rays (`ray`)
an estimate costs a gradient's inner product with v, which the step in y needs anyway, and no value of f. Sums whose
components curve differently (`smoothlab.objectives.curved`) are evaluated component by component.

`smoothlab.algorithm1.reference` is the same algorithm written plainly; tests/algorithm1/test_engine.py holds both to
the same draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from smoothlab.algorithm1.replicas import Group, Result, Shifted
from smoothlab.algorithm1.sampling import Draws, Fresh, Order, Precision
from smoothlab.errors import BadInput
from smoothlab.objectives import FiniteSum, Objective
from smoothlab.zeroth.distributions import named

Oracle = Literal["exact", "one-sided", "two-sided"]
GROUP = 1 << 17  # entries of the state of the replicas that go together


@dataclass(frozen=True)
class Algorithm1:
    """Algorithm 1 with its options.

    >>> import torch
    >>> from smoothlab import Algorithm1, Quadratic, objective
    >>> f = objective(Quadratic(10.0), Quadratic(0.5), n=4, sigma=1.0)
    >>> Algorithm1(eta_x=1e-3, eta_y=0.1, epochs=5).run(f, torch.ones(f.dim), replicas=10).average.shape
    (10,)

    Attributes:
        eta_x: learning rate of x.
        eta_y: learning rate of y.
        epochs: T.
        order: "reshuffle": a fresh permutation every epoch, as in Algorithm 1; "once": the first one again and again;
            "replace": n independent numbers an epoch.
        oracle: gradient of x: "exact", or "one-sided" or "two-sided" as in Eq. (2).
        mu: step of Eq. (2); 0 is its limit <grad_x f_i(z), v> v.
        distribution: name of the directions' distribution, see `smoothlab.zeroth.names.DISTRIBUTIONS`: "gaussian" as in
            Eq. (2), "sphere" of radius sqrt(d_x), "sparse(0.25)", ...
        above: F; a replica stops at the first t with f(z_t) - f* > F. None: never.
        below: eps^2; it stops at the first t >= 1 with (1/t) sum_{s < t} ||grad f(z_s)||^2 <= eps^2. None: never.
        halt: False goes on to T, and tells where it would have stopped.
        keep: epochs, ascending, at which f and squared gradients are kept.
        precision: of the normal numbers that are drawn; see `Fresh`.
        q: directions a step, whose estimates are averaged.
    """

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

    def __post_init__(self) -> None:
        for what, rate in (("eta_x", self.eta_x), ("eta_y", self.eta_y), ("mu", self.mu)):
            if not 0 <= rate < math.inf:
                raise BadInput(f"{what} = {rate}: use a finite number of at least 0")
        if self.epochs < 1:
            raise BadInput(f"{self.epochs} epochs: use at least 1")
        if not isinstance(self.q, int) or self.q < 1:
            raise BadInput(f"q = {self.q} directions a step: use an integer of at least 1")
        choices = {"order": Order, "oracle": Oracle, "precision": Precision}
        for what, kind in choices.items():
            if getattr(self, what) not in get_args(kind):
                raise BadInput(f"{what} '{getattr(self, what)}' is unknown: use one of {', '.join(get_args(kind))}")
        named(self.distribution)  # refuses an unknown name
        if list(self.keep) != sorted(set(self.keep)) or not all(0 <= t <= self.epochs for t in self.keep):
            raise BadInput(f"keep = {self.keep}: name epochs from 0 to {self.epochs}, ascending")
        for what, level in (("above", self.above), ("below", self.below)):
            if level is not None and not level >= 0:
                raise BadInput(f"{what} = {level}: use a number of at least 0, or None")

    def run(
        self,
        objective: FiniteSum,
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
                    mine = Fresh(
                        (*key, number), objective.n, objective.d_x, self.order, self.distribution, self.precision
                    )
                parts = (mine, start[members].clone(), members, result)
                if isinstance(objective, Objective):
                    Shifted(self, objective, *parts).run()
                else:
                    Group(self, objective, *parts).run()
        return result

    def _checked(self, objective: FiniteSum, z0: Tensor, replicas: int) -> Tensor:
        d = objective.d_x + objective.d_y
        if replicas < 1:
            raise BadInput(f"{replicas} replicas: use at least 1")
        if tuple(z0.shape) not in ((d,), (replicas, d)):
            raise BadInput(f"z0 has shape {tuple(z0.shape)}: give ({d},), or ({replicas}, {d})")
        if not torch.isfinite(z0).all():
            raise BadInput("z0 has entries that are not finite")
        unbounded = not named(self.distribution).bounded
        if self.oracle != "exact" and unbounded and objective.gaussian_moments == "infinite":
            raise BadInput(
                f"{objective.gaussian_reason} (distribution 'sphere'): f has no finite mean after a Gaussian step, "
                "though no sample would show it"
            )
        return z0.detach().double().expand(replicas, d)
