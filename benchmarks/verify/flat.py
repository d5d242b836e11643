"""Parameters as one vector, for packages that optimize functions of a vector."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Closure = Callable[[], Tensor]


def read(params: Sequence[Tensor]) -> Array:
    """All parameters as one fp64 vector."""
    return torch.cat([p.detach().reshape(-1).double() for p in params]).numpy()


def write(params: Sequence[Tensor], x: Array) -> None:
    """Set the parameters, rounded to their formats."""
    start = 0
    with torch.no_grad():
        for p in params:
            stop = start + p.numel()
            p.copy_(torch.from_numpy(np.asarray(x[start:stop], dtype=float)).reshape(p.shape))
            start = stop


def function(params: Sequence[Tensor], closure: Closure) -> Callable[..., float]:
    """The loss as a function of the vector; other arguments, such as a seed for noise, have no effect."""

    def f(x: Array, *ignored: object, **options: object) -> float:
        write(params, x)
        with torch.no_grad():
            return float(closure())

    return f
