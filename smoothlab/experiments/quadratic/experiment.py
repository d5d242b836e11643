"""Example 2.3, run with Algorithm 1 and held against closed forms: one learning rate or two, exact or zeroth-order."""

import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from smoothlab.errors import BadInput

if TYPE_CHECKING:
    from smoothlab.algorithm1.replicas import Result

Row = dict[str, Any]
Part = Literal["rates", "noise", "hybrid"]
Distribution = Literal["gaussian", "sphere", "rademacher"]
PARTS: tuple[Part, ...] = get_args(Part)
CHOICES: dict[str, tuple[str, ...]] = {"parts": PARTS, "distributions": get_args(Distribution)}
RANGES: dict[str, tuple[float, float]] = {
    "ratios": (1, 10**6), "hybrid_ratios": (1, 10**6), "dims": (1, 10**4), "hybrid_dims": (2, 10**4),
    "scales": (1e-3, 10), "eps": (1e-12, 0.5), "replicas": (30, 10**6), "steps": (10, 10**5), "longest": (10, 10**7),
    "seed": (0, 2**32 - 1),
}  # fmt: skip
"""Least and greatest value of numbers, or of each of several."""
POINTS = 2000  # of one run that are looked at
ROUNDING = 1e-12  # of a factor
NEAR = 3.0  # factor of the level within which intervals of the mean may hold it
CARRIED = 5.0  # relative variance of ||z||^2 up to which a few hundred runs show its mean


@dataclass(frozen=True)
class QuadraticExample:
    """Example 2.3, f(x, y) = a ||x||^2 + b ||y||^2 with b = 1: where one rate and two rates converge, and how fast.

    The rates are 1/(2a) or 1/(2b) for both blocks, the best single one 1/(a + b), or 1/(2a) and 1/(2b).

    Attributes:
        parts: rates: exact gradients, factor a step and steps to eps against a/b; noise: x zeroth-order, mean square
            factor and largest stable rate against d; hybrid: steps to eps of one best rate and of two, x zeroth-order
            and y exact.
        ratios: a/b of rates.
        hybrid_ratios: a/b of hybrid.
        dims: dimensions d of x in noise.
        hybrid_dims: dimensions d of x in hybrid.
        distributions: distributions of the directions in noise.
        scales: rates of noise, in the largest one that is stable in mean square, 2/m over the curvature.
        eps: relative distance from the minimum that counts as there.
        replicas: replicas of noise and hybrid.
        steps: steps of noise.
        longest: a run of more steps than that, ten times as many with exact gradients, is left out; its row says so.
        seed: seed of the directions.
    """

    name: ClassVar[str] = "quadratic"
    unit: ClassVar[str] = "setting"
    device: ClassVar[str] = "cpu"  # for the header: seeds are bound to the generator of one kind of CPU
    parts: tuple[Part, ...] = PARTS
    ratios: tuple[float, ...] = (1.0, 1.2, 1.5, 1.8, 2.0, 2.2, 2.5, 3.0, 10.0, 100.0, 1000.0)
    hybrid_ratios: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    dims: tuple[int, ...] = (1, 3, 10, 100, 1000)
    hybrid_dims: tuple[int, ...] = (10, 100)
    distributions: tuple[Distribution, ...] = ("gaussian", "sphere")
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    eps: float = 1e-2
    replicas: int = 400
    steps: int = 50
    longest: int = 3000
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
        """What is measured: rates at each ratio, noise of each distribution in each dimension, hybrid of each pair."""
        each: dict[str, list[Row]] = {
            "rates": [{"ratio": r, "d": 1, "distribution": None} for r in self.ratios],
            "noise": [
                {"ratio": None, "d": d, "distribution": distribution}
                for distribution in self.distributions
                for d in self.dims
            ],
            "hybrid": [
                {"ratio": r, "d": d, "distribution": "gaussian"} for d in self.hybrid_dims for r in self.hybrid_ratios
            ],
        }
        found = []
        for part in self.parts:
            for one in each[part]:
                told = "/".join(
                    f"{value:g}" if isinstance(value, float) else str(value) for value in one.values() if value
                )
                found.append({"part": part, "setting": f"{part}/{told}", **one})
        return found

    def measured(self, point: Row) -> list[Row]:
        """The rows of one setting."""
        if point["part"] == "rates":
            return self._rates(point["ratio"])
        if point["part"] == "noise":
            return self._noise(point)
        return self._hybrid(point)

    def _rates(self, a: float) -> list[Row]:
        """Exact gradients in one dimension each, from (1, 1): what |x|, |y| and the larger are multiplied by a step."""
        from smoothlab.experiments.quadratic import closed_forms as forms

        rows = []
        for rule in forms.RULES:
            eta_x, eta_y = forms.rates(rule, a, 1.0)
            both = forms.factors(a, 1.0, eta_x, eta_y)
            told = {"rule": rule, "eta_x": eta_x, "eta_y": eta_y}
            square_x, square_y, _ = self._run(a, 1, eta_x, eta_y, 8, oracle="exact")
            seen = [float(square[1, 0] / square[0, 0]) ** 0.5 for square in (square_x, square_y)]
            slower = max(float((square[8, 0] / square[0, 0]) ** (1 / 16)) for square in (square_x, square_y))
            for what, one, closed in (("factor x", seen[0], both[0]), ("factor y", seen[1], both[1]),
                                      ("factor", slower, max(both))):  # fmt: skip
                printed = ("diverges" if a > 1 else None) if (rule, what) == ("large", "factor x") else None
                rows.append({**told, "quantity": what, **_exactly(one, closed), "found": _verdict(one),
                             "printed": printed})  # fmt: skip
            rows.append(
                {**told, "quantity": "steps", **self._counted(a, 1, eta_x, eta_y, (both[0] ** 2, both[1] ** 2))}
            )
        return rows

    def _noise(self, point: Row) -> list[Row]:
        """Quotients ||x+||^2 / ||x||^2 of zeroth-order steps at several rates; curvature 2, so s = 2 eta_x."""
        import numpy as np

        from smoothlab.experiments.quadratic import closed_forms as forms
        from smoothlab.stats import samples

        d, distribution = point["d"], point["distribution"]
        m, rows = forms.moment(d, distribution), []
        for scale in self.scales:
            s = 2 * scale / m
            square, _, _ = self._run(
                1.0, d, s / 2, 0.0, self.steps, distribution=distribution, seed=point["setting"] + f"/{scale:g}"
            )
            quotients = square[1:][square[:-1] > 0] / square[:-1][square[:-1] > 0]  # in one dimension signs reach 0
            told = {"rule": None, "eta_x": s / 2, "eta_y": 0.0, "scale": scale}
            mean = _widened(samples.mean_square(quotients))  # not negative, and far off at times
            reference = forms.mean_square(s, m)
            flag = samples.rare_draws(quotients)
            rows.append({**told, "quantity": "mean square factor", **_with(mean, reference), "flag": flag})
            if distribution == "gaussian":
                with np.errstate(divide="ignore"):
                    log = _widened(samples.mean(np.log(quotients)))
                rows.append({**told, "quantity": "typical log factor", **_with(log, forms.typical(s, d))})
            # E <u, v>^2 = 1 is known: the mean of the quotients tells E <u, v>^2 ||v||^2 = m, and 2/m is the limit
            ends = [2 * s * s / (value - 1 + 2 * s) if value - 1 + 2 * s > 0 else math.inf for value in mean]
            limit: Row = {"measured": ends[0], "low": ends[2], "high": ends[1], "reference": 2 / m, "flag": flag}
            rows.append({**told, "quantity": "largest stable rate", **limit})
        if distribution == "gaussian":
            limit = {"measured": None, "low": None, "high": None, "reference": forms.typical_limit(d)}
            rows.append({"rule": None, "eta_x": None, "eta_y": None, "quantity": "largest typical rate", **limit})
        return rows

    def _hybrid(self, point: Row) -> list[Row]:
        """Steps until the mean of ||z||^2 is eps^2 of what it was: x zeroth-order in d dimensions, y exact."""
        from smoothlab.experiments.quadratic import closed_forms as forms

        a, d = point["ratio"], point["d"]
        m, rows = forms.moment(d, "gaussian"), []
        single = forms.best_single(a, 1.0, m)
        for rule, eta_x, eta_y in (("best", single, single), ("two", 1 / (2 * a * m), 1 / 2)):
            squares = (forms.mean_square(2 * a * eta_x, m), (1 - 2 * eta_y) ** 2)
            found = self._counted(
                a, d, eta_x, eta_y, squares, distribution="gaussian", seed=f"{point['setting']}/{rule}"
            )
            rows.append({"rule": rule, "eta_x": eta_x, "eta_y": eta_y, "quantity": "steps", **found})
        return rows

    def _counted(
        self, a: float, d: int, eta_x: float, eta_y: float, squares: tuple[float, float], **options: Any
    ) -> Row:
        """Steps to eps, measured and from the factors of E||x||^2 and E||y||^2.

        Of a run at least one and a half times as long, and its interval is that between the first look at which the
        mean's lower end, and the last at which its upper end, is on the other side.
        """
        import numpy as np

        from smoothlab.experiments.quadratic import closed_forms as forms
        from smoothlab.stats import samples

        expected = forms.steps(*squares, self.eps)
        exact = not options
        row: Row = {"measured": None, "low": None, "high": None, "reference": expected, "note": None, "flag": None}
        most = 10 * self.longest if exact else self.longest
        if expected > most:
            return row | {"note": "diverges" if math.isinf(expected) else f"more than {most} steps: not run"}
        if not exact:
            share = squares[0] ** expected / (2 * self.eps**2)  # of x in ||z||^2; y is the same in every run
            if share**2 * forms.spread(2 * a * eta_x, d, expected) > CARRIED:
                return row | {"note": "the mean is carried by rare runs: not run"}
        length = math.ceil(1.5 * expected) + 5
        stride = max(1, length // POINTS)
        square_x, square_y, epochs = self._run(
            a, d, eta_x, eta_y, length, stride=stride, oracle="exact" if exact else "two-sided", **options
        )
        each = (square_x + square_y) / 2
        level = self.eps**2
        if exact:
            count = float(epochs[int(np.argmax(each[:, 0] <= level))])
            return row | {"measured": count, "low": count, "high": count}
        values = each.mean(1)
        lows, highs = values.copy(), values.copy()
        for i in np.flatnonzero(np.abs(np.log(values / level)) < math.log(NEAR)):
            _, lows[i], highs[i] = samples.mean_square(each[i])
            row["flag"] = row["flag"] or samples.rare_draws(each[i])
        found = [float(epochs[np.argmax(ends <= level)]) if (ends <= level).any() else None for ends in (values, lows)]
        above = np.flatnonzero(highs > level)[-1]
        last = float(epochs[above + 1]) if above + 1 < len(epochs) else None
        low = None if found[1] is None else max(found[1] - stride + 1, 0.0)
        return row | {"measured": found[0], "low": low, "high": last}

    def _run(
        self,
        a: float,
        d: int,
        eta_x: float,
        eta_y: float,
        steps: int,
        *,
        stride: int = 1,
        distribution: str = "gaussian",
        oracle: str = "two-sided",
        seed: str = "",
    ) -> tuple[Any, Any, Any]:
        """||x||^2 and ||y||^2 [looks, R] from ||x|| = ||y|| = 1, and the steps looked at; there is one summand."""
        import numpy as np
        import torch

        from smoothlab.algorithm1.engine import Algorithm1
        from smoothlab.objectives import Quadratic, objective

        f = objective(Quadratic(2 * a), Quadratic(2.0), d_x=d, d_y=1)
        keep = tuple(range(0, steps + 1, stride))
        how = Algorithm1(eta_x, eta_y, steps, oracle=oracle, distribution=distribution, keep=keep)  # type: ignore[arg-type]
        z0 = torch.ones(d + 1, dtype=torch.float64)
        z0[:d] /= d**0.5
        replicas = 1 if oracle == "exact" else self.replicas
        found: Result = how.run(f, z0, replicas, seed=(self.seed, zlib.crc32(seed.encode())))
        return found.kept_x / (2 * a) ** 2, found.kept_y / 4, np.array(keep)

    def check(self) -> None:
        """Refuse values out of range, and names that are none of the choices.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        for field, value in asdict(self).items():
            option, values = "--" + field.replace("_", "-"), value if isinstance(value, tuple) else (value,)
            if not values:
                raise BadInput(f"{option} names nothing: give at least one, or leave the option out")
            if len(set(values)) < len(values):
                raise BadInput(f"{option} {_listed(values)} names one twice: name each once")
            for one in values:
                if field in CHOICES and one not in CHOICES[field]:
                    raise BadInput(f"{option} {one} is unknown: use some of {_listed(CHOICES[field])}")
                if field in RANGES and not RANGES[field][0] <= one <= RANGES[field][1]:
                    least, most = RANGES[field]
                    raise BadInput(f"{option} {one}: use a number from {least:g} to {most:.10g}")

    def plan(self) -> str:
        """What a run would measure and cost."""
        from smoothlab.experiments.quadratic import closed_forms as forms

        self.check()
        numbers = 0.0
        for point in self.points():
            m = forms.moment(point["d"], "gaussian")
            if point["part"] == "noise":
                numbers += self.steps * self.replicas * len(self.scales) * (point["d"] + 500)
            elif point["part"] == "hybrid":
                counts = [math.log(self.eps) * -2 * k for k in (m, m * point["ratio"])]
                numbers += sum(min(count, self.longest) for count in counts) * self.replicas * (point["d"] + 500)
        minutes = max(numbers * 2e-9 / 60, 0.1)
        return f"Example 2.3 by Algorithm 1, {len(self.points())} settings\n  about {minutes:.1f} minutes"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _exactly(value: float, closed: float) -> Row:
    room = ROUNDING * max(1.0, value)
    return {"measured": value, "low": value - room, "high": value + room, "reference": closed}


def _widened(found: Sequence[float]) -> Sequence[float]:
    """By rounding: on the sphere and in one dimension some quotients are the same in every run."""
    return found[0], found[1] - ROUNDING, found[2] + ROUNDING


def _with(found: Sequence[float], reference: float) -> Row:
    return {"measured": found[0], "low": found[1], "high": found[2], "reference": reference}


def _verdict(factor: float) -> str:
    """What a factor measured to rounding says."""
    return "neither" if abs(factor - 1) < ROUNDING else "converges" if factor < 1 else "diverges"
