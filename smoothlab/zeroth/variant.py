"""Base class of variants of zeroth-order steps: each makes the update u of the weights of an estimate ghat."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Protocol

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.estimators import Estimator
from smoothlab.zeroth.rng import Terms

State = tuple[Any, ...]
"""A variant's state from earlier steps: numbers and pairs of seeds and numbers; () before the first step."""


class Update(Protocol):
    """Vector that a step moves the weights along; a `Directional` is one."""

    def add_to(self, block: Block, alpha: float) -> None:
        """theta <- theta + alpha u on `block`, in place."""


@dataclass(frozen=True)
class Variant(ABC):
    """Rule by which a group of `HybridSGD` makes updates of its estimates; one of your own is a subclass with `update`.

    >>> from smoothlab import HybridSGD, Momentum, ZerothOrder
    >>> import torch
    >>> x = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = HybridSGD([{"params": x, "lr": 0.01, "oracle": ZerothOrder(), "variant": Momentum(0.5)}])
    >>> loss = optimizer.step(lambda: x.square().sum())
    """

    @property
    def name(self) -> str:
        """Name for records, options and logs, with the parameters: "plain", "momentum(0.9, 44)"."""
        label = type(self).__name__.lower()
        parameters = [f"{getattr(self, f.name):g}" for f in fields(self)]
        if not parameters:
            return label
        return f"{label}({', '.join(parameters)})"

    def oracle(self, estimator: Estimator) -> Estimator:
        """The estimator whose estimates it takes: the one that is given, unless the variant changes the directions.

        Raises:
            BadInput: its estimates are none that the variant can take.
        """
        return estimator

    @abstractmethod
    def update(self, state: State, gradient: Directional) -> tuple[Update, State]:
        """The update u that follows from the step's estimate and from the state, and the state for the next step."""

    def terms_of(self, gradient: Directional) -> Terms:
        """Seeds and coefficients of an estimate that is nothing else.

        Raises:
            BadInput: a vector of the weights' size belongs to it.
        """
        if gradient.anchor is not None:
            raise BadInput(f"variant {self.name} takes plain zeroth-order estimates: leave control variates out")
        return gradient.terms
