"""T1, T2 and B.1' along runs: they hold there, and smaller ell are seen to be too small."""

import numpy as np
import pytest
import torch

from smoothlab.claims import along_runs
from smoothlab.claims.runs import LEVEL, LEVELS, PROBLEMS, Run, along, ellipsoid, length, rates, runs
from smoothlab.objectives import Cosh, Quadratic, objective
from smoothlab.objectives.checks import diagonal, ells, t1_sides, t2_sides
from smoothlab.theory.constants import constants
from tests.claims.holding import holds
from tests.objectives.test_checks import shrunk


@pytest.mark.parametrize("name", [claim.name for claim in along_runs.CLAIMS])
def test_verdicts(name: str) -> None:
    for search in holds(along_runs, name).searches:
        assert search.cases > 4000 and 0.9 < search.facts["tightness, largest"] < 1 + 1e-9


def test_runs_are_algorithm_1_within_the_rates_of_b6() -> None:
    for run in runs(0):
        c = constants(run.f.component_ell_x, run.f.component_ell_y, LEVEL)
        assert (run.algorithm.eta_x, run.algorithm.eta_y) == rates(run.f, c.L_x_near, c.L_y_near)
        assert run.f.n * max(run.algorithm.eta_x * c.L_x_near, run.algorithm.eta_y * c.L_y_near) <= 1 / 8 * (1 + 1e-12)
        assert run.algorithm.eta_x * c.L_x_near * (run.f.d_x + 1) <= 1 / 64 * (1 + 1e-12)
        f = run.f.value(run.z) - run.f.f_star
        assert torch.allclose(f[0], LEVELS) and (f[-1][-8:] < f[0][-8:]).all()
        assert len({tuple(z) for z in run.z[-1].tolist()}) == run.z.shape[1], "replicas differ"


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_edge_of_the_ellipsoid(name: str) -> None:
    run = next(run for run in runs(0) if run.name == name)
    s, D, G = ellipsoid(run.f, run.flat, 0)  # noqa: N806
    ell_x, ell_y = ells(run.f, 2 * G)
    np.testing.assert_array_equal(D, diagonal(run.f, ell_x, ell_y))
    np.testing.assert_allclose(length(D, s) ** 2, G**2 / np.maximum(ell_x, ell_y), rtol=1e-12)


def run_of(f, name: str = "cosh in y") -> Run:  # type: ignore[no-untyped-def]
    run = next(run for run in runs(0) if run.name == name)
    return Run(name, f, run.algorithm, run.z)


def test_ell_a_little_too_small_is_caught() -> None:
    """Every ratio is near 1 somewhere, so that 0.9 ell breaks each."""
    for name in ("cosh in y", "power"):
        f = shrunk(PROBLEMS[name], 0.9)
        run = run_of(f, name)
        assert along("T1", {name: np.divide(*t1_sides(f, run.flat))}).broken
        assert along("T2", {name: np.divide(*t2_sides(f, run.flat))}).broken
    f = shrunk(PROBLEMS["cosh in y"], 0.5)
    run = run_of(f)
    broken = {what: along(what, {"one": r}).broken for what, r in along_runs.b1_ratios(f, run.flat).items()}
    assert all(broken.values()), broken
    steps = along_runs.flow_ratios(f, run.flat) | along_runs.hessian_ratios(f, run.flat)
    assert {what: bool(r.max() > 1 + 1e-9) for what, r in steps.items()} == {
        what: what != "u^2/(2 lM(u)) <= Phi(u)" for what in steps
    }, "the last one is true of every ell that does not decrease"


def test_t1_is_an_equality_along_a_run_of_cosh() -> None:
    f = objective(Cosh(1.0, 1.0), Quadratic(1.0), d_x=1, d_y=1)
    z = torch.stack([torch.linspace(-3, 3, 50), torch.zeros(50)], 1).double()
    np.testing.assert_allclose(np.divide(*t1_sides(f, z)), 1, rtol=1e-8)
