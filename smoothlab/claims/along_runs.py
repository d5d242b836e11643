"""T1, T2 and B.1', which correct Lemmas B.1 to B.4, along real runs of Algorithm 1, and the proofs' steps there.

Proofs: theory.md B. What is checked densely is every inequality that they use, at the states of the runs.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate, Claim, Finding
from smoothlab.claims.runs import along, ellipsoid, length, runs
from smoothlab.objectives import FiniteSum
from smoothlab.objectives.checks import diagonal, ells, t1_sides, t2_sides
from smoothlab.theory.constants import Array, largest, phi

ROUNDING = 1e-9  # of quotients


def b1_ratios(f: FiniteSum, z: Tensor, seed: int = 0) -> dict[str, Array]:
    """B.1' around z [N, d], at points s on the edge of its ellipsoid: measured/allowed of each of its statements."""
    s, D, G = ellipsoid(f, z, seed)
    g, g_moved, distance = f.gradient(z), f.gradient(z + s), length(D, s)
    change = (g_moved - g).numpy()
    rise = (f.value(z + s) - f.value(z) - (g * s).sum(-1)).abs().numpy()
    s_x = torch.cat([s[:, : f.d_x], torch.zeros_like(s[:, f.d_x :])], -1)
    change_x = (f.gradient(z + s_x) - g)[:, : f.d_x].norm(dim=-1).numpy()
    ratios = {
        "||grad f(z + s)|| <= 2G": g_moved.norm(dim=-1).numpy() / (2 * G),
        "||grad f(z + s) - grad f(z)||_{D^-1} <= ||s||_D": np.sqrt((change**2 / D).sum(-1)) / distance,
        "||grad_x f(x + s_x, y) - grad_x f(x, y)|| <= L_x ||s_x||": change_x / (D[:, 0] * s_x.norm(dim=-1).numpy()),
        "|f(z + s) - f(z) - <grad f(z), s>| <= ||s||_D^2/2": rise / (distance**2 / 2),
    }
    # Where the gradient vanishes so does the ellipsoid, and quotients are rounding.
    return {inequality: np.where(G > 1e-6, ratio, np.nan) for inequality, ratio in ratios.items()}


def flow_ratios(f: FiniteSum, z: Tensor) -> dict[str, Array]:
    """The proofs' steps at z [N, d]: what they use of Hess f <= D, and Phi(u) >= u^2/(2 lM(u))."""
    g, H = f.gradient(z), f.hessian(z)
    u = g.norm(dim=-1).numpy()
    nonzero = u > 1e-9
    g, H, u = g[nonzero], H[nonzero], u[nonzero]
    ell_x, ell_y = ells(f, u)
    top, D = np.maximum(ell_x, ell_y), torch.from_numpy(diagonal(f, ell_x, ell_y))
    straight, scaled = ((v.unsqueeze(-1) * H * v.unsqueeze(-2)).sum((-1, -2)).numpy() for v in (g, g / D))
    squares = (g.square() / D).sum(-1).numpy()
    return {
        "u' >= -lM(u) u along z' = -grad f": straight / (top * u**2),
        "(||grad f||^2_{D^-1})' >= -2 ||grad f||^2_{D^-1} along z' = -D^-1 grad f": scaled / squares,
        "u^2/(2 lM(u)) <= Phi(u)": u**2 / (2 * top) / phi(largest(f.ell_x, f.ell_y), u),
    }


def hessian_ratios(f: FiniteSum, z: Tensor, seed: int = 0) -> dict[str, Array]:
    """B.1's proof inside the ellipsoid: -D <= Hess f <= D, and ||H s|| <= sqrt(lM) ||s||_D, which is at most G."""
    s, D, _ = ellipsoid(f, z, seed)
    inside = torch.from_numpy(np.random.default_rng(seed).random((len(s), 1))) * s
    H = f.hessian(z + inside)
    root = torch.from_numpy(D).rsqrt()
    top = torch.linalg.eigvalsh(root.unsqueeze(-1) * H * root.unsqueeze(-2)).abs().amax(-1).numpy()
    image = (H @ s.unsqueeze(-1)).squeeze(-1).norm(dim=-1).numpy()
    return {
        "-D <= Hess f <= D where ||grad f|| <= 2G": top,
        "||H s|| <= sqrt(lM) ||s||_D": image / (np.sqrt(D.max(-1)) * length(D, s)),
    }


def _proof(lemma: str, steps: Callable[[FiniteSum, Tensor], dict[str, Array]], seed: int) -> list[Certificate]:
    """One certificate a step of a proof, from its ratios at the states of all runs."""
    ratios: dict[str, list[Array]] = {}
    for run in runs(seed):
        for step, values in steps(run.f, run.flat).items():
            ratios.setdefault(step, []).append(values[np.isfinite(values)])
    certificates = []
    for step, parts in ratios.items():
        text = f"{lemma}: {step}, at the states of the runs"
        certificates.append(exact.dense(text, np.concatenate(parts), rounding=ROUNDING))
    return certificates


def _t1(seed: int) -> Finding:
    falls, _, integral = _proof("T1's proof", flow_ratios, seed)
    ratios = {run.name: np.divide(*t1_sides(run.f, run.flat)) for run in runs(seed)}
    return Finding((falls, integral, along("Phi(||grad f||) <= f - f*", ratios)))


def _t2(seed: int) -> Finding:
    falls, scaled, _ = _proof("T2's proof", flow_ratios, seed)
    inequality = "[||grad_x f||^2/ell_x(l u) + ||grad_y f||^2/ell_y(l u)]/2 <= f - f*"
    ratios = {run.name: np.divide(*t2_sides(run.f, run.flat)) for run in runs(seed)}
    return Finding((falls, scaled, along(inequality, ratios)))


def _b1(seed: int) -> Finding:
    proof = _proof("B.1's proof", functools.partial(hessian_ratios, seed=seed), seed)
    ratios: dict[str, dict[str, Array]] = {}  # by statement and problem
    for run in runs(seed):
        for inequality, values in b1_ratios(run.f, run.flat, seed).items():
            ratios.setdefault(inequality, {})[run.name] = values
    return Finding((*proof, *itertools.starmap(along, ratios.items())))


_BLOCK_SMOOTH = "Definition 2.1 (T1, T2: one-sided suffices), coercive"
CLAIMS = (
    Claim("t1", "Phi(||grad f||) <= f - f*, Phi(u) = int_0^u v/max(ell_x, ell_y)(v) dv; so ||grad f||^2 <= 2 "
          "max(ell_x, ell_y)(||grad f||) (f - f*).", "corrects Lemma B.2 (1), (2); proves Lemma B.3", _BLOCK_SMOOTH,
          "holds", "", _t1),
    Claim("t2", "[||grad_x f||^2/ell_x(l u) + ||grad_y f||^2/ell_y(l u)]/2 <= f - f* for every l > 1 with l^2 >= "
          "max(ell_x, ell_y)(l u)/min(ell_x, ell_y)(l u), u = ||grad f||.", "corrects Lemma B.2 (3)", _BLOCK_SMOOTH,
          "holds", "", _t2),
    Claim("b.1-corrected", "With G = ||grad f(z)||, D = diag(ell_x(2G) I, ell_y(2G) I): where ||s||_D^2 <= "
          "G^2/max(ell_x, ell_y)(2G), ||grad f(z + s)|| <= 2G, gradients differ by at most ||s||_D in ||.||_{D^-1}, f "
          "from its linear part by at most ||s||_D^2/2.", "corrects Lemma B.1", "Definition 2.1, two-sided", "holds",
          "", _b1),
)  # fmt: skip
