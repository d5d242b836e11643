"""Algorithm 1 on quadratics with Hessians of their own: the second moments of z after an epoch, exactly.

f_i = z'H_i z/2 + c_i'z. With w = (z, 1), W = E ww' and B_i = [H_i c_i], so that grad f_i = B_i w, a step on summand i
is

    W -> A_i W A_i' + (eta_x^2/q) P_x [a tr(S) I + (2a - 1) S] P_x,   A_i = I - diag(eta_x I, eta_y I, 0) [B_i; 0],

S = B_i W B_i' within block x; a = 1 for Gaussian directions and d/(d + 2) for those of the sphere of radius sqrt(d),
since E vv'gg'vv' = a (||g||^2 I + 2gg'); without the second term for exact gradients. It holds for the two-sided
estimate at any mu. A reshuffled epoch is the mean over all orders of n such linear maps: with K_S the mean over the
orders of a subset S, K_S = mean_{i in S} step_i K_{S - i}, 2^n maps instead of n! products.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from smoothlab.objectives import FiniteSum, QuadraticSum

Array = NDArray[np.float64]
MOST = 60  # 2^60 epochs: no T is looked for beyond
RATES = 25  # tried at a time


@dataclass(frozen=True)
class Moments:
    """The recursion of one problem."""

    f: QuadraticSum  # quadratics, at most about 10 of them
    z0: Array  # where it starts, [d]
    oracle: str = "two-sided"  # "two-sided" or "exact"
    distribution: str = "gaussian"  # "gaussian" or "sphere"
    q: int = 1  # directions a step

    def _step(self, i: int, eta_x: float, eta_y: float) -> Array:
        """The map of vec W, [m^2, m^2], m = d + 1."""
        f, d_x, m = self.f, self.f.d_x, self.f.dim + 1
        b = np.concatenate([f.hessians[i].numpy(), f.shifts[i].numpy()[:, None]], 1)
        a = np.eye(m)
        a[:d_x] -= eta_x * b[:d_x]
        a[d_x : m - 1] -= eta_y * b[d_x:]
        step: Array = np.kron(a, a).astype(np.float64)
        if self.oracle != "exact":
            gain = 1.0 if self.distribution == "gaussian" else d_x / (d_x + 2)
            x, identity = np.zeros((m, m)), np.zeros((m, m))
            x[:d_x], identity[:d_x, :d_x] = b[:d_x], np.eye(d_x)
            # vec(x W x') = (x kron x) vec W, and tr(x W x') = <vec x'x, vec W>.
            trace = np.outer(identity.reshape(-1), (x.T @ x).reshape(-1))
            step = step + eta_x**2 / self.q * (gain * trace + (2 * gain - 1) * np.kron(x, x))
        return step

    def epoch(self, eta_x: float, eta_y: float) -> Array:
        """The map of a reshuffled epoch."""
        steps = [self._step(i, eta_x, eta_y) for i in range(self.f.n)]
        maps: dict[tuple[int, ...], Array] = {(): np.eye(len(steps[0]))}
        for size in range(1, self.f.n + 1):
            before, maps = maps, {}
            for subset in combinations(range(self.f.n), size):
                last = [steps[i] @ before[tuple(j for j in subset if j != i)] for i in subset]
                maps[subset] = np.mean(last, axis=0)
        return maps[tuple(range(self.f.n))]

    @property
    def start(self) -> Array:
        """vec W at the start."""
        w = np.append(self.z0, 1.0)
        return np.outer(w, w).reshape(-1)

    @property
    def square(self) -> Array:
        """The functional E ||grad f(z)||^2 of vec W."""
        m = self.f.dim + 1
        h = np.zeros((m - 1, m))
        h[:, :-1] = self.f.mean.numpy()
        return (h.T @ h).reshape(-1)

    def gradients(self, eta_x: float, eta_y: float, epochs: int) -> Array:
        """E ||grad f(z_t)||^2 for t = 0, ..., epochs."""
        w, epoch, values = self.start, self.epoch(eta_x, eta_y), []
        for _ in range(epochs + 1):
            values.append(self.square @ w)
            w = epoch @ w
        return np.array(values)

    def epochs_to(self, level: float, eta_x: float, eta_y: float) -> float:
        """The smallest T with (1/T) sum_{t < T} E ||grad f(z_t)||^2 <= level, an average that falls; or infinity."""
        powers = [self.epoch(eta_x, eta_y)]
        if np.abs(np.linalg.eigvals(powers[0])).max() > 1 + 1e-9:  # 1 itself is always one: w ends in 1
            return math.inf
        # Maps of 2^k epochs, and the sums of those before: T is built from its highest bit down.
        sums = [np.eye(len(powers[0]))]
        for _ in range(MOST - 1):
            sums.append(sums[-1] + powers[-1] @ sums[-1])
            powers.append(powers[-1] @ powers[-1])
        w, total, T = self.start, 0.0, 0
        for k in reversed(range(MOST)):
            more = total + float(self.square @ sums[k] @ w)
            if more > level * (T + (1 << k)):
                w, total, T = powers[k] @ w, more, T + (1 << k)
        return T + 1.0 if T < (1 << MOST) - 1 else math.inf

    def best(self, level: float) -> tuple[float, float]:
        """The best single rate for both blocks and its T: three searches of a geometric grid, each around the last."""
        low, high = 1e-9, 2 / float(np.linalg.eigvalsh(self.f.mean.numpy())[-1])
        best = (math.inf, high)
        for _ in range(3):
            rates = np.geomspace(low, high, RATES)
            for rate in rates:  # of equal T, which is whole, the smallest rate
                best = min(best, (self.epochs_to(level, rate, rate), float(rate)))
            low, high = best[1] * rates[0] / rates[1], best[1] * rates[1] / rates[0]
        return best[1], best[0]


def linearized(f: FiniteSum) -> QuadraticSum:
    """The quadratics that have every component's gradient and Hessian at the minimum."""
    hessians = torch.stack([f.hessian_of(f.center, i) for i in range(f.n)])
    shifts = torch.stack([f.gradient_of(f.center, i) for i in range(f.n)])
    return QuadraticSum(f"{f.name}, linearized", f.d_x, f.d_y, hessians, shifts)
