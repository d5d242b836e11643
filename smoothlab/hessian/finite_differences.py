"""Hessian-vector products by finite differences of gradients, with steps that know their own rounding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, Loss, dot, flatten, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.gradients import LossAtPoint, block_gradients, difference_quotient
from smoothlab.hessian.norms import Hessian
from smoothlab.shift import Shift

Scheme = Literal["forward", "central"]
_ORDERS = {"forward": 1, "central": 2}
"""Power of h that the error of a scheme falls with, which is also how many gradients a product costs."""


@dataclass(frozen=True)
class Step:
    """A finite-difference step and what is known of its quality.

    Attributes:
        h: step along v, in units of v (the move is h v).
        noise: ||grad noise||, the rounding error of one gradient in Euclidean norm, over all blocks.
        error: estimated relative error of the product at h from halving it; None if not checked, or with kinks.
        kinks: True when halving the step does not shrink the error as smoothness demands although rounding is small.
            Looked for where the step is chosen; beside a given h, ask `FiniteDifferenceHessian.has_kinks`.
    """

    h: float
    noise: float
    error: float | None = None
    kinks: bool = False


class FiniteDifferenceHessian(LossAtPoint, Hessian):
    """Hessian-vector products by differences of gradients: forward, (grad f(theta + hv) - grad f) / h, or central.

    With delta = fl(theta + hv) - theta the move that rounding lets through, the difference is divided by
    h' = <delta, v> / ||v||^2 (``effective=True``), not by h. Rounding leaves noise of size sqrt(2) e / h' (forward) or
    e / (sqrt(2) h') (central), with e the rounding error of one gradient, which `choose_step` measures.

    >>> import torch
    >>> from smoothlab import Block, FiniteDifferenceHessian
    >>> x, y = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    >>> blocks = [Block("x", (x,)), Block("y", (y,))]
    >>> hessian = FiniteDifferenceHessian(lambda: (x**2 + x * y + y**2).sum(), blocks)
    >>> round(hessian.norms(cross=[("x", "y")])[-1].value, 6)   # ||I||_F
    1.414214

    Args:
        loss: deterministic loss of one minibatch.
        blocks: blocks to differentiate, disjoint.
        h: length of the move ||h v||; "auto" chooses it for each block at its first product (`choose_step`).
        scheme: "forward" (1 gradient a product, error O(h)) or "central" (2 gradients, error O(h^2)).
        effective: divide by the realized move h' (the default) or by h as given (Appendix D.4 to the letter).
    """

    differences: ClassVar[bool] = True

    def __init__(
        self,
        loss: Loss,
        blocks: Sequence[Block],
        *,
        h: float | Literal["auto"] = "auto",
        scheme: Scheme = "central",
        effective: bool = True,
    ) -> None:
        if scheme not in _ORDERS:
            raise BadInput(f"scheme '{scheme}' is unknown: use forward or central")
        if h != "auto" and not h > 0:
            raise BadInput(f"the step h = {h} must be above 0, or 'auto'")
        super().__init__(loss, blocks)
        self.scheme, self.effective, self._h = scheme, effective, h
        self._order = _ORDERS[scheme]
        self._shifts: dict[str, Shift] = {}
        self.steps: dict[str, Step] = {}
        self._gradients_taken = 0  # away from the weights, or of a scaled loss
        self._spent: dict[str, int] = {}  # products that choosing or checking the steps took, not yet counted

    def _shift(self, along: str) -> Shift:
        if along not in self._shifts:
            self._shifts = {along: Shift(self.blocks[along])}  # one block's copy at a time
        return self._shifts[along]

    def _moved(self, v: Tensor, along: str, h: float, wrt: Sequence[str]) -> list[list[Tensor]]:
        """The gradient's parts of each block of `wrt`, at the weights moved by h v."""
        self._gradients_taken += 1
        with self._shift(along).along(v, h):
            value = self._loss()
            if not torch.isfinite(value):
                raise BadInput(f"the loss is not finite {h:g} ||v|| away from the weights: use a smaller step h")
            parts = block_gradients(value, {name: self.blocks[name] for name in wrt}, create_graph=False)
        return [parts[name] for name in wrt]

    def difference(self, v: Tensor, along: str, h: float, wrt: Sequence[str], squared: float) -> tuple[Tensor, ...]:
        """The difference quotient at the move h v, whatever step was chosen; `squared` is ||v||^2."""
        shift = self._shift(along)
        plus = self._moved(v, along, h, wrt)
        realized, scale = shift.realized, h
        if self.scheme == "central":
            minus = self._moved(v, along, -h, wrt)
            realized, scale = realized - shift.realized, 2 * h
        else:
            minus = [self.blocks[name].split(self.gradients[name]) for name in wrt]
        if self.effective:
            # Weights round h v, by more than 100 % where h is short; the quotient of the real move does not mind.
            scale = realized / squared
        if scale == 0.0:
            raise BadInput(f"a step of {h:g} along v changes no weight of '{along}' in its precision: use a larger h")
        results = []
        for name, ends, starts in zip(wrt, plus, minus, strict=True):
            results.append(difference_quotient(self.blocks[name], ends, starts, scale))
        return tuple(results)

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """H_bc v for c = `along` and each b of `wrt`: 1 gradient (forward) or 2 (central)."""
        squared = dot(v, v)
        if squared == 0.0:
            return tuple(torch.zeros_like(self.gradients[name]) for name in wrt)
        length = self._h
        if length == "auto":
            length = self._step(v, along).h
        return self.difference(v, along, length / math.sqrt(squared), wrt, squared)

    def gradient_noise(self, v: Tensor, along: str) -> float:
        """Rounding error e of one gradient of block `along` (Euclidean norm), from gradients a few ulp apart.

        The second difference of g at 0, s, 2s has no first-order part and variance 6 e^2. The move s v is 16 ulp of the
        block's root mean square weight per entry, which decorrelates all roundings, but may cross kinks (ReLU), one of
        which outweighs the rounding of a whole model a hundredfold, and in bf16 is long. So it is held against the
        rounding of the backward pass alone, which crosses nothing: the gradient of 3/7 f has other mantissas and the
        same forward pass. Beyond 4 times that, the move is shortened, to 1/16 ulp in the end, and its sign turned. If
        no move misses the kinks, then rounding itself meets them (at OPT-125M's shape, on one batch of random tokens,
        fp32 is off fp64 by 2e-4 ||g||, over 200 times the backward pass's rounding), and e is the root mean square over
        the three moves of an ulp and less.

        Never less than the backward pass's rounding, nor than eps ||g|| / sqrt(12), the error of storing the gradient.
        """
        start, eps = self.gradients[along], torch.finfo(v.dtype).eps
        self._gradients_taken += 1
        scaled = block_gradients(self._loss() * (3 / 7), {along: self.blocks[along]}, create_graph=False)
        backward = norm(flatten(scaled[along]).mul_(7 / 3).sub_(start)) / math.sqrt(2)
        ulp = eps * self._size(along) / norm(v)
        noises: list[float] = []
        for length in (16.0, -1.0, 1 / 4, -1 / 16):
            curl = flatten(self._moved(v, along, length * ulp, [along])[0]).mul_(-2).add_(start)
            curl.add_(flatten(self._moved(v, along, 2 * length * ulp, [along])[0]))
            noises.append(norm(curl) / math.sqrt(6))
            if noises[-1] <= 4 * backward:
                noise = noises[-1]
                break
        else:  # rounding itself meets the kinks
            noise = float(np.sqrt(np.square(noises[1:]).mean()))
        return max(noise, backward, eps * norm(start) / math.sqrt(12))

    def _floor(self, noise: float, h: float) -> float:
        """Rounding of a quotient: of two independent gradients over h (forward) or over 2 h (central)."""
        return math.sqrt(2) / self._order * noise / h

    def _step(self, v: Tensor, along: str) -> Step:
        """The step of a block, chosen or measured along v at the block's first product."""
        if along not in self.steps:
            before = self._gradients_taken
            if self._h == "auto":
                self.steps[along] = self.choose_step(v, along)
            else:
                self.steps[along] = Step(h=self._h, noise=self.gradient_noise(v, along))
            self._spent[along] = math.ceil((self._gradients_taken - before) / self._order)
        return self.steps[along]

    def rounding(self, v: Tensor, along: str) -> float:
        """||H_cc u|| of a unit u that rounding alone produces at the step in use; measured along v if need be."""
        step = self._step(v, along)
        return self._floor(step.noise, step.h)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Relative rounding error of the product H_cc v = `image`; the chosen step's, or measured for a given h."""
        size, floor = norm(image), self.rounding(v, along) * norm(v)
        return floor / size if size else 0.0, self._spent.pop(along, 0)

    def truncation(self, along: str) -> float:
        """Estimated relative error of the product at the step in use; 0 where it was not checked."""
        return self.steps[along].error or 0.0

    def choose_step(self, v: Tensor, along: str, longest: float | None = None) -> Step:
        """The move ||h v|| with the smallest estimated error, among six lengths.

        Starts at `longest`, by default 16 ||theta_c|| eps^(1/3) (central) or 16 ||theta_c|| eps^(1/2) (forward), walks
        down by factors of 4 and compares neighboring quotients: they differ by truncation, which smoothness shrinks by
        4^p a step (p = 2 central, 1 forward), and by rounding, which is known. Where most differences that stand clear
        of rounding do not even shrink by 4^(p/2), the gradient has kinks, and there is no right step: `kinks` is set.
        """
        noise, order, unit = self.gradient_noise(v, along), self._order, norm(v)
        if longest is None:
            eps = torch.finfo(v.dtype).eps
            longest = 16 * self._size(along) * eps ** (1 / (order + 1))
        lengths = longest / 4.0 ** np.arange(6)
        floors = self._floor(noise, 1.0) / lengths

        def quotient(h: float) -> Tensor:
            return self.difference(v, along, h / unit, [along], unit**2)[0] / unit

        gaps, sizes = np.zeros(5), np.zeros(5)
        image = quotient(float(lengths[0]))
        for i, h in enumerate(lengths[1:].tolist()):  # two images at a time, as each has the block's size
            longer, image = image, quotient(h)
            gaps[i], sizes[i] = norm(longer - image), norm(image)
        # The gap between h and h/4 is the truncation error at h times (1 - 4^-order), plus both roundings.
        errors = gaps * 4.0**-order / (1 - 4.0**-order) + floors[1:]
        best = int(errors.argmin())
        size = float(sizes[best])
        # Only gaps that stand clear of rounding say how truncation shrinks, and two such neighbors make a ratio.
        clear = gaps > 4 * (floors[:-1] + floors[1:])
        clear_pairs = clear[:-1] & clear[1:]
        shrinks = np.sort(gaps[:-1][clear_pairs] / gaps[1:][clear_pairs])
        kinks = False
        if len(shrinks):
            slow = shrinks[len(shrinks) // 2] < 4 ** (order / 2)
            kinks = bool(slow and gaps[clear].max() > 0.01 * size)
        error = float(errors[best]) / size if size and not kinks else None
        return Step(h=float(lengths[best + 1]), noise=noise, error=error, kinks=kinks)

    def _size(self, along: str) -> float:
        """||theta_c||, or a little above 0 for a block of zeros."""
        theta = flatten(p.detach() for p in self.blocks[along].params)
        return max(norm(theta), math.sqrt(torch.finfo(theta.dtype).eps))

    def has_kinks(self, v: Tensor, along: str) -> bool:
        """Whether moves of up to 8 % of ||theta_c|| along v, in any precision, cross kinks of the gradient (ReLU)."""
        return self.choose_step(v, along, longest=0.08 * self._size(along)).kinks
