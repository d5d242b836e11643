"""The options of `smoothlab rates`, and the settings that they stand for."""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from tyro.conf import arg

from smoothlab.errors import BadInput
from smoothlab.experiments.options import check_distribution
from smoothlab.experiments.settings import Row, SettingsExperiment, as_text, point_of
from smoothlab.objectives.table import OBJECTIVES
from smoothlab.zeroth.names import METAVAR

if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(OBJECTIVES)]

Part = Literal["theorem", "exponents", "counterexample", "speedup_of_two_rates", "reshuffling", "curved", "budget"]
Order = Literal["reshuffle", "once", "replace"]
Oracle = Literal["two-sided", "one-sided", "exact"]
Rule = Literal["two", "one"]
Instance = Literal["small", "large"]
Fitting = Annotated[str, arg(metavar=f"fitting|{METAVAR}")]
PARTS: tuple[Part, ...] = get_args(Part)
STAR = ("eps", "n", "d", "delta", "ratio", "sigma", "family", "order", "oracle", "rule", "given")
"""What the rows of theorem vary; given: T, or 0 for what the theorem asks for."""
SHUFFLED = 8  # components of reshuffling on its other axes
SHUFFLE_SCALE = 0.3  # eta n there
COMPUTED = ("zo-quadratics", "fo-quadratics", "zo-quadratics-q4", "zo-quadratics-lowrank")
"""Series of part curved whose exponents at small eps the exact recursion has."""
ON_CURVED = ("zo-quadratics", "zo-log-cosh", "zo-exponentials", "zo-quadratics-q4", "zo-log-cosh-q4",
             "zo-exponentials-q4", "zo-quadratics-lowrank", "zo-log-cosh-lowrank")  # fmt: skip
"""Series of part curved whose exponent in eps is measured."""
VARIED = ("zo-quadratics", "zo-log-cosh")
"""Series of part curved whose exponent in the variance of the estimate is measured."""
VARIANCES = (1.75, 3.5, 7.0, 10.0, 13.0, 19.0)
"""Keys of `smoothlab.experiments.rates.curved.ESTIMATES`."""
BUDGETED = ("zo-quadratics", "zo-quadratics-q4", "zo-quadratics-lowrank", "zo-log-cosh", "zo-exponentials")
"""Series of part budget."""
FAMILIES = "; ".join(f"{name}: {entry.description}" for name, entry in OBJECTIVES.items())


@dataclass(frozen=True)
class RatesConfig(SettingsExperiment):
    """What `smoothlab rates` measures.

    Attributes:
        parts: parts of the experiment to run. theorem: Algorithm 1 at the constants of Theorem C.1 and of the corrected
            theorems; exponents: exponents in eps, n, d and delta of the number of steps, as theorems ask for it and as
            runs need it on quadratics of one Hessian; counterexample: where Theorem C.1 fails; speedup_of_two_rates:
            the best single learning rate against the best two; reshuffling: reshuffled components against components
            drawn with replacement; curved: exponents on sums whose components curve differently, with averaged and with
            low-rank directions; budget: the best constant learning rate for a number of epochs on these sums.
        eps: target accuracies eps in part theorem, which asks for (1/T) sum ||grad f||^2 <= eps^2 where f - f* = 1 at
            the start and the curvature in x is 1. Of every option of this part the first value is the base setting, and
            the others are tried one at a time unless --all-combinations is set.
        ns: numbers n of components of the objective in part theorem.
        dims: dimensions d of x in part theorem.
        deltas: probabilities delta, in part theorem, with which a run may miss the accuracy.
        ratios: ratios L_x/L_y of the curvatures in x and y at the minimum, in part theorem.
        sigmas: noise levels sigma in part theorem: by Assumption 3.3 the mean square distance of the components'
            gradients from their mean is at most sigma^2.
        families: objectives of theorem.
        orders: orders in which an epoch of part theorem visits the components: reshuffle (a new permutation every
            epoch), once (the same permutation every epoch), replace (independent draws).
        oracles: gradients of x in part theorem: zeroth-order (two-sided or one-sided) or exact.
        rules: learning rates in part theorem: two, or one for both blocks, the smaller of the two.
        all_combinations: vary the options of part theorem together, instead of one at a time.
        epochs: numbers of epochs T to run in part theorem with the constants of Theorem C.1, in addition to the
            smallest T that its condition allows, which is always run.
        mu: perturbation mu of Theorem C.1 in part theorem; by default the largest that Eq. (3) allows.
        distribution: distribution of the random directions in part theorem; fitting is Gaussian, but sphere where
            Gaussian moments are infinite and where the high-probability theorem asks for it. "sparse(0.25)" sets the
            share of entries that move, "lowrank(2)" the rank, for which x is the matrix nearest a square.
        instances: instances of part counterexample to run as full simulations, in addition to the recursion that
            predicts their outcome; large has d = 100 and takes 640,576 steps.
        fit_eps: accuracies at which part exponents measures the exponent of eps, relative to the gradient's norm at the
            start.
        fit_ns: numbers of components at which part exponents measures the exponent of n.
        fit_dims: dimensions of x at which part exponents measures the exponent of d.
        fit_deltas: shares of failing replicas at which part exponents measures the exponent of delta.
        speedup_ratios: curvature ratios L_x/L_y in part speedup_of_two_rates.
        speedup_dims: dimensions of x in part speedup_of_two_rates, where its gradients are zeroth-order.
        shuffle_ns: numbers of components in part reshuffling.
        shuffle_scales: learning rates in part reshuffling, given as the product eta L n of the learning rate, the
            smoothness constant and the number of components.
        shuffle_dims: dimensions of x in part reshuffling, where its gradients are zeroth-order.
        shuffle_qs: numbers of directions that a step of part reshuffling averages over, at d = 10.
        budgets: numbers of epochs T in part budget, for each of which the best constant learning rate is looked for.
        replicas: number of independent runs of each setting; part reshuffling takes four times as many.
        max_steps: largest number of steps of a run, n in each of T epochs; a longer run is left out, and its row says
            so.
        seed: seed of the components' orders and of the random directions.
    """

    name: ClassVar[str] = "rates"
    parts: tuple[Part, ...] = PARTS
    eps: tuple[float, ...] = (1.0, 0.7)
    ns: tuple[int, ...] = (2, 8)
    dims: tuple[int, ...] = (2, 5)
    deltas: tuple[float, ...] = (0.5, 0.3)
    ratios: tuple[float, ...] = (1.0, 10.0)
    sigmas: tuple[float, ...] = (0.2, 30.0)
    families: Annotated[tuple[Family, ...], arg(help=f"objectives in part theorem. {FAMILIES}.")] = (
        "quadratic", "cosh-y", "cosh-x", "cosine", "log-cosh", "quadratics", "exponentials",
    )  # fmt: skip
    orders: tuple[Order, ...] = ("reshuffle", "replace", "once")
    oracles: tuple[Oracle, ...] = ("two-sided", "exact")
    rules: tuple[Rule, ...] = ("two", "one")
    all_combinations: bool = False
    epochs: tuple[int, ...] = ()
    mu: float | None = None
    distribution: Fitting = "fitting"
    instances: tuple[Instance, ...] = ("small",)
    fit_eps: tuple[float, ...] = (0.4, 0.3, 0.2, 0.14)
    fit_ns: tuple[int, ...] = (2, 4, 8, 16)
    fit_dims: tuple[int, ...] = (5, 10, 20)
    fit_deltas: tuple[float, ...] = (0.5, 0.2, 0.05)
    speedup_ratios: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0, 10000.0)
    speedup_dims: tuple[int, ...] = (10,)
    shuffle_ns: tuple[int, ...] = (2, 8, 32)
    shuffle_scales: tuple[float, ...] = (1.0, 0.3, 0.1)
    shuffle_dims: tuple[int, ...] = (1, 3, 10, 100)
    shuffle_qs: tuple[int, ...] = (4, 16)
    budgets: tuple[int, ...] = (25, 100, 400, 1600)
    replicas: int = 100
    max_steps: int = 14_000
    seed: int = 0

    optional = ("epochs", "instances")
    choices = {
        "parts": PARTS, "families": tuple(OBJECTIVES), "orders": get_args(Order), "oracles": get_args(Oracle),
        "rules": get_args(Rule), "instances": get_args(Instance),
    }  # fmt: skip
    ranges = {
        "eps": (1e-6, 1e3), "ns": (1, 4096), "dims": (1, 10**4), "deltas": (1e-6, 0.999), "ratios": (1e-6, 1e6),
        "sigmas": (0, 1e6), "epochs": (1, 10**12), "mu": (0, 1e3), "fit_eps": (0.01, 0.6), "fit_ns": (2, 1024),
        "fit_dims": (2, 10**4), "fit_deltas": (1e-3, 0.9), "speedup_ratios": (1, 1e6), "speedup_dims": (1, 10**4),
        "shuffle_ns": (2, 1024), "shuffle_scales": (1e-3, 1), "shuffle_dims": (1, 10**4), "shuffle_qs": (1, 1024),
        "budgets": (2, 10**7), "replicas": (20, 10**6), "max_steps": (0, 10**12), "seed": (0, 2**32 - 1),
    }  # fmt: skip

    def points(self) -> list[Row]:
        """List the settings, part by part."""
        settings = {
            "theorem": self._theorem, "exponents": self._exponents, "counterexample": self._counterexample,
            "speedup_of_two_rates": self._speedup, "reshuffling": self._reshuffling, "curved": self._curved,
            "budget": self._budget,
        }  # fmt: skip
        points = []
        for part in self.parts:
            for values in settings[part]():
                words = [f"{key}={as_text(value)}" for key, value in values.items() if key != "values"]
                points.append(point_of(part, words, values))
        return points

    def check(self) -> None:
        """Refuse options out of range, and unbounded steps on an objective without a finite mean after them.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        from smoothlab.zeroth.distributions import named

        super().check()
        if self.distribution == "fitting":
            return
        check_distribution(self.distribution, "distribution")
        bounded = named(self.distribution).bounded or set(self.oracles) == {"exact"}
        if "theorem" not in self.parts or bounded:
            return
        for name in self.families:
            if OBJECTIVES[name].steep:
                raise BadInput(
                    f"--distribution {self.distribution} with --families {name}: it grows exponentially, and after one "
                    "step with unbounded directions E f is infinite; use --distribution sphere, or cosh-y"
                )

    def _theorem(self) -> list[Row]:
        options = (self.eps, self.ns, self.dims, self.deltas, self.ratios, self.sigmas, self.families, self.orders,
                   self.oracles, self.rules, (0, *self.epochs))  # fmt: skip
        if self.all_combinations:
            return [dict(zip(STAR, combination, strict=True)) for combination in product(*options)]
        base: Row = dict(zip(STAR, [values[0] for values in options], strict=True))
        points = [base]
        for key, values in zip(STAR, options, strict=True):
            points += [base | {key: value} for value in values[1:]]
        return points

    def _exponents(self) -> list[Row]:
        axes = {"eps": self.fit_eps, "n": self.fit_ns, "d": self.fit_dims, "delta": self.fit_deltas}
        computed = {"axis": None}  # by formulas and recursions; a series with an axis is measured along it
        points: list[Row] = [{"series": k, **computed} for k in ("conditions", "zo", "fo-reshuffle", "fo-replace")]
        for series, measured in (("zo", tuple(axes)), ("fo-reshuffle", ("eps", "n")), ("fo-replace", ("eps",))):
            points += [{"series": series, "axis": axis, "values": list(axes[axis])} for axis in measured]
        return points

    def _curved(self) -> list[Row]:
        points: list[Row] = [{"series": series, "axis": None} for series in COMPUTED]
        for series in ON_CURVED:
            points.append({"series": series, "axis": "eps", "values": list(self.fit_eps)})
        for series in VARIED:
            points.append({"series": series, "axis": "variance", "values": list(VARIANCES)})
        return points

    def _budget(self) -> list[Row]:
        return [{"series": series, "values": list(self.budgets)} for series in BUDGETED]

    def _counterexample(self) -> list[Row]:
        points: list[Row] = []
        for name in ("small", "large", "long"):
            points.append({"instance": name, "n": 2, "pathwise": name in self.instances})
        return points + [{"instance": "any", "n": n, "pathwise": False} for n in (2, 8, 32)]

    def _speedup(self) -> list[Row]:
        points: list[Row] = []
        for oracle, d in (("exact", 1), *product(["two-sided"], self.speedup_dims)):
            for sigma, ratio in product((0.0, 0.5), self.speedup_ratios):
                points.append({"oracle": oracle, "d": d, "sigma": sigma, "ratio": ratio})
        return points

    def _reshuffling(self) -> list[Row]:
        base: Row = {"axis": "rate", "oracle": "exact", "d": 10, "n": SHUFFLED, "q": 1, "sigma": 1.0,
                     "scale": SHUFFLE_SCALE, "start": 0.0, "lengths": 3}  # fmt: skip
        points = []
        for n, scale in product(self.shuffle_ns, self.shuffle_scales):
            points.append(base | {"n": n, "scale": scale})
        for sigma in (0.03, 0.1, 0.3, 1.0):
            points.append(base | {"axis": "noise", "sigma": sigma, "start": 1.0, "lengths": 1})
        for axis, values in (("d", self.shuffle_dims), ("q", self.shuffle_qs)):
            points += [base | {"oracle": "two-sided", "axis": axis, axis: value} for value in values]
        return points
