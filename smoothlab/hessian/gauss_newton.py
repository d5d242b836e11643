"""The trace of the Gauss-Newton matrix by probes in the space of the outputs: one backward pass a probe.

Let a loss be L = sum_n w_n CE(f_n, y_n), with outputs f_n [C] (logits, or scores of candidates), weights w_n >= 0 and
p_n = softmax(f_n). Its Gauss-Newton matrix, which leaves out the second derivatives of the outputs, is
    G = sum_n w_n J_n' (diag p_n - p_n p_n') J_n,     J_n the Jacobian of f_n (Schraudolph 2002; Martens 2020).
With S_n S_n' = diag p_n - p_n p_n' it is G = A A' for A = [sqrt(w_n) J_n' S_n]_n, hence
    tr G = ||A||_F^2 = E ||sum_n sqrt(w_n) J_n' S_n e_n||^2     for independent e_n of mean 0 and covariance I,
which is the squared gradient of <sum_n sqrt(w_n) S_n e_n, f_n>: never negative, no second derivative, all blocks and
layers at once. The columns of A are as many as the rank of the S_n together, N (C - 1) at most: where they are few,
each is a backward pass of its own, and the trace is exact.

G is the Hessian's positive part where the outputs are linear, or the residuals p_n - y_n small; elsewhere tr G need
not be near tr H. For a likelihood, G is the Fisher matrix of labels drawn from the model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, by_name, dot, flatten
from smoothlab.errors import BadInput
from smoothlab.hessian.deflation import FIRST, IMAGES
from smoothlab.hessian.diagonal import split_blocks
from smoothlab.hessian.estimates import NOT_REACHED, TraceEstimate
from smoothlab.hessian.gradients import explained_errors
from smoothlab.stats.intervals import Interval, Z
from smoothlab.stats.probes import effective_rank, sum_of_squares


class Outputs(NamedTuple):
    """Outputs f [N, C] of a minibatch, with gradients, and the weight w [N] of each in L = sum_n w_n CE(f_n, y_n)."""

    logits: Tensor
    weights: Tensor


def joined(parts: Sequence[Callable[[], Outputs]]) -> Callable[[], Outputs]:
    """The outputs of a minibatch from those of its equal parts: its loss is the mean of theirs."""

    def outputs() -> Outputs:
        outputs_of_parts = [part() for part in parts]
        weights = torch.cat([part_outputs.weights for part_outputs in outputs_of_parts])
        return Outputs(torch.cat([part_outputs.logits for part_outputs in outputs_of_parts]), weights / len(parts))

    return outputs


def gauss_newton_trace(
    outputs: Callable[[], tuple[Tensor, Tensor]],
    blocks: Sequence[Block],
    *,
    precision: float = 0.05,
    budget: int = 100,
    seed: Sequence[int] = (0,),
    rows: Sequence[Block] = (),
) -> list[TraceEstimate]:
    """tr G_bb of each block b of the Gauss-Newton matrix G of a cross-entropy loss, with its 95 % interval.

    >>> import torch
    >>> from smoothlab import Block, gauss_newton_trace
    >>> w = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))      # f = w x, p = (1/2, 1/2)
    >>> outputs = lambda: (torch.full((1, 1), 3.0).double() @ w.T, torch.ones(1))
    >>> round(gauss_newton_trace(outputs, [Block("w", (w,))])[0].value, 6)  # x^2 tr(diag p - p p') = 9 / 2
    4.5

    Args:
        outputs: returns the outputs [N, C] of one minibatch, deterministic, and their weights [N], e.g. 1/N each.
        blocks: disjoint blocks.
        precision: half-width of the interval, as a fraction of the trace, at which probing stops; of all blocks.
        budget: backward passes at which it stops all the same, flagged "precision not reached".
        seed: seed of the probes.
        rows: layers, whose traces tr G_ll are measured from the same passes.

    Returns:
        One estimate of "gauss_newton_trace" a block, then one a layer; `hvps` counts backward passes. Where the columns
        of A are so few that probes would need as many, the trace is exact, up to rounding.

    Raises:
        BadInput: outputs without graph or not finite, weights that are negative or of another length, a precision
            outside (0, 1), a budget below 6.
    """
    probes = OutputProbes(outputs, blocks, rows, seed)
    return list(probes.estimates(precision, budget))


class OutputProbes:
    """Squared images A e of probes e, by block and layer.

    Attributes:
        squares: ||A_b e||^2 of each probe, by block or layer b.
    """

    def __init__(
        self,
        outputs: Callable[[], tuple[Tensor, Tensor]],
        blocks: Sequence[Block],
        rows: Sequence[Block],
        seed: Sequence[int],
    ) -> None:
        self.blocks, self.split = by_name(blocks), split_blocks(blocks, rows)
        with explained_errors():
            self.logits, weights = outputs()
        self.weights = _checked(self.logits, weights)
        # A seed of its own bits, as `draw` makes them: neighboring seeds share no stream.
        state = np.random.SeedSequence([*seed, *b"outputs"]).generate_state(1, np.uint64)[0]
        self.generator = torch.Generator().manual_seed(int(state >> 1))
        wide = torch.promote_types(self.logits.dtype, torch.float32)
        self.probabilities = self.logits.detach().to(wide).softmax(-1)
        self.images: list[dict[str, Tensor]] = []
        self.names = [*self.blocks]
        for rows_of_block in self.split.values():
            self.names += rows_of_block.layers.names
        self.squares: dict[str, list[float]] = {name: [] for name in self.names}
        self.grams: dict[str, np.ndarray] = {name: np.zeros((0, 0)) for name in self.names}
        self.passes = 0

    @property
    def columns(self) -> int:
        """Columns of A: C - 1 for each output that has a weight, the rank of S_n S_n' at most."""
        return int((self.weights > 0).sum()) * (self.logits.shape[1] - 1)

    def probe(self) -> None:
        """One Gaussian probe e: S e = diag(sqrt p) e - p <sqrt p, e> for each output."""
        e = torch.randn(self.logits.shape, generator=self.generator, dtype=self.probabilities.dtype)
        weighted = self.probabilities.sqrt() * e.to(self.logits.device)
        self._add(weighted - self.probabilities * weighted.sum(-1, keepdim=True), keep=True)

    def enumerate(self) -> None:
        """Every column of A once: their squares add to the trace."""
        for n in range(len(self.weights)):
            if self.weights[n] == 0:
                continue
            p = self.probabilities[n]
            # C - 1 columns from an eigendecomposition, of which the vector of ones, the kernel, is left out.
            values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
            for value, vector in zip(values[1:], vectors.T[1:], strict=True):
                v = torch.zeros_like(self.probabilities)
                v[n] = vector * value.clamp_min(0.0).sqrt()
                self._add(v, keep=False)

    def _add(self, v: Tensor, *, keep: bool) -> None:
        """The gradient of <sqrt(w) v, f> on all blocks, and its squares; kept for Gram matrices."""
        direction = (v * self.weights.sqrt()[:, None].to(v.dtype)).to(self.logits.dtype)
        params = [p for block in self.blocks.values() for p in block.params]
        with explained_errors():
            parts = list(torch.autograd.grad(self.logits, params, direction, retain_graph=True, allow_unused=True))
        self.passes += 1
        images = {}
        start = 0
        for name, block in self.blocks.items():
            gradients = []
            for p, part in zip(block.params, parts[start : start + len(block.params)], strict=True):
                if part is None:  # outputs that a parameter does not reach
                    part = torch.zeros_like(p)
                gradients.append(part)
            start += len(block.params)
            images[name] = flatten(gradients)
        for name, square in self._dots(images, images).items():
            self.squares[name].append(square)
        if keep and len(self.images) < IMAGES:
            self._extend_grams(images)

    def _extend_grams(self, images: dict[str, Tensor]) -> None:
        self.images.append(images)
        products = [self._dots(images, earlier) for earlier in self.images]
        for name in self.names:
            gram = np.pad(self.grams[name], (0, 1))
            gram[-1] = gram[:, -1] = [product[name] for product in products]
            self.grams[name] = gram

    def _dots(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
        """<a, b> by block and layer."""
        products = {name: dot(a[name], b[name]) for name in self.blocks}
        for name, rows in self.split.items():
            products |= dict(zip(rows.layers.names, rows.layers.dots(a[name], b[name]).tolist(), strict=True))
        return products

    def estimates(self, precision: float, budget: int) -> Iterator[TraceEstimate]:
        """Probe until every block's interval is short enough, or enumerate; then the estimates, blocks first."""
        if not 0 < precision < 1 or budget <= FIRST:
            raise BadInput(
                f"precision {precision:g}, budget {budget}: use a precision in (0, 1), and a budget above {FIRST}"
            )
        # Probes of r equal singular values, the best case, need 2 Z^2 / (precision^2 r): as many as columns, or more,
        # where r <= Z sqrt(2) / precision.
        exact = self.columns <= min(Z * 2**0.5 / precision, budget)
        if exact:
            self.enumerate()
        while not exact and self.passes < budget:
            self.probe()
            if self.passes >= FIRST and all(_width(self._interval(name)) <= precision for name in self.blocks):
                break
        floor = 64 * torch.finfo(self.logits.dtype).eps
        for name in self.names:
            yield self._estimate(name, exact, precision, floor)

    def _interval(self, name: str) -> Interval:
        return sum_of_squares(self.squares[name], effective_rank(self.grams[name]))

    def _estimate(self, name: str, exact: bool, precision: float, rounding: float) -> TraceEstimate:
        needed, flag = None, None
        if exact:
            total = float(np.sum(self.squares[name]))
            interval = Interval(total, total, total)
        else:
            interval = self._interval(name)
            if _width(interval) > precision:
                flag = NOT_REACHED
                needed = int(2 * (Z / precision) ** 2 / effective_rank(self.grams[name], cautious=False)) + 1
                needed = max(needed, self.passes + 1)
        floor = rounding * interval.value
        low, high = max(interval.low - floor, 0.0), interval.high + floor
        return TraceEstimate(
            name, name, "gauss_newton_trace", interval.value, low, high, self.passes, floor, flag, needed=needed
        )


def _width(interval: Interval) -> float:
    """Half-width relative to the value; 0 where all is 0."""
    if interval.value == 0.0:
        return 0.0
    return (interval.high - interval.low) / (2 * interval.value)


def _checked(logits: Tensor, weights: Tensor) -> Tensor:
    """The weights in fp64 on the logits' device.

    Raises:
        BadInput: outputs or weights that are no weighted cross-entropies.
    """
    if logits.dim() != 2 or weights.shape != logits.shape[:1]:
        raise BadInput(
            f"outputs of shape {tuple(logits.shape)} with weights of shape {tuple(weights.shape)}: return [N, C] and "
            "[N]"
        )
    if not logits.requires_grad:
        raise BadInput("the outputs have no graph: compute them with gradients on, from parameters that require them")
    if not bool(torch.isfinite(logits.detach()).all()):
        raise BadInput("an output is not finite: lower the learning rate, or use a wider --dtype")
    weights = weights.detach().to(logits.device, torch.float64)
    if not bool((weights >= 0).all()):
        raise BadInput(f"a weight is {float(weights.min()):g}: weights of cross-entropies are at least 0")
    return weights
