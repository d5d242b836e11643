"""Figures and pages of what records hold; measures nothing.

`FIGURES` is the one table of figures: a new kind is a function ``(records, quantity, blocks) -> Figure`` or
``(records) -> Figure``, and an entry here. The choices of `smoothlab plot --kind` and their help are read from it.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Kind(NamedTuple):
    """Kind of figure: the module of this package and the function that draw it, and what it shows."""

    module: str
    function: str
    shows: str


FIGURES = {
    "fig1a": Kind("curvature", "fig1a", "Hessian norm of a block against step and gradient norm"),
    "fig1b": Kind("curvature", "fig1b", "Hessian norms of the blocks, and ratio of base model to PEFT module"),
    "depth": Kind("curvature", "against_depth", "Hessian norm of each layer against its depth"),
    "layers": Kind("layer_map", "layer_map", "map of the Hessian norms or traces of layers against step"),
    "path": Kind("curvature", "path", "change of the gradient over change of the weights, along the training run"),
    "fit": Kind("growth", "fit", "L against step and gradient norm, with the fits of `smoothlab fit`"),
    "fit-map": Kind("growth", "fit_map", "map of L of all blocks of `smoothlab fit` against step"),
    "methods": Kind("methods", "methods", "Hessian norms along each training method's own run"),
    "estimators": Kind("estimators", "figure", "bias, variance, rounding and cost of `smoothlab estimators`"),
    "quadratic": Kind("quadratic", "figure", "all that `smoothlab quadratic` measured"),
    "rates": Kind("rates", "figure", "all that `smoothlab rates` measured"),
    "finetune": Kind("finetune", "figure", "training curves and accuracies of `smoothlab finetune`"),
    "advise": Kind("advise", "figure", "short runs and stability limits of `smoothlab advise`"),
}


def draw(kind: str, df: "pd.DataFrame", quantity: str = "frobenius", blocks: Sequence[str] = ()) -> "Figure":
    """Draw a figure of `FIGURES` from records.

    Args:
        kind: key of `FIGURES`.
        df: records, as `smoothlab.records.load` gives them.
        quantity: quantity that figures of curvature draw: frobenius, spectral, trace or gauss_newton_trace.
        blocks: blocks that figures of curvature draw.

    Raises:
        BadInput: the records hold nothing that the figure shows.
    """
    figure = FIGURES[kind]
    function = getattr(importlib.import_module(f"{__name__}.{figure.module}"), figure.function)
    if figure.module in ("curvature", "growth", "layer_map", "methods"):
        return function(df, quantity, blocks)
    return function(df)
