"""smoothlab: per-block curvature of language models along their fine-tuning, with error bars.

The method, and the theory that it examines: Shaocong Ma, Peiran Yu, Heng Huang, "New Hybrid Fine-Tuning Paradigm for
LLMs: Algorithm Design and Convergence Analysis Framework", arXiv:2604.09940, 2026.

The names below are loaded when first used, so that importing the package costs nothing: neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoothlab.algorithm1.engine import Algorithm1
    from smoothlab.blocks import Block, fixed_loss
    from smoothlab.conformance.suite import verify
    from smoothlab.experiments.advise.advice import advise
    from smoothlab.hessian.dataset import DatasetHessian, DatasetNorm
    from smoothlab.hessian.estimates import NormEstimate, TraceEstimate
    from smoothlab.hessian.exact import ExactHessian, frobenius
    from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
    from smoothlab.hessian.gauss_newton import gauss_newton_trace
    from smoothlab.hessian.hook import SmoothnessHook
    from smoothlab.hessian.points import Points
    from smoothlab.hessian.trajectory import schedule
    from smoothlab.llm.callback import SmoothnessCallback
    from smoothlab.llm.hybrid_trainer import HybridTrainer
    from smoothlab.llm.partition import partition
    from smoothlab.objectives.finite_sum import objective
    from smoothlab.objectives.psi import Barrier, Cosh, Exponential, Oscillating, Power, Quadratic
    from smoothlab.optim.hybrid import HybridSGD
    from smoothlab.optim.seedlog import SeedLog, replay
    from smoothlab.records import load
    from smoothlab.stats.growth import GrowthFit, fit_growth
    from smoothlab.stats.growth_tests import growth_tests
    from smoothlab.theory.coupled_edge import HybridGradient, coupled_edge, hybrid_gradient_norm_edge
    from smoothlab.theory.edge import Edge, adam_edge, exact_edge, gradient_norm_edge, mean_square_edge
    from smoothlab.theory.pathwise import pathwise_edge, run_edge
    from smoothlab.theory.spectra import OuterMoment, Spectrum
    from smoothlab.trainer import Trainer
    from smoothlab.zeroth.control_variate import ControlVariate
    from smoothlab.zeroth.directional import Directional
    from smoothlab.zeroth.distribution import Distribution
    from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sparse, Sphere
    from smoothlab.zeroth.estimators import Estimator, ZerothOrder
    from smoothlab.zeroth.low_rank import LowRank
    from smoothlab.zeroth.moments import Taylor, linear_factor, mean, outer_moment, second_moment
    from smoothlab.zeroth.muon import Muon
    from smoothlab.zeroth.repetition import BatchedLoss
    from smoothlab.zeroth.scaled import Masked, Preconditioned
    from smoothlab.zeroth.variant import Variant
    from smoothlab.zeroth.variants import Adaptive, Momentum, Plain, Spread, Subspace

__version__ = "0.2.0.dev0"
__all__ = [
    "Adaptive", "Algorithm1", "Barrier", "BatchedLoss", "Block", "ControlVariate", "Coordinate", "Cosh",
    "DatasetHessian", "DatasetNorm", "Directional", "Distribution", "Edge", "Estimator", "ExactHessian", "Exponential",
    "FiniteDifferenceHessian", "Gaussian", "GrowthFit", "HybridGradient", "HybridSGD", "HybridTrainer", "LowRank",
    "Masked", "Momentum", "Muon", "NormEstimate", "Oscillating", "OuterMoment", "Plain", "Points", "Power",
    "Preconditioned", "Quadratic", "Rademacher", "SeedLog", "SmoothnessCallback", "SmoothnessHook", "Sparse",
    "Spectrum", "Sphere", "Spread", "Subspace", "Taylor", "TraceEstimate", "Trainer", "Variant", "ZerothOrder",
    "__version__", "adam_edge", "advise", "coupled_edge", "exact_edge", "fit_growth", "fixed_loss", "frobenius",
    "gauss_newton_trace", "gradient_norm_edge", "growth_tests", "hybrid_gradient_norm_edge", "linear_factor",
    "load", "mean", "mean_square_edge", "objective", "outer_moment", "partition", "pathwise_edge", "replay",
    "run_edge", "schedule", "second_moment", "verify",
]  # fmt: skip

_NAMES = {
    "algorithm1.engine": "Algorithm1",
    "blocks": "Block fixed_loss",
    "conformance.suite": "verify",
    "experiments.advise.advice": "advise",
    "hessian.dataset": "DatasetHessian DatasetNorm",
    "hessian.estimates": "NormEstimate TraceEstimate",
    "hessian.exact": "ExactHessian frobenius",
    "hessian.finite_differences": "FiniteDifferenceHessian",
    "hessian.gauss_newton": "gauss_newton_trace",
    "hessian.points": "Points",
    "hessian.hook": "SmoothnessHook",
    "hessian.trajectory": "schedule",
    "llm.callback": "SmoothnessCallback",
    "llm.hybrid_trainer": "HybridTrainer",
    "llm.partition": "partition",
    "objectives.finite_sum": "objective",
    "objectives.psi": "Barrier Cosh Exponential Oscillating Power Quadratic",
    "optim.hybrid": "HybridSGD",
    "optim.seedlog": "SeedLog replay",
    "records": "load",
    "stats.growth": "GrowthFit fit_growth",
    "stats.growth_tests": "growth_tests",
    "theory.coupled_edge": "HybridGradient coupled_edge hybrid_gradient_norm_edge",
    "theory.edge": "Edge adam_edge exact_edge gradient_norm_edge mean_square_edge",
    "theory.pathwise": "pathwise_edge run_edge",
    "theory.spectra": "OuterMoment Spectrum",
    "trainer": "Trainer",
    "zeroth.control_variate": "ControlVariate",
    "zeroth.directional": "Directional",
    "zeroth.distribution": "Distribution",
    "zeroth.distributions": "Coordinate Gaussian Rademacher Sparse Sphere",
    "zeroth.estimators": "Estimator ZerothOrder",
    "zeroth.low_rank": "LowRank",
    "zeroth.muon": "Muon",
    "zeroth.repetition": "BatchedLoss",
    "zeroth.scaled": "Masked Preconditioned",
    "zeroth.moments": "Taylor linear_factor mean outer_moment second_moment",
    "zeroth.variant": "Variant",
    "zeroth.variants": "Adaptive Momentum Plain Spread Subspace",
}
"""Public names by the module that they are loaded from."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
