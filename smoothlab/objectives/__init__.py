"""Synthetic objectives with closed-form ell_x, ell_y, f*, gradients, Hessians and sigma.

`OBJECTIVES` names those that the command line offers; `smoothlab.objectives.table` says how to add one. Everything else
is imported when it is first used, as it needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smoothlab.objectives.table import OBJECTIVES, build

if TYPE_CHECKING:
    from smoothlab.objectives.checks import Check, Function, Witness, check_all
    from smoothlab.objectives.couplings import (
        CosineCoupling,
        Coupling,
        LogCoshCoupling,
        ProductCoupling,
        QuadraticCoupling,
    )
    from smoothlab.objectives.curved import ExponentialSum, LogCoshSum, exponential_sum, log_cosh_sum
    from smoothlab.objectives.finite_sum import Objective, objective
    from smoothlab.objectives.psi import Barrier, Cosh, Exponential, Oscillating, Power, Psi, Quadratic
    from smoothlab.objectives.quadratic_sums import QuadraticSum, quadratic_sum
    from smoothlab.objectives.sums import FiniteSum

__all__ = [
    "OBJECTIVES", "Barrier", "Check", "Cosh", "CosineCoupling", "Coupling", "Exponential", "ExponentialSum",
    "FiniteSum", "Function", "LogCoshCoupling", "LogCoshSum", "Objective", "Oscillating", "Power", "ProductCoupling",
    "Psi", "Quadratic", "QuadraticCoupling", "QuadraticSum", "Witness", "build", "check_all", "exponential_sum",
    "log_cosh_sum", "objective", "quadratic_sum",
]  # fmt: skip
_MODULES = ("psi", "couplings", "sums", "finite_sum", "curved", "quadratic_sums", "checks")


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        loaded = vars(import_module(f"{__name__}.{module}"))
        if name in loaded:
            return loaded[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
