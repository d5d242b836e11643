"""Algorithm 1 on quadratics with Hessians of their own: the second moments of z after an epoch, exactly.

f_i = z'H_i z/2 + c_i'z. With w = (z, 1), W = E ww' and B_i = [H_i c_i], so that grad f_i = B_i w, a step on summand i
is

    W -> A_i W A_i' + (eta_x^2/q) P_x [E vv'Svv' - S] P_x,   A_i = I - diag(eta_x I, eta_y I, 0) [B_i; 0],

S = B_i W B_i' within block x; without the second term for exact gradients. E vv'Svv' = K S with the fourth moments of
directions (`fourth_moments`): tr(S) I + 2S for Gaussian ones. It holds for the two-sided estimate at any mu. A
reshuffled epoch is the mean over all orders of n such linear maps: with K_S the mean over the
orders of a subset S, K_S = mean_{i in S} step_i K_{S - i}, 2^n maps instead of n! products.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from smoothlab.algorithm1.quadratics import shapes_of_x
from smoothlab.objectives import FiniteSum, QuadraticSum
from smoothlab.zeroth.distributions import named

Array = NDArray[np.float64]
MOST = 60  # 2^60 epochs: no T is looked for beyond
RATES = 25  # tried at a time


@dataclass(frozen=True)
class Moments:
    """The recursion of one problem."""

    f: QuadraticSum  # quadratics, at most about 10 of them
    z0: Array  # where it starts, [d]
    oracle: str = "two-sided"  # "two-sided" or "exact"
    distribution: str = "gaussian"  # name of the directions' distribution; x has the shape of `matrix_shape`
    q: int = 1  # directions a step

    @cached_property
    def _excess(self) -> Array:
        """K - I, the map of vec S to vec of E vv'Svv' - S, [d_x^2, d_x^2]."""
        return fourth_moments(self.distribution, self.f.d_x) - np.eye(self.f.d_x**2)

    def _step(self, i: int, eta_x: float, eta_y: float) -> Array:
        """The map of vec W, [m^2, m^2], m = d + 1."""
        f, d_x, m = self.f, self.f.d_x, self.f.dim + 1
        b = np.concatenate([f.hessians[i].numpy(), f.shifts[i].numpy()[:, None]], 1)
        a = np.eye(m)
        a[:d_x] -= eta_x * b[:d_x]
        a[d_x : m - 1] -= eta_y * b[d_x:]
        step: Array = np.kron(a, a).astype(np.float64)
        if self.oracle != "exact":
            x, embed = b[:d_x], np.eye(m)[:, :d_x]
            # vec(x W x') = (x kron x) vec W; what comes of it is in block x.
            step = step + eta_x**2 / self.q * np.kron(embed, embed) @ self._excess @ np.kron(x, x)
        return step

    def epoch(self, eta_x: float, eta_y: float) -> Array:
        """The map of a reshuffled epoch."""
        steps = [self._step(i, eta_x, eta_y) for i in range(self.f.n)]
        maps: dict[tuple[int, ...], Array] = {(): np.eye(len(steps[0]))}
        for size in range(1, self.f.n + 1):
            smaller, maps = maps, {}
            for subset in combinations(range(self.f.n), size):
                products = [steps[i] @ smaller[tuple(j for j in subset if j != i)] for i in subset]
                maps[subset] = np.mean(products, axis=0)
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
            total_then = total + float(self.square @ sums[k] @ w)
            if total_then > level * (T + (1 << k)):
                w, total, T = powers[k] @ w, total_then, T + (1 << k)
        return T + 1.0 if T < (1 << MOST) - 1 else math.inf

    def average(self, eta: float, epochs: int) -> float:
        """(1/T) sum_{t < T} E ||grad f(z_t)||^2 with one rate for both blocks, from the binary digits of T."""
        power = self.epoch(eta, eta)
        sum_of_powers = np.eye(len(power))  # sum of the epochs that `power` stands for
        w, total, remaining = self.start, 0.0, epochs
        while remaining:
            if remaining % 2:
                total += float(self.square @ sum_of_powers @ w)
                w = power @ w
            sum_of_powers, power, remaining = sum_of_powers + power @ sum_of_powers, power @ power, remaining // 2
        return total / epochs

    def best_for(self, epochs: int) -> tuple[float, float]:
        """The single rate for both blocks with the least average over T epochs, and that average.

        Three searches of a geometric grid, each around the last.
        """
        low, high = 1e-6, 2 / float(np.linalg.eigvalsh(self.f.mean.numpy())[-1])
        best = (math.inf, high)
        for _ in range(3):
            rates = np.geomspace(low, high, RATES)
            with np.errstate(over="ignore", invalid="ignore"):
                for rate in rates:
                    value = self.average(float(rate), epochs)
                    if value < best[0]:  # NaN, of a rate that diverges, is not
                        best = (value, float(rate))
            low, high = best[1] * rates[0] / rates[1], best[1] * rates[1] / rates[0]
        return best[1], best[0]

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


def fourth_moments(distribution: str, d: int) -> Array:
    """E vv' kron vv' as the map of vec S to vec E vv'Svv', [d^2, d^2]; x has the shape of `matrix_shape`.

    With E v_i^2 v_j^2 = u and E v_i^4 = k it is u (tr(S) I + 2S) + (k - 3u) diag(S). A matrix U W'/sqrt(r) pairs its
    four rows in three ways and its four columns in three: both in the same way as the Gaussian one, and with weight 1/r
    in two different ways.

    >>> bool(np.allclose(fourth_moments("gaussian", 2) @ [1, 0, 0, 0], [3, 0, 0, 1]))   # tr(S) I + 2S
    True

    Raises:
        BadInput: no closed form is known.
    """
    (shape,) = shapes_of_x(d, distribution)
    directions, pairings = named(distribution), ("ab,cd->abcd", "ac,bd->abcd", "ad,bc->abcd")
    if len(shape) == 2:
        rows, columns = (np.stack([np.einsum(pairing, np.eye(n), np.eye(n)) for pairing in pairings]) for n in shape)
        weights = np.full((3, 3), 1 / directions.cumulants().rank)
        np.fill_diagonal(weights, 1.0)
        moments = np.einsum("pq,pabcd,qwxyz->awbxcydz", weights, rows, columns)
    else:
        mixed, fourth = directions.fourth_moments((shape,))
        moments = mixed * np.sum([np.einsum(pairing, np.eye(d), np.eye(d)) for pairing in pairings], axis=0)
        index = np.arange(d)
        moments[index, index, index, index] += fourth - 3 * mixed
    # v_i v_j v_k v_l to the map of S_jk to entry (i, l)
    square: Array = moments.reshape(d, d, d, d).transpose(0, 3, 1, 2).reshape(d * d, d * d)
    return square


def linearized(f: FiniteSum) -> QuadraticSum:
    """The quadratics that have every component's gradient and Hessian at the minimum."""
    hessians = torch.stack([f.hessian_of(f.center, i) for i in range(f.n)])
    shifts = torch.stack([f.gradient_of(f.center, i) for i in range(f.n)])
    return QuadraticSum(f"{f.name}, linearized", f.d_x, f.d_y, hessians, shifts)
