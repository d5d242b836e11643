"""Algorithm 1 of the paper on a synthetic finite sum, for about a thousand replicas at once.

Epoch t goes through the n summands in an order of its own, and for each i of it in turn

    x <- x - eta_x ghat_x f_i(z),   y <- y - eta_y grad_y f_i(z),   both at the same z = (x, y),

where ghat_x is exact or the mean of q zeroth-order estimates of Eq. (2) along fresh directions v, E vv' = I. Replicas
differ in their orders and directions only, and are independent. The state is fp64; memory does not depend on the
number of epochs. Replicas go in groups whose state stays in cache; where the objective is quadratic an
estimate costs a gradient's inner product with v, which the step in y needs anyway, and no value of f. Sums whose
components curve differently (`smoothlab.objectives.curved`) are evaluated component by component.

`smoothlab.algorithm1.reference` is the same algorithm written plainly; tests/algorithm1/test_engine.py holds both to
the same draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smoothlab.algorithm1.replicas import Group, Options, Shifted
from smoothlab.algorithm1.result import Result
from smoothlab.algorithm1.sampling import Draws, Fresh
from smoothlab.errors import BadInput
from smoothlab.objectives import FiniteSum, Objective
from smoothlab.zeroth.distributions import named

GROUP = 1 << 17  # entries of the state of the replicas that go together


@dataclass(frozen=True)
class Algorithm1(Options):
    """Algorithm 1 of the paper on a synthetic finite sum, run by many replicas at once.

    >>> import torch
    >>> from smoothlab import Algorithm1, Quadratic, objective
    >>> f = objective(Quadratic(10.0), Quadratic(0.5), n=4, sigma=1.0)
    >>> Algorithm1(eta_x=1e-3, eta_y=0.1, epochs=5).run(f, torch.ones(f.dim), replicas=10).average.shape
    (10,)

    Attributes:
        eta_x: learning rate of x.
        eta_y: learning rate of y.
        epochs: number of epochs T.
        order: order in which an epoch visits the n components: "reshuffle", a new permutation every epoch, as in the
            paper; "once", the first permutation in all epochs; "replace", n independent draws.
        oracle: gradient of x: "exact", or zeroth-order, "one-sided" or "two-sided", as in Eq. (2).
        mu: perturbation mu of Eq. (2); 0 takes the limit <grad_x f_i(z), v> v.
        distribution: name of the directions' distribution, see `smoothlab.zeroth.names.DISTRIBUTIONS`: "gaussian" as in
            Eq. (2), "sphere" of radius sqrt(d_x), "sparse(0.25)", ...
        above: level F; a replica stops at the first epoch t with f(z_t) - f* > F. None: never.
        below: level eps^2; a replica stops at the first epoch t >= 1 with (1/t) sum_{s < t} ||grad f(z_s)||^2 <= eps^2.
            None: never.
        halt: whether replicas stop there; False goes on to T, and only notes where they would have.
        keep: epochs, ascending, at which f and the squared gradient norms are kept.
        precision: number format in which normal numbers are drawn; "float64" costs five times as much.
        q: number of directions that a zeroth-order gradient averages over.
        shape: shape of x as a tensor, e.g. (2, 5) for a matrix, which low-rank directions go by; a vector if empty, on
            which they are Gaussian.
    """

    def run(
        self, objective: FiniteSum, z0: Tensor, replicas: int = 1000, seed: int | Sequence[int] = 0,
        draws: Draws | None = None,
    ) -> Result:  # fmt: skip
        """Run all replicas from `z0`.

        Args:
            objective: the finite sum.
            z0: the start z_0 = (x, y), [d], or one for each of R replicas, [R, d].
            replicas: number of replicas R.
            seed: fixes all draws; results depend on `replicas` too.
            draws: use these instead of drawing; one replica's results are then its own, whatever the others do.

        Raises:
            BadInput: sizes do not fit, z0 is not finite, or f has no finite mean after a step of a Gaussian estimate.
        """
        start = self._checked(objective, z0, replicas)
        if isinstance(seed, int):
            seed = (seed,)
        size = max(1, GROUP // objective.dim)
        size = -(-replicas // -(-replicas // size))  # groups of equal size
        result = Result.empty(replicas, objective.dim, len(self.keep))
        with torch.no_grad():
            for number, members in enumerate(torch.arange(replicas).split(size)):
                # A stream of draws for every group: they may then be run in any order.
                source = draws or Fresh((*seed, number), objective.n, objective.d_x, self.order, self.distribution,
                                        self.precision, self.shape)  # fmt: skip
                parts = (source, start[members].clone(), members, result)
                if isinstance(objective, Objective):
                    Shifted(self, objective, *parts).run()
                else:
                    Group(self, objective, *parts).run()
        return result

    def _checked(self, objective: FiniteSum, z0: Tensor, replicas: int) -> Tensor:
        d = objective.dim
        if replicas < 1:
            raise BadInput(f"{replicas} replicas: use at least 1")
        if tuple(z0.shape) not in ((d,), (replicas, d)):
            raise BadInput(f"z0 has shape {tuple(z0.shape)}: give ({d},), or ({replicas}, {d})")
        if self.shape and math.prod(self.shape) != objective.d_x:
            raise BadInput(
                f"shape = {self.shape} of x has {math.prod(self.shape)} entries, not d_x = {objective.d_x}: "
                "give x's shape, or leave shape out"
            )
        if not torch.isfinite(z0).all():
            raise BadInput("z0 has entries that are not finite: start at a finite point")
        unbounded = not named(self.distribution).bounded
        if self.oracle != "exact" and unbounded and objective.gaussian_moments == "infinite":
            raise BadInput(
                f"{objective.gaussian_reason} (distribution 'sphere'): f has no finite mean after a Gaussian step, "
                "though no sample would show it"
            )
        return z0.detach().double().expand(replicas, d)
