"""Variants of a zeroth-order step: what is done with an estimate ghat before it moves the weights.

`HybridSGD` steps by x <- x - eta u, and a variant says what the update u is:

    plain      u = ghat
    momentum   u = sum_{j < n} w_j ghat_{t-j}, the last estimates with weights w_j = beta^j / sum_i beta^i
    adaptive   u = ghat / (sqrt(v_t) + 1e-8), v_t the running mean of ghat's mean squared entry: Adam's form, one scalar
    spread     u = ghat / s_t, s_t the standard deviation of the slopes of the q directions (FZOO)
    subspace   u = ghat, of low-rank directions whose subspace stays for some steps (LOZO)
    muon       u = P Q' of each matrix's low-rank estimate P S Q', its singular value decomposition

Updates are directional as estimates are, seeds and coefficients (muon's are made from these, a matrix at a time), and
the state is a few numbers: no variant holds a vector of the weights' size. All of them are functions of the estimates'
coefficients, so that a seed log, which holds these, replays them. docs/theory.md D.1 proves what their means and second
moments are, and why some have none.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import Estimator, ZerothOrder
from smoothlab.zeroth.expectations import Array
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.moments import Taylor, mean, second_moment
from smoothlab.zeroth.names import VARIANTS, from_table
from smoothlab.zeroth.variant import State, Variant

TRUNCATED = 0.01
"""Weight beta^J of what momentum forgets, at most, where no window is given."""
EPSILON = 1e-8
"""Adam's constant beside the root of v."""
Moments = tuple[Array, float]
"""Mean E u [d] and second moment E ||u||^2."""


@dataclass(frozen=True)
class Plain(Variant):
    """u = ghat, as Algorithm 1 has it.

    >>> from smoothlab import Directional, Gaussian, Plain
    >>> Plain().update((), Directional(Gaussian(), (((0,), 2.0),)))[0].terms
    (((0,), 2.0),)
    """

    def update(self, state: State, gradient: Directional) -> tuple[Directional, State]:
        """The estimate itself."""
        return gradient, state


@dataclass(frozen=True)
class Momentum(Variant):
    """Momentum rebuilt from seeds: u = sum_{j < n} w_j ghat_{t-j}, w_j = beta^j / sum_i beta^i, n = min(t + 1, J).

    The last J estimates are kept as seeds and coefficients, 16 bytes a direction, and their directions are drawn again
    in every step: J q drawings and one pass over the weights, and no copy of these. A momentum that is stored takes one
    drawing and one copy. With the weights of all steps, u would differ by beta^J (u - older), `older` the mean of the
    estimates before the window (exact): at most 1 % of the weight where `window` is 0.

    >>> from smoothlab import Momentum
    >>> Momentum(0.9), Momentum(0.5, 3).weights(5)
    (Momentum(beta=0.9, window=44), [0.5714285714285714, 0.2857142857142857, 0.14285714285714285])

    Attributes:
        beta: factor from one step to the next, in [0, 1).
        window: J, number of steps whose estimates are kept; 0 takes the least with beta^J at most 0.01.
    """

    beta: float = 0.9
    window: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise BadInput(f"momentum's beta = {self.beta:g}: use a number from 0 to below 1, e.g. 0.9")
        window = self.window
        if window != int(window) or window < 0:
            raise BadInput(f"momentum over {window:g} steps: use a whole number, or 0 for as many as weigh 99 %")
        if not window:
            window, weight_left = 1, self.beta
            while weight_left > TRUNCATED:
                window, weight_left = window + 1, weight_left * self.beta
        object.__setattr__(self, "window", int(window))

    def weights(self, count: int) -> list[float]:
        """w_j of the last estimates after `count` steps, the newest first."""
        powers = [1.0]
        for _ in range(1, min(count, self.window)):
            powers.append(powers[-1] * self.beta)  # products round alike on every machine, powers need not
        total = math.fsum(powers)
        return [power / total for power in powers]

    def update(self, state: State, gradient: Directional) -> tuple[Directional, State]:
        """The weighted mean of this step's estimate and those kept."""
        estimates = (self.terms_of(gradient), *state)[: self.window]
        terms = []
        for weight, estimate in zip(self.weights(len(estimates)), estimates, strict=True):
            terms += [(seed, weight * c) for seed, c in estimate]
        return Directional(gradient.distribution, tuple(terms), stream=gradient.stream), estimates

    def moments(self, estimator: ZerothOrder, f: Taylor, steps: int) -> Moments:
        """Mean and second moment of u after `steps` steps at weights that stand still.

        E u = E ghat = m and E ||u||^2 = ||m||^2 + (E ||ghat||^2 - ||m||^2) sum_j w_j^2, as steps are independent and
        sum_j w_j = 1. Along a run, E u = sum_j w_j E ghat(x_{t-j}) is the gradient at x_t only if the gradient stands
        still: u is no unbiased gradient, and off by at most L sum_j w_j ||x_{t-j} - x_t||.

        Args:
            estimator: the estimator.
            f: derivatives of the loss at the weights.
            steps: number of steps, from 1.
        """
        m, single = mean(estimator, f), second_moment(estimator, f)
        shrink = math.fsum(w * w for w in self.weights(steps))
        return m, float(m @ m + (single - m @ m) * shrink)


@dataclass(frozen=True)
class Adaptive(Variant):
    """One-scalar adaptivity: u = ghat / (sqrt(v_t) + 1e-8), v_t the bias-corrected running mean of s_t^2.

    s_t^2 = sum_j c_j^2 is the mean squared entry of ghat = sum_j c_j z_j given its coefficients, as E z_j z_j' = I: it
    is Adam's v, which is alike in all entries but for the noise of z^2, as one number. Adam's vector is said to buy
    nothing over it (arXiv:2605.03869). Costs nothing.

    >>> from smoothlab import Adaptive, Directional, Gaussian
    >>> update, state = Adaptive(0.9).update((), Directional(Gaussian(), (((0,), -4.0),)))
    >>> update.terms   # the first step has length 1 along z
    (((0,), -0.9999999975),)

    Attributes:
        beta: factor of v from one step to the next, in [0, 1); 0 keeps the sign of the slope alone.
    """

    beta: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise BadInput(f"adaptive beta = {self.beta:g}: use a number from 0 to below 1, e.g. 0.999")

    def update(self, state: State, gradient: Directional) -> tuple[Directional, State]:
        """The estimate over the root of v, which this step has entered."""
        terms = self.terms_of(gradient)
        v, power = self._next(state, math.fsum(c * c for _, c in terms))
        scale = 1.0 / (math.sqrt(v / (1.0 - power)) + EPSILON)
        return replace(gradient, terms=tuple((seed, c * scale) for seed, c in terms)), (v, power)

    def _next(self, state: State, square: float) -> tuple[float, float]:
        """v, and beta to the number of steps."""
        v, power = state or (0.0, 1.0)
        return self.beta * v + (1.0 - self.beta) * square, power * self.beta

    def moments(self, estimator: ZerothOrder, f: Taylor, state: State = ()) -> Moments:
        """Mean and second moment of the next u, given the state, for independent Gaussian directions.

        Along g the slopes are ||g|| times normal numbers, with the length x ||g||, x^2 chi-squared of q degrees, and
        across g the directions are independent of them. With h(x) = 1 / (sqrt(v(x)) + 1e-8),

            E u = g E[x^2 h(x)] / q,   E ||u||^2 = ||g||^2 E[(x^4 + (d - 1) x^2) h(x)^2] / q^2,

        so the mean is along g, and longer or shorter: u is no unbiased gradient, because this step's own slope is in v.
        It goes downhill: <g, u> is at least 0 on every quadratic with two sides. With signs in place of normal numbers
        the mean leaves g's line.

        Args:
            estimator: two-sided, or one-sided on a linear f; plain Gaussian directions.
            f: derivatives of the loss at the weights, at most quadratic.
            state: state before the step.

        Raises:
            BadInput: other directions, or a loss that is not that simple.
        """
        from scipy.integrate import quad
        from scipy.stats import chi

        length, d, q = _along_gradient(self, estimator, f), len(f.gradient), estimator.q
        first, second = 0.0, 0.0
        if length:

            def density_over_square(x: float) -> float:
                v, power = self._next(state, (length * x / q) ** 2)
                return float(chi.pdf(x, q)) / (math.sqrt(v / (1 - power)) + EPSILON) ** 2

            def density_over_root(x: float) -> float:
                return math.sqrt(float(chi.pdf(x, q)) * density_over_square(x))

            first = quad(lambda x: x * x * density_over_root(x), 0, np.inf)[0] / q
            second = length**2 / q**2 * quad(lambda x: (x**4 + (d - 1) * x * x) * density_over_square(x), 0, np.inf)[0]
        return first * f.gradient, float(second)


@dataclass(frozen=True)
class Spread(Variant):
    """Normalization by the spread of losses: u = ghat / s_t, s_t the standard deviation of the q slopes (FZOO).

    FZOO (Dang et al., arXiv:2506.09034) divides the one-sided estimate over q Rademacher directions by the standard
    deviation of their q losses, which is mu times that of the slopes: here mu joins the rate. A step in which all
    slopes are equal has no spread, and is left out. Costs nothing.

    >>> from smoothlab import Directional, Gaussian, Spread
    >>> Spread().update((), Directional(Gaussian(), (((0,), 1.0), ((1,), 3.0))))[0].terms   # slopes 2 and 6
    (((0,), 0.35355339059327373), ((1,), 1.0606601717798212))
    """

    def oracle(self, estimator: Estimator) -> Estimator:
        """The estimator, whose directions are several and independent."""
        q, average = getattr(estimator, "q", 2), getattr(estimator, "average", "plain")
        if q < 2 or average != "plain":
            raise BadInput(
                f"variant {self.name} with q = {q} {average} directions: it divides by the spread of independent "
                "slopes, use q of at least 2 and plain averages"
            )
        return estimator

    def update(self, state: State, gradient: Directional) -> tuple[Directional, State]:
        """The estimate over the standard deviation of its slopes."""
        terms = self.terms_of(gradient)
        q = len(terms)
        if q < 2:
            raise BadInput(f"variant {self.name} with one direction: use q of at least 2")
        slopes = [q * c for _, c in terms]  # each has the weight 1/q in the estimate
        center = math.fsum(slopes) / q
        deviation = math.sqrt(math.fsum((s - center) ** 2 for s in slopes) / (q - 1))
        scale = 0.0
        if deviation:
            scale = 1.0 / deviation
        return replace(gradient, terms=tuple((seed, c * scale) for seed, c in terms)), state

    def moments(self, estimator: ZerothOrder, f: Taylor) -> Moments:
        """Mean and second moment of u, for independent Gaussian directions.

        Along g the slopes over ||g|| are normal numbers, whose mean and standard deviation S are independent:

            E u = (g / ||g||) [E[1/S] / q + (q - 1) E[S] / q],
            E ||u||^2 = 3 r / q^2 + (q^2 - 1) / q^2 + ((d - 1) / q^2) (r + q - 1),   r = E[1/S^2] = (q - 1) / (q - 3),

        whatever ||g|| is: a normalized gradient, and no unbiased one. With q = 2 the mean is infinite, as E[1/S] is;
        with q = 3 the second moment is. <g, u> is at least 0 on every quadratic with two sides.

        Args:
            estimator: two-sided, or one-sided on a linear f; plain Gaussian directions.
            f: derivatives of the loss at the weights, at most quadratic, with a gradient that is not 0.

        Raises:
            BadInput: other directions, or a loss that is not that simple; q = 2, or no gradient.
        """
        length, d, q = _along_gradient(self, estimator, f), len(f.gradient), estimator.q
        if q < 3 or not length:
            raise BadInput(
                f"variant {self.name} with q = {q} and ||g|| = {length:g}: its mean is finite from q = 3 on, at "
                "gradients that are not 0"
            )
        ratio = math.exp(math.lgamma(q / 2) - math.lgamma((q - 1) / 2))
        deviation, inverse = ratio * math.sqrt(2 / (q - 1)), math.sqrt((q - 1) / 2) * ratio / ((q - 2) / 2)
        u = f.gradient / length * (inverse / q + (q - 1) * deviation / q)
        if q == 3:
            return u, math.inf
        square = (q - 1) / (q - 3)
        return u, (3 * square + q**2 - 1 + (d - 1) * (square + q - 1)) / q**2


@dataclass(frozen=True)
class Subspace(Variant):
    """A subspace kept for some steps: u = ghat of low-rank directions U W' whose W stays for `window` steps (LOZO).

    LOZO (Chen et al., arXiv:2410.07698). The estimator must have `LowRank` directions, which become `KeptSubspace`'s:
    nothing is stored, as W's seed is that of its window. A single estimate has the moments of `LowRank`'s; given W it
    is G W W'/r in the mean, a projection, see `KeptSubspace.second_moment_of_window`. Costs nothing.

    >>> from smoothlab import LowRank, Subspace, ZerothOrder
    >>> Subspace(20).oracle(ZerothOrder(distribution=LowRank(2))).distribution
    KeptSubspace(rank=2, window=20)

    Attributes:
        window: number of steps for which the subspace stays.
    """

    window: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "window", KeptSubspace(1, self.window).window
        )  # which refuses what is no number of steps

    def oracle(self, estimator: Estimator) -> Estimator:
        """The same estimator, with directions in the kept subspace."""
        low_rank = of_low_rank(self, estimator)
        distribution = low_rank.distribution
        assert isinstance(distribution, LowRank)
        subspace = KeptSubspace(distribution.rank, self.window, generator=distribution.generator)
        return replace(low_rank, distribution=subspace)

    def update(self, state: State, gradient: Directional) -> tuple[Directional, State]:
        """The estimate itself."""
        return gradient, state


def of_low_rank(variant: Variant, estimator: Estimator) -> ZerothOrder:
    """The estimator, if its directions are of low rank.

    Raises:
        BadInput: they are not.
    """
    distribution: Distribution = estimator.distribution
    if not (isinstance(estimator, ZerothOrder) and isinstance(distribution, LowRank)):
        raise BadInput(
            f"variant {variant.name} with {distribution.name} directions: it is made for low-rank ones, use "
            "ZerothOrder(distribution=LowRank()), on the command line --distribution lowrank"
        )
    return estimator


def _along_gradient(variant: Variant, estimator: ZerothOrder, f: Taylor) -> float:
    """||g||, where the slopes of independent Gaussian directions are g's products with them.

    Raises:
        BadInput: they are not.
    """
    plain = type(estimator) is ZerothOrder and estimator.average == "plain"
    if not plain or estimator.distribution != Gaussian():
        raise BadInput(
            f"variant {variant.name} has closed forms for plain averages of Gaussian directions of torch's generator, "
            f"not for the {estimator.name} estimator: measure moments by sampling"
        )
    curved = f.third is not None or (estimator.sides == 1 and np.any(f.hessian))
    if curved:
        raise BadInput(
            f"variant {variant.name} has closed forms on quadratics with two sides, and on linear functions with one: "
            "use these"
        )
    return float(np.linalg.norm(f.gradient))


def variant_named(text: str, option: str = "variant") -> Variant:
    """The variant of a name in `smoothlab.zeroth.names.VARIANTS`, with parameters in parentheses if any.

    >>> from smoothlab.zeroth.variants import variant_named
    >>> variant_named("momentum(0.5)")
    Momentum(beta=0.5, window=7)

    Args:
        text: the name, e.g. "plain" or "momentum(0.9, 20)".
        option: what errors call it.

    Raises:
        BadInput: the name is in no entry, or its parameters are not the variant's.
    """
    variant: Variant = from_table(text, VARIANTS, option, "momentum(0.9)")
    return variant
