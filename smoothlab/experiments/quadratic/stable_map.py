"""The map of stable (eta_x, eta_y): Example 2.3 with and without a coupling, theory beside runs of Algorithm 1.

f(x, y) = a ||x||^2 + b ||y||^2 + c (u_x'x - u_y'y)^2/2 with unit vectors u, x moved by one Gaussian direction a step
and y exactly. Rates are multiples of each block's own largest stable one, that of H_xx in mean square and
2/lambda_max(H_yy); the theory is the spectral radius of the second-moment map (theory.md F.5), above 1 where the mean
square grows.
"""

import numpy as np
import torch

from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.experiments.quadratic.config import QuadraticConfig
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row, seeded
from smoothlab.objectives import Objective, Quadratic, QuadraticCoupling, objective
from smoothlab.stats import samples
from smoothlab.theory.coupled_edge import coupled_edge, second_moment_radius
from smoothlab.theory.edge import GAUSSIAN, Spectrum, exact_edge, mean_square_edge

SCALES = tuple(0.15 * number for number in range(1, 13))
RATIOS = np.geomspace(0.02, 50, 41)  # of eta_y to eta_x, in that of their own edges


def problem(point: Row) -> Objective:
    """Example 2.3 with b = 1, and its coupling."""
    coupling = QuadraticCoupling(point["coupling"]) if point["coupling"] else None
    return objective(Quadratic(2 * point["ratio"]), Quadratic(2.0), coupling, d_x=point["d"], d_y=1)


def own_edges(hessian: np.ndarray, d: int) -> tuple[float, float]:
    """Each block's own largest stable rate."""
    x = mean_square_edge(Spectrum.of(np.linalg.eigvalsh(hessian[:d, :d])))
    return x.value, exact_edge(float(np.linalg.eigvalsh(hessian[d:, d:])[-1]))


def stable_map(config: QuadraticConfig, point: Row) -> list[Row]:
    """The share of runs whose loss is above its start after --steps steps, at each pair of rates; and the edge."""
    f, d, rows = problem(point), point["d"], []
    z0 = torch.ones(d + 1, dtype=torch.float64)
    z0[:d] /= d**0.5
    hessian, start = f.hessian(z0).numpy(), float(f.value(z0))
    edges = own_edges(hessian, d)
    for x in SCALES:
        for y in SCALES:
            eta = x * edges[0], y * edges[1]
            run = Algorithm1(*eta, config.steps, keep=(config.steps,))
            ends = run.run(f, z0, config.replicas, seed=seeded(config.seed, f"{point['setting']}/{x:g}/{y:g}"))
            above = int((ends.kept_gap[0] > start).sum())
            share = measured_row(samples.proportion(above, config.replicas))
            radius = second_moment_radius(hessian, d, *eta, GAUSSIAN)
            rows.append({"rule": None, "eta_x": eta[0], "eta_y": eta[1], "quantity": "share above start", **share,
                         "reference": None, "radius": radius})  # fmt: skip
    values, vectors = np.linalg.eigh(hessian)
    for ratio in RATIOS * edges[1] / edges[0]:
        eta = coupled_edge(values, vectors[:d].T @ vectors[:d], float(ratio), GAUSSIAN)
        rows.append({"rule": None, "eta_x": eta[0], "eta_y": eta[1], "quantity": "mean-square edge", **UNMEASURED,
                     "reference": None, "radius": 1.0})  # fmt: skip
    return rows
