"""Synthetic objectives with closed-form ell_x, ell_y, f*, gradients, Hessians and sigma."""

from smoothlab.objectives.checks import Check, Function, Witness, check_all
from smoothlab.objectives.component import Component
from smoothlab.objectives.couplings import CosineCoupling, Coupling, LogCoshCoupling, ProductCoupling, QuadraticCoupling
from smoothlab.objectives.curved import ExponentialSum, LogCoshSum, exponential_sum, log_cosh_sum
from smoothlab.objectives.finite_sum import Objective, Ray, objective
from smoothlab.objectives.psi import Oscillating, Power, Psi, Quadratic
from smoothlab.objectives.quadratic_sums import QuadraticSum, quadratic_sum
from smoothlab.objectives.steep import Barrier, Cosh, Exponential
from smoothlab.objectives.sublevel import Claim, Extremes, extremes
from smoothlab.objectives.sums import FiniteSum
from smoothlab.theory.constants import Constants

__all__ = [
    "Barrier",
    "Check",
    "Claim",
    "Component",
    "Constants",
    "Cosh",
    "CosineCoupling",
    "Coupling",
    "Exponential",
    "ExponentialSum",
    "Extremes",
    "FiniteSum",
    "Function",
    "LogCoshCoupling",
    "LogCoshSum",
    "Objective",
    "Oscillating",
    "Power",
    "ProductCoupling",
    "Psi",
    "Quadratic",
    "QuadraticCoupling",
    "QuadraticSum",
    "Ray",
    "Witness",
    "check_all",
    "exponential_sum",
    "extremes",
    "log_cosh_sum",
    "objective",
    "quadratic_sum",
]
