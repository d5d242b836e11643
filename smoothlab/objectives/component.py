"""One component of a finite sum as a claim that the checks of Definition 2.1 take."""

from dataclasses import dataclass

from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.objectives.sums import FiniteSum


@dataclass(frozen=True)
class Component:
    """One component's Hessian with what is claimed of it at u, the norm of the mean's gradient.

    Attributes:
        whole: the finite sum.
        i: which component.
    """

    whole: FiniteSum
    i: int

    @property
    def name(self) -> str:
        """Of the sum, with the number."""
        return f"{self.whole.name}, component {self.i}"

    @property
    def d_x(self) -> int:
        """Dimension of x."""
        return self.whole.d_x

    @property
    def d_y(self) -> int:
        """Dimension of y."""
        return self.whole.d_y

    @property
    def f_star(self) -> float:
        """The minimum of the mean."""
        return self.whole.f_star

    @property
    def center(self) -> Tensor:
        """Where it is."""
        return self.whole.center

    def value(self, z: Tensor) -> Tensor:
        """Of the mean, whose sublevel set is searched."""
        return self.whole.value(z)

    def gradient(self, z: Tensor) -> Tensor:
        """Of the mean: its norm is the argument of ell."""
        return self.whole.gradient(z)

    def hessian(self, z: Tensor) -> Tensor:
        """Of the component."""
        return self.whole.hessian_of(z, self.i)

    def ell_x(self, u: ArrayLike) -> ArrayLike:
        """Of every component."""
        return self.whole.component_ell_x(u)

    def ell_y(self, u: ArrayLike) -> ArrayLike:
        """Of every component."""
        return self.whole.component_ell_y(u)
