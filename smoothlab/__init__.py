"""smoothlab: per-block curvature of language models along their fine-tuning, with error bars.

The names below are loaded when first used, so that importing the package costs nothing: neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoothlab.algorithm1.engine import Algorithm1
    from smoothlab.blocks import Block
    from smoothlab.hessian.norms import NormEstimate, block_norms
    from smoothlab.hessian.products import exact_hvp, fd_hvp
    from smoothlab.hessian.trajectory import SmoothnessHook
    from smoothlab.llm.callback import SmoothnessCallback
    from smoothlab.objectives import objective
    from smoothlab.optim.hybrid import HybridSGD
    from smoothlab.optim.seedlog import SeedLog, replay
    from smoothlab.records import load
    from smoothlab.zeroth.estimators import ControlVariate, Directional, ZerothOrder

__version__ = "0.1.0"
__all__ = [
    "Algorithm1",
    "Block",
    "ControlVariate",
    "Directional",
    "HybridSGD",
    "NormEstimate",
    "SeedLog",
    "SmoothnessCallback",
    "SmoothnessHook",
    "ZerothOrder",
    "__version__",
    "block_norms",
    "exact_hvp",
    "fd_hvp",
    "load",
    "objective",
    "replay",
]

_HOMES = {
    "Algorithm1": "algorithm1.engine",
    "Block": "blocks",
    "ControlVariate": "zeroth.estimators",
    "Directional": "zeroth.estimators",
    "HybridSGD": "optim.hybrid",
    "NormEstimate": "hessian.norms",
    "SeedLog": "optim.seedlog",
    "SmoothnessCallback": "llm.callback",
    "SmoothnessHook": "hessian.trajectory",
    "ZerothOrder": "zeroth.estimators",
    "block_norms": "hessian.norms",
    "exact_hvp": "hessian.products",
    "fd_hvp": "hessian.products",
    "load": "records",
    "objective": "objectives",
    "replay": "optim.seedlog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
