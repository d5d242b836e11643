"""Losses with known derivatives, which write down where they are evaluated."""

import itertools
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.zeroth.expectations import Array, Shapes
from smoothlab.zeroth.moments import Taylor

SMALL: Shapes = ((2, 2), (2, 2))
"""Two equal-shaped matrices of 8 entries in all: closed forms of every order are cheap here."""
WIDE: Shapes = ((6, 8), (6, 8), (12,))
"""Two equal-shaped matrices and a vector: directions of 108 entries do not agree by chance."""

WEIGHTS = 0.05
"""Standard deviation of weights as in trained networks, for probes of 16-bit formats."""


class Layer(nn.Module):
    """One parameter, read in the module's own forward call, as in a network's layers."""

    def __init__(self, values: Tensor, *, transposed: bool = False) -> None:
        super().__init__()
        if transposed:  # the same values in memory of another order
            values = values.t().contiguous().t()
        self.weight = nn.Parameter(values)

    def forward(self) -> Tensor:
        """The parameter as a flat fp64 vector."""
        return self.weight.reshape(-1).double()


class Polynomial(nn.Module):
    """f(theta) = value + g's + A[s, s]/2 + T[s, s, s]/6 with s = theta - home, computed in fp64.

    Attributes:
        taylor: g, A, T and the shapes.
        home: the point where a step starts [d].
        positions: flat copies of the parameters at each evaluation, fp64.
        values: the losses there.
    """

    def __init__(
        self, taylor: Taylor, home: Array, dtype: torch.dtype, *, value: float = 1.0, transposed: bool = False
    ) -> None:
        super().__init__()
        self.taylor, self.value = taylor, value
        ends = np.cumsum([prod(shape) for shape in taylor.shapes])[:-1]
        self.layers = nn.ModuleList()
        for flat, shape in zip(np.split(home, ends), taylor.shapes, strict=True):
            values = torch.tensor(flat, dtype=dtype).reshape(shape)
            self.layers.append(Layer(values, transposed=transposed and len(shape) == 2))
        self._home_values = [p.detach().clone() for p in self.parameters()]
        self._gradient, self._hessian = torch.tensor(taylor.gradient), torch.tensor(taylor.hessian)
        self._third = None if taylor.third is None else torch.tensor(taylor.third)
        self._home = self.position()
        self.home: Array = self._home.numpy()  # as it is rounded to the dtype
        self.positions: list[Tensor] = []
        self.values: list[float] = []

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters in order."""
        return list(self.parameters())

    @property
    def dim(self) -> int:
        """Number of entries."""
        return len(self.home)

    def position(self) -> Tensor:
        """The parameters as they are, one flat fp64 vector without a graph."""
        with torch.no_grad():
            return torch.cat([p.detach().reshape(-1).double() for p in self.parameters()])

    def reset(self) -> None:
        """Go back home, in place, and forget the evaluations."""
        with torch.no_grad():
            for p, value in zip(self.parameters(), self._home_values, strict=True):
                p.copy_(value)
        self.positions, self.values = [], []

    def forward(self, *ignored: object, **options: object) -> Tensor:
        """The loss; arguments that some optimizers call a closure with are accepted and have no effect."""
        theta = torch.cat([layer() for layer in self.layers])
        self.positions.append(theta.detach().clone())
        s = theta - self._home
        bent = self._hessian @ s / 2
        if self._third is not None:
            bent = bent + self._third @ s @ s / 6
        loss: Tensor = self.value + (self._gradient + bent) @ s
        self.values.append(float(loss.detach()))
        return loss


def quadratic(shapes: Shapes, seed: int, dtype: torch.dtype) -> Polynomial:
    """A gradient of length 1 and a Hessian with the eigenvalues 1, 1/2, ..., 1/d, away from the origin."""
    rng = np.random.default_rng([seed, 2])
    d = sum(map(prod, shapes))
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    hessian = basis * (1 / np.arange(1, d + 1)) @ basis.T
    return Polynomial(Taylor(_unit(rng, d), hessian, shapes=shapes), rng.normal(size=d), dtype)


def cubic(shapes: Shapes, seed: int, dtype: torch.dtype, mu: float) -> Polynomial:
    """Curvature that a perturbation of this mu feels: |mu A| and |mu^2 T| are of the gradient's size, 1."""
    rng = np.random.default_rng([seed, 3])
    d = sum(map(prod, shapes))
    hessian, third = _symmetric(rng, d, 2) / mu, 3 * _symmetric(rng, d, 3) / mu**2
    return Polynomial(Taylor(_unit(rng, d), hessian, third, shapes=shapes), rng.normal(size=d) * mu, dtype)


def wide(shapes: Shapes, seed: int, dtype: torch.dtype, *, scale: float = 0.0, transposed: bool = False) -> Polynomial:
    """A mild diagonal quadratic; weights of standard deviation `scale`, by default at 0, where nothing is rounded."""
    rng = np.random.default_rng([seed, 4])
    d = sum(map(prod, shapes))
    taylor = Taylor(_unit(rng, d), np.diag(rng.uniform(0.5, 1, d)), shapes=shapes)
    return Polynomial(taylor, scale * rng.normal(size=d), dtype, transposed=transposed)


def _unit(rng: np.random.Generator, d: int) -> Array:
    # No entry is near 0: each must be seen.
    g = rng.choice([-1.0, 1.0], d) * rng.uniform(0.7, 1.3, d)
    return np.asarray(g / np.linalg.norm(g))


def _symmetric(rng: np.random.Generator, d: int, order: int) -> Array:
    t = rng.normal(size=(d,) * order) * d ** ((1 - order) / 2)
    orders: Sequence[tuple[int, ...]] = list(itertools.permutations(range(order)))
    return np.asarray(sum(t.transpose(p) for p in orders) / len(orders))


class TinyTransformer(nn.Module):
    """A causal language model of one layer whose embedding is its output layer too: about 500 parameters."""

    def __init__(self, seed: int, words: int = 11, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding, self.qkv = nn.Embedding(words, width), nn.Linear(width, 3 * width)
            self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
            self.output = nn.Linear(width, words, bias=False)
            self.output.weight = self.embedding.weight
            self.tokens = torch.randint(0, words, (4, 6))

    def forward(self, *ignored: object, **options: object) -> Tensor:
        """Mean cross entropy of the next token."""
        h = self.embedding(self.tokens)
        q, k, v = self.qkv(self.norm(h)).split(h.shape[-1], dim=-1)
        length = self.tokens.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (q @ k.mT / h.shape[-1] ** 0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        scores = self.output(torch.tanh(self.mix(h + weights @ v)))
        return nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten())
