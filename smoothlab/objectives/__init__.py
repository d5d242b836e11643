"""Synthetic objectives with closed-form ell_x, ell_y, f*, gradients, Hessians and sigma."""

from smoothlab.objectives.couplings import (
    CosineCoupling,
    Coupling,
    LogCoshCoupling,
    ProductCoupling,
    QuadraticCoupling,
)
from smoothlab.objectives.finite_sum import Objective, Ray, objective
from smoothlab.objectives.psi import Barrier, Cosh, Exponential, Oscillating, Power, Psi, Quadratic
from smoothlab.theory import Constants

__all__ = [
    "Barrier",
    "Constants",
    "Cosh",
    "CosineCoupling",
    "Coupling",
    "Exponential",
    "LogCoshCoupling",
    "Objective",
    "Oscillating",
    "Power",
    "ProductCoupling",
    "Psi",
    "Quadratic",
    "QuadraticCoupling",
    "Ray",
    "objective",
]
