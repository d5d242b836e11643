"""The slow truth of the edge: second-moment maps as means over all nodes of a cubature rule, no formula for E vv'Avv'.

Independent entries of kurtosis k have the fourth moments of three values, 0 and +-sqrt(k), with probabilities
1 - 1/k and 1/(2k) each: all d-tuples of them are a rule that is exact for E v_i v_j v_k v_l. The sphere has the
Gaussian's rule, k = 3, with its factor d/(d + 2), as v/||v|| and ||v|| are independent.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nodes(d: int, kurtosis: float = 3.0) -> tuple[Array, Array]:
    """Points [N, d] and their weights [N]."""
    values = np.array([0.0, kurtosis**0.5, -(kurtosis**0.5)])
    chances = np.array([1 - 1 / kurtosis, 0.5 / kurtosis, 0.5 / kurtosis])
    index = np.array(list(itertools.product(range(3), repeat=d)))
    return values[index], chances[index].prod(1)


def squares(d: int, q: int = 1, kurtosis: float = 3.0, *, sphere: bool = False) -> Array:
    """E (S kron S), S = (1/q) sum_j v_j v_j', [d^2, d^2]."""
    points, weights = nodes(d, kurtosis)
    pairs = np.einsum("na,nb->nab", points, points).reshape(len(points), d * d)
    single = np.einsum("n,na,nb->ab", weights, pairs, pairs) * (d / (d + 2) if sphere else 1.0)
    # [ij, kl] = E v_i v_j v_k v_l: (S kron S)[ik, jl] = S_ij S_kl.
    single = single.reshape(d, d, d, d).transpose(0, 2, 1, 3).reshape(d * d, d * d)
    return single / q + (1 - 1 / q) * np.eye(d * d)


def outer(moved: Array, a: Array) -> Array:
    """E S a S of symmetric a."""
    return (moved @ a.reshape(-1)).reshape(a.shape)


def step_map(h: Array, eta: float, moved: Array, eta_y: float = 0.0, d_y: int = 0) -> Array:
    """E (A kron A), A = I - diag(eta S, eta_y I) H: the map of vec M. `moved` is that of the first d - d_y entries."""
    d = len(h)
    d_x = d - d_y
    one = np.eye(d)
    mean = np.diag(np.r_[np.full(d_x, eta), np.full(d_y, eta_y)]) @ h
    whole = np.eye(d * d) - np.kron(mean, one) - np.kron(one, mean)
    # L kron L for L = diag(eta S, eta_y I), entry by entry of its blocks.
    block = np.zeros((d, d, d, d))  # [i, k, j, l] = E L_ij L_kl
    block[:d_x, :d_x, :d_x, :d_x] = eta**2 * moved.reshape((d_x,) * 4)
    x, y = np.diag(np.arange(d) < d_x).astype(float), np.diag(np.arange(d) >= d_x).astype(float)
    for p, r, weight in ((x, y, eta * eta_y), (y, x, eta * eta_y), (y, y, eta_y**2)):
        block += weight * np.einsum("ij,kl->ikjl", p, r)
    return whole + block.reshape(d * d, d * d) @ np.kron(h, h)


def radius(m: Array, h: Array) -> float:
    """Spectral radius of the map of M on the range of H."""
    values, vectors = np.linalg.eigh(h)
    inside = vectors[:, np.abs(values) > 1e-10 * np.abs(values).max()]
    both = np.kron(inside, inside)
    return float(np.abs(np.linalg.eigvals(both.T @ m @ both)).max())


def rotated(eigenvalues: list[float], seed: int) -> Array:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    d = len(eigenvalues)
    u, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return (u * np.array(eigenvalues)) @ u.T
