"""Does the rate of Theorem 3.4 hold, in eps, n, d, delta, L_x/L_y, and where does it stop holding?"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal, get_args

from smoothlab.errors import BadInput

Row = dict[str, Any]
Part = Literal["theorem", "exponents", "counterexample", "buys", "reshuffling"]
Family = Literal[
    "quadratic", "cosh-y", "cosh-x", "oscillating", "cosine", "log-cosh", "quadratics", "exponentials"
]  # fmt: skip
Order = Literal["reshuffle", "once", "replace"]
Oracle = Literal["two-sided", "one-sided", "exact"]
Rule = Literal["two", "one"]
Instance = Literal["small", "large"]
Distribution = Literal["fitting", "gaussian", "sphere", "rademacher"]
PARTS: tuple[Part, ...] = get_args(Part)
CHOICES: dict[str, tuple[str, ...]] = {
    "parts": PARTS, "families": get_args(Family), "orders": get_args(Order), "oracles": get_args(Oracle),
    "rules": get_args(Rule), "distribution": get_args(Distribution), "instances": get_args(Instance),
}  # fmt: skip
RANGES: dict[str, tuple[float, float]] = {
    "eps": (1e-6, 1e3), "ns": (1, 4096), "dims": (1, 10**4), "deltas": (1e-6, 0.999), "ratios": (1e-6, 1e6),
    "sigmas": (0, 1e6), "epochs": (1, 10**12), "mu": (0, 1e3), "fit_eps": (0.01, 0.6), "fit_ns": (2, 1024),
    "fit_dims": (2, 10**4), "fit_deltas": (1e-3, 0.9), "buy_ratios": (1, 1e6), "buy_dims": (1, 10**4),
    "shuffle_ns": (2, 1024), "shuffle_scales": (1e-3, 1), "shuffle_dims": (1, 10**4), "shuffle_qs": (1, 1024),
    "replicas": (20, 10**6), "longest": (0, 10**12), "seed": (0, 2**32 - 1),
}  # fmt: skip
"""Least and greatest value of numbers, or of each of several."""
STAR = ("eps", "n", "d", "delta", "ratio", "sigma", "family", "order", "oracle", "rule", "given")
"""What the rows of theorem vary; given: T, or 0 for what the theorem asks for."""
SHUFFLED = 8  # components of reshuffling on its other axes
SHUFFLE_SCALE = 0.3  # eta n there


@dataclass(frozen=True)
class Rates:
    """The rates of Theorem 3.4: what it promises, what holds instead, and what Algorithm 1 does, with intervals.

    Attributes:
        parts: theorem: Algorithm 1 at the constants of Theorem C.1 and of the corrected theorems; exponents: of the
            steps asked for and needed; counterexample: where Theorem C.1 fails; buys: one best rate against two;
            reshuffling: against sampling with replacement.
        eps: accuracies of theorem, (1/T) sum ||grad f||^2 <= eps^2. Of each option the first value is the base, from
            which the others are varied one at a time; gap f - f* = 1 at the start, curvature 1 in x.
        ns: numbers of components.
        dims: dimensions of x.
        deltas: probabilities of failure.
        ratios: L_x/L_y at the minimum.
        sigmas: noise of Assumption 3.3.
        families: quadratic; cosh-y, cosh-x: (L0, L1)-smooth there; oscillating: not convex; cosine: not convex and
            smooth everywhere; components that curve differently: log-cosh, smooth everywhere; quadratics, and
            exponentials, which are (L0, L1)-smooth: of unbounded variance.
        orders: how an epoch goes through the components.
        oracles: gradient of x.
        rules: two learning rates, or the smaller one for both.
        every: all combinations of these, instead of one at a time.
        epochs: T of Theorem C.1, besides the smallest its condition allows.
        mu: perturbation in Theorem C.1 (default: the largest Eq. (3) allows).
        distribution: of the directions; fitting: Gaussian, but sphere where Gaussian moments are infinite and where the
            high-probability theorem asks for it.
        instances: of the counterexample that are run besides their recursion; large: d = 100, 640,576 steps.
        fit_eps: accuracies of the measured exponents, in ||grad f(z_0)||.
        fit_ns: numbers of components of theirs.
        fit_dims: dimensions of theirs.
        fit_deltas: shares of replicas that may fail of theirs.
        buy_ratios: L_x/L_y of buys.
        buy_dims: dimensions of x in buys, zeroth-order.
        shuffle_ns: numbers of components of reshuffling.
        shuffle_scales: eta L n of reshuffling.
        shuffle_dims: dimensions of x in reshuffling, zeroth-order.
        shuffle_qs: directions a step of reshuffling, at d = 10.
        replicas: runs of each.
        longest: a run of more steps nT than that is left out; its row says so.
        seed: seed of orders and directions.
    """

    name: ClassVar[str] = "rates"
    unit: ClassVar[str] = "setting"
    device: ClassVar[str] = "cpu"  # for the header: seeds are bound to the generator of one kind of CPU
    parts: tuple[Part, ...] = PARTS
    eps: tuple[float, ...] = (1.0, 0.7)
    ns: tuple[int, ...] = (2, 8)
    dims: tuple[int, ...] = (2, 5)
    deltas: tuple[float, ...] = (0.5, 0.3)
    ratios: tuple[float, ...] = (1.0, 10.0)
    sigmas: tuple[float, ...] = (0.2, 30.0)
    families: tuple[Family, ...] = (
        "quadratic", "cosh-y", "cosh-x", "cosine", "log-cosh", "quadratics", "exponentials",
    )  # fmt: skip
    orders: tuple[Order, ...] = ("reshuffle", "replace", "once")
    oracles: tuple[Oracle, ...] = ("two-sided", "exact")
    rules: tuple[Rule, ...] = ("two", "one")
    every: bool = False
    epochs: tuple[int, ...] = ()
    mu: float | None = None
    distribution: Distribution = "fitting"
    instances: tuple[Instance, ...] = ("small",)
    fit_eps: tuple[float, ...] = (0.4, 0.3, 0.2, 0.14)
    fit_ns: tuple[int, ...] = (2, 4, 8, 16)
    fit_dims: tuple[int, ...] = (5, 10, 20)
    fit_deltas: tuple[float, ...] = (0.5, 0.2, 0.05)
    buy_ratios: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0, 10000.0)
    buy_dims: tuple[int, ...] = (10,)
    shuffle_ns: tuple[int, ...] = (2, 8, 32)
    shuffle_scales: tuple[float, ...] = (1.0, 0.3, 0.1)
    shuffle_dims: tuple[int, ...] = (1, 3, 10, 100)
    shuffle_qs: tuple[int, ...] = (4, 16)
    replicas: int = 100
    longest: int = 14_000
    seed: int = 0

    @cached_property
    def _places(self) -> dict[str, int]:
        return {point["setting"]: n for n, point in enumerate(self.points())}

    def place(self, row: Row) -> int:
        """The number of the setting."""
        return self._places.get(row["setting"], -1)

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of whole settings stand: of those beside no loss."""
        from smoothlab.records import whole

        return whole(rows, self.place)

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows of each setting that is not done, in the order of `parts`."""
        from tqdm import tqdm

        from smoothlab.experiments import grid

        self.check()
        behind = {row["setting"] for row in done}
        points = [point for point in self.points() if point["setting"] not in behind]
        progress = tqdm(total=len(points), desc="settings", unit="setting", disable=not sys.stderr.isatty())
        setting = None
        for row in grid.rows(points, self.measured):
            progress.update(row["setting"] != setting)
            setting = row["setting"]
            yield row
        progress.close()

    def points(self) -> list[Row]:
        """What is measured."""
        each = {
            "theorem": self._theorem, "exponents": self._exponents, "counterexample": self._counterexample,
            "buys": self._buys, "reshuffling": self._reshuffling,
        }  # fmt: skip
        found = []
        for part in self.parts:
            for one in each[part]():
                told = "/".join(f"{key}={_short(value)}" for key, value in one.items() if key != "values")
                found.append({"part": part, "setting": f"{part}/{told}", **one})
        return found

    def measured(self, point: Row) -> list[Row]:
        """The rows of one setting."""
        from smoothlab.experiments.rates import comparisons, curved, fits, theorem

        how = (self.replicas, self.longest, self.seed)
        if point["part"] == "exponents" and point["series"] in curved.SERIES:
            return curved.needed(point["series"]) if point["axis"] is None else curved.measured(point, *how)
        if point["part"] == "theorem":
            return theorem.measured(point, *how, self.distribution, self.mu)
        if point["part"] == "exponents":
            if point["axis"] is None:
                series = point["series"]
                return fits.conditions() if series == "conditions" else fits.needed(series)
            return fits.measured(point, *how)
        if point["part"] == "counterexample":
            if point["instance"] == "any":
                return theorem.failing(point)
            return theorem.counterexample(point, self.seed)
        return (comparisons.buys if point["part"] == "buys" else comparisons.reshuffling)(point, *how)

    def _theorem(self) -> list[Row]:
        values = dict(zip(STAR, (self.eps, self.ns, self.dims, self.deltas, self.ratios, self.sigmas, self.families,
                                 self.orders, self.oracles, self.rules, (0, *self.epochs)), strict=True))  # fmt: skip
        if self.every:
            return [dict(zip(STAR, one, strict=True)) for one in product(*values.values())]
        base = {key: several[0] for key, several in values.items()}
        return [base, *({**base, key: one} for key, several in values.items() for one in several[1:])]

    def _exponents(self) -> list[Row]:
        points: list[Row] = [{"series": k, "axis": None} for k in ("conditions", "zo", "fo-reshuffle", "fo-replace")]
        axes = {"eps": self.fit_eps, "n": self.fit_ns, "d": self.fit_dims, "delta": self.fit_deltas}
        for series, several in (("zo", axes), ("fo-reshuffle", ("eps", "n")), ("fo-replace", ("eps",))):
            points += [{"series": series, "axis": axis, "values": list(axes[axis])} for axis in several]
        points += [{"series": k, "axis": None} for k in ("zo-quadratics", "fo-quadratics")]
        for series in ("zo-quadratics", "zo-log-cosh", "zo-exponentials"):
            points.append({"series": series, "axis": "eps", "values": list(self.fit_eps)})
        return points

    def _counterexample(self) -> list[Row]:
        named: list[Row] = [{"instance": one, "n": 2, "pathwise": one in self.instances}
                            for one in ("small", "large", "long")]  # fmt: skip
        return named + [{"instance": "any", "n": n, "pathwise": False} for n in (2, 8, 32)]

    def _buys(self) -> list[Row]:
        oracles: list[Row] = [{"oracle": "exact", "d": 1}, *({"oracle": "two-sided", "d": d} for d in self.buy_dims)]
        return [{**one, "sigma": s, "ratio": r} for one in oracles for s in (0.0, 0.5) for r in self.buy_ratios]

    def _reshuffling(self) -> list[Row]:
        base: Row = {"axis": "rate", "oracle": "exact", "d": 10, "n": SHUFFLED, "q": 1, "sigma": 1.0,
                     "scale": SHUFFLE_SCALE, "start": 0.0, "lengths": 3}  # fmt: skip
        zo = {**base, "oracle": "two-sided"}
        return [
            *({**base, "n": n, "scale": s} for n in self.shuffle_ns for s in self.shuffle_scales),
            *({**base, "axis": "noise", "sigma": s, "start": 1.0, "lengths": 1} for s in (0.03, 0.1, 0.3, 1.0)),
            *({**zo, "axis": "d", "d": d} for d in self.shuffle_dims),
            *({**zo, "axis": "q", "q": q} for q in self.shuffle_qs),
        ]

    def check(self) -> None:
        """Refuse values out of range, names that are none of the choices, and Gaussian steps without a finite mean.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        for field, value in asdict(self).items():
            option, values = "--" + field.replace("_", "-"), value if isinstance(value, tuple) else (value,)
            if not values and field not in ("epochs", "instances"):
                raise BadInput(f"{option} names nothing: give at least one, or leave the option out")
            if len(set(values)) < len(values):
                raise BadInput(f"{option} {', '.join(map(str, values))} names one twice: name each once")
            for one in values:
                if field in CHOICES and one not in CHOICES[field]:
                    raise BadInput(f"{option} {one} is unknown: use some of {', '.join(CHOICES[field])}")
                if field in RANGES and one is not None and not RANGES[field][0] <= one <= RANGES[field][1]:
                    least, most = RANGES[field]
                    raise BadInput(f"{option} {one}: use a number from {least:g} to {most:.10g}")
        if "theorem" not in self.parts:
            return
        zeroth = {"two-sided", "one-sided"} & set(self.oracles)
        steep = [one for one in self.families if one in ("cosh-x", "exponentials")]
        if self.distribution == "gaussian" and zeroth and steep:
            raise BadInput(
                f"--distribution gaussian with --families {steep[0]}: it grows exponentially, and after one step with "
                "Gaussian directions E f is infinite; use --distribution sphere, or cosh-y"
            )

    def plan(self) -> str:
        """What a run would measure and cost."""
        self.check()
        points = self.points()
        steps = len(points) * min(self.longest, 200_000) * 0.55 + 8e5 * ("large" in self.instances)
        minutes = max(steps * (6e-5 + self.replicas * 2e-7) / 60, 0.1)
        counts = Counter(point["part"] for point in points)
        told = [f"  {part:15s} {count:4d} settings" for part, count in counts.items()]
        exact = dict.fromkeys(point["instance"] for point in points if not point.get("pathwise", True))
        if exact:
            told[list(counts).index("counterexample")] += f", by exact recursion alone: {', '.join(exact)}"
        return "\n".join([
            f"The rates of Theorem 3.4, {len(points)} settings, {self.replicas} replicas each", *told,
            f"  runs of more than {self.longest:,d} steps nT are left out, which their rows say (--longest)",
            f"  about {minutes:.1f} minutes, one process",
        ])  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
