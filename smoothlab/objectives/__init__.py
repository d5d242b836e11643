"""Synthetic objectives with closed-form ell_x, ell_y, f*, gradients, Hessians and sigma."""

from smoothlab.objectives.checks import Check, Function, Witness, check_all
from smoothlab.objectives.couplings import (
    CosineCoupling,
    Coupling,
    LogCoshCoupling,
    ProductCoupling,
    QuadraticCoupling,
)
from smoothlab.objectives.finite_sum import Objective, Ray, objective
from smoothlab.objectives.psi import Oscillating, Power, Psi, Quadratic
from smoothlab.objectives.steep import Barrier, Cosh, Exponential
from smoothlab.objectives.sublevel import Claim, Extremes, extremes
from smoothlab.theory import Constants

__all__ = [
    "Barrier",
    "Check",
    "Claim",
    "Constants",
    "Cosh",
    "CosineCoupling",
    "Coupling",
    "Exponential",
    "Extremes",
    "Function",
    "LogCoshCoupling",
    "Objective",
    "Oscillating",
    "Power",
    "ProductCoupling",
    "Psi",
    "Quadratic",
    "QuadraticCoupling",
    "Ray",
    "Witness",
    "check_all",
    "extremes",
    "objective",
]
