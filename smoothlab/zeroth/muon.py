"""ZO-Muon: steps along the singular vectors of low-rank zeroth-order estimates, a variant of the step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.estimators import Estimator, ZerothOrder
from smoothlab.zeroth.expectations import Shapes
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.variant import State, Update, Variant
from smoothlab.zeroth.variants import of_low_rank


@dataclass(frozen=True)
class Orthogonalized:
    """The update of `Muon`: P Q' for a matrix's estimate P S Q'; for other tensors the estimate over its length.

    Attributes:
        gradient: the estimate, of `LowRank` directions.
    """

    gradient: Directional

    def add_to(self, block: Block, alpha: float) -> None:
        """theta <- theta + alpha u on `block`, in place, one tensor in memory at a time."""
        distribution = self.gradient.distribution
        assert isinstance(distribution, LowRank)
        drawn = self.gradient.streams
        streams = [drawn.get(seed) or distribution.stream(block, seed) for seed, _ in self.gradient.terms]
        coefficients = [c for _, c in self.gradient.terms]
        with torch.no_grad():
            for i, p in enumerate(block.params):
                if not p.numel():
                    continue
                if p.dim() == 2:
                    u = _polar([distribution.factors(stream, i) for stream in streams], coefficients)
                else:
                    u = torch.zeros(p.shape, dtype=streams[0].dtype, device=p.device)
                    for stream, c in zip(streams, coefficients, strict=True):
                        u.add_(distribution.numbers(stream, i), alpha=c)
                    u /= float(torch.linalg.vector_norm(u)) or 1.0
                p.copy_(p.to(u.dtype).add_(u, alpha=alpha))


def _polar(factors: Sequence[tuple[Tensor, Tensor]], coefficients: Sequence[float]) -> Tensor:
    """P Q' of sum_j c_j U_j W_j' = A B' = P S Q', from QR decompositions of A [m, q r] and B [n, q r].

    A = Q_a R_a and B = Q_b R_b, so that R_a R_b' = p S q' gives P = Q_a p and Q = Q_b q: nothing larger than a factor
    is decomposed, in fp64. Directions that rounding alone gives, and an estimate of 0, add nothing.
    """
    a = torch.cat([c * u.double() for (u, _), c in zip(factors, coefficients, strict=True)], 1)
    b = torch.cat([w.double() for _, w in factors], 1)
    q_a, r_a = torch.linalg.qr(a)
    q_b, r_b = torch.linalg.qr(b)
    p, s, q = torch.linalg.svd(r_a @ r_b.T, full_matrices=False)
    p = p * (s > s.max() * torch.finfo(s.dtype).eps * max(len(a), len(b)))
    dtype = factors[0][0].dtype
    left, right = (q_a @ p).to(dtype), (q @ q_b.T).to(dtype)
    return torch.mm(left, right)


@dataclass(frozen=True)
class Muon(Variant):
    """Orthogonalized low-rank estimates: u = P Q' for the estimate P S Q' of each matrix, as Muon steps (ZO-Muon).

    Muon (Jordan 2024) orthogonalizes a momentum by Newton-Schulz iterations; of q directions of rank r the estimate has
    rank q r, and its decomposition follows exactly from the factors' own, at about 4 (m + n) (q r)^2 operations a
    matrix, with one matrix in memory at a time. For other tensors u is the estimate divided by its length.

    ||u||^2 is min(q r, m, n) on a matrix and 1 elsewhere, whatever the loss is: its second moment is exact, and no
    unbiased gradient has it. A seed log replays where decompositions round alike: on the same kind of machine, with as
    many threads. With q = 1 a step goes downhill on average, to first order (docs/theory.md D.1).

    >>> from smoothlab import LowRank, Muon, ZerothOrder
    >>> Muon().second_moment(ZerothOrder(q=4, distribution=LowRank(2)), ((6, 9), (9,)))
    7
    """

    def oracle(self, estimator: Estimator) -> Estimator:
        """The estimator, whose directions are of low rank."""
        low_rank = of_low_rank(self, estimator)
        if low_rank.distribution.generator == "portable":
            raise BadInput(
                f"variant {self.name} with portable directions: its decompositions are rounded otherwise on other "
                "machines, use generator 'torch'"
            )
        return low_rank

    def update(self, state: State, gradient: Directional) -> tuple[Update, State]:
        """The orthogonalized estimate."""
        self.terms_of(gradient)
        return Orthogonalized(gradient), state

    def second_moment(self, estimator: ZerothOrder, shapes: Shapes) -> int:
        """||u||^2 of every step whose slopes are not 0: the number of its singular values, which are 1.

        Args:
            estimator: the estimator.
            shapes: shapes of the block's tensors.
        """
        distribution, total = self.oracle(estimator).distribution, 0
        assert isinstance(distribution, LowRank)
        for shape in shapes:
            total += min(estimator.q * distribution.rank, *shape) if len(shape) == 2 else 1
        return total
