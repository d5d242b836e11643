"""Disagreements between autograd and the loss itself: what is flagged, what is refused, and the line that says so."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from smoothlab.errors import BadInput

DOUBTFUL = 0.005
"""Relative disagreement, beyond what rounding explains, from which on a number is flagged."""
GROSS = {"gradient": 0.01, "curvature": 0.05, "symmetry": 0.05}
"""Relative disagreement from which on the measurement is refused; a slope is diluted by parameters that are right."""


class WrongProducts(BadInput):
    """Gradients or Hessian-vector products that are not those of the loss."""


@dataclass(frozen=True)
class Disagreement:
    """The largest disagreement of one kind.

    Attributes:
        kind: "symmetry", "gradient" or "curvature"; "rough": the loss is too rough for any of them to be looked for.
        size: relative to the number; 0 where nothing disagrees. Of "rough": the loss's jumps in units of its rounding.
        where: direction in which it was seen.
        measured: what autograd says.
        reference: what differences of the loss say.
    """

    kind: str
    size: float = 0.0
    where: str = ""
    measured: float = 0.0
    reference: float = 0.0


def doubted(name: str, gaps: Sequence[Disagreement]) -> list[str]:
    """Flags beside the numbers of a block; each doubt but kinks is a warning of one line, too."""
    doubts = [gap for gap in gaps if gap.size > DOUBTFUL]
    for gap in doubts:
        if gap.kind != "kinks":  # a property of ReLU models, which every point of a run would repeat
            warnings.warn(complaint(name, gap), stacklevel=3)
    return list(dict.fromkeys(_FLAGS[gap.kind] for gap in doubts))


_FLAGS = {
    "symmetry": "asymmetric products", "gradient": "gradient disagrees with the loss",
    "curvature": "products disagree with the loss", "kinks": "kinks",
    "differences": "differences disagree with the loss", "rough": "loss too rough to check",
}  # fmt: skip


def complaint(name: str, gap: Disagreement) -> str:
    """One line on a disagreement: what was seen, likely causes, and what to do."""
    evidence = f"{gap.measured:.4g} by autograd, {gap.reference:.4g} by differences of the loss along {gap.where}"
    if gap.kind == "gradient":
        return (
            f"the gradient of block '{name}' is not its loss's: a slope is {evidence}. Likely causes: a detached norm "
            "(DoRA), straight-through rounding, padding_idx of an embedding whose row the loss uses (pad = eos), "
            "reentrant checkpointing, reversible layers (Reformer), a backward pass of one's own. No product with "
            "gradients is right there, not even by differences: replace the operation, or leave its parameters out of "
            "the block"
        )
    if gap.kind == "differences":
        return (
            f"finite differences of the gradient of block '{name}' are not its Hessian: they are off by {gap.size:.1%} "
            f"along {gap.where}. The step is too long there, or crosses kinks (ReLU, a router): use exact products, or "
            "float64 with a shorter step"
        )
    if gap.kind == "rough":
        return (
            f"the loss of block '{name}' jumps by {gap.size:.0f} times its rounding, so that differences of it cannot "
            f"tell whether its gradient is right ({gap.measured:.4g} by autograd along {gap.where}). Likely causes: "
            "activations that are rounded to int8 or 16 bits; torchao's int8 layers with dynamic activations stop "
            "gradients, so that no number is right there: measure the model before it is quantized, or in fp32; a "
            "weight under torch's orthogonal(), which rounds entries of its parameter: give it orthogonal_map='cayley'"
        )
    if gap.kind == "symmetry":
        evidence = f"u'Hv and v'Hu differ by {gap.size:.1%} of ||H|| on {gap.where}"
    return (
        f"the Hessian-vector products of block '{name}' are not its loss's: {evidence}. Likely causes: torch's "
        "weight_norm on a CPU, a backward pass of one's own that is not differentiated itself (once_differentiable), "
        "spectral_norm in train mode: use central differences (--product central, product='central')"
    )


def refuse_gross(name: str, gaps: Sequence[Disagreement]) -> None:
    """Raise for the first disagreement above `GROSS` that kinks do not explain.

    Raises:
        WrongProducts: there is one.
    """
    for gap in sorted(gaps, key=lambda gap: gap.kind != "gradient"):  # a wrong gradient makes wrong products too
        if gap.size > GROSS.get(gap.kind, float("inf")):
            raise WrongProducts(complaint(name, gap))
