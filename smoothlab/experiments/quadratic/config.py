"""The options of `smoothlab quadratic`, and the settings that they stand for."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from smoothlab.experiments.options import DistributionNames, check_distribution
from smoothlab.experiments.settings import Row, SettingsExperiment, as_text, point_of

Part = Literal["rates", "noise", "hybrid", "map"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class QuadraticConfig(SettingsExperiment):
    """What `smoothlab quadratic` measures.

    Attributes:
        parts: parts of the experiment to run. rates: exact gradients; by what factor a step multiplies the distance
            from the minimum, and how many steps lead to --eps, against a/b. noise: zeroth-order gradients of x; by what
            factor a step multiplies the mean square of x, and the largest stable learning rate, against the dimension d
            of x. hybrid: x zeroth-order and y exact; how many steps lead to --eps with the best single learning rate
            and with the best two. map: x zeroth-order and y exact, at 144 pairs of learning rates; which share of runs
            stands above its start, and the spectral radius that says whether the mean square grows.
        ratios: curvature ratios a/b in part rates.
        hybrid_ratios: curvature ratios a/b in part hybrid.
        dims: dimensions d of x in part noise.
        hybrid_dims: dimensions d of x in part hybrid.
        map_dims: dimensions d of x in part map, where the curvature ratio a/b is 3.
        couplings: strengths c of a coupling c (u_x'x - u_y'y)^2/2 between x and y in part map; 0 is Example 2.3 itself.
        distributions: distributions of the random directions in part noise; "sparse(0.25)" sets the share of entries
            that move, "lowrank(2)" the rank, for which x is the matrix nearest a square.
        scales: learning rates in part noise, as multiples of the largest learning rate at which the mean square of x
            does not grow, 2/(m curvature) with m = E ||ghat||^2 / ||g||^2; above 1 it diverges.
        eps: distance from the minimum at which a run has arrived, as a fraction of the distance at its start.
        replicas: number of independent runs of each setting in parts noise, hybrid and map.
        steps: number of steps of each run in parts noise and map.
        max_steps: largest number of steps of a run with zeroth-order gradients; runs with exact gradients may take ten
            times as many. A run that needs more is left out, and its row says so.
        seed: seed of the random directions.
    """

    name: ClassVar[str] = "quadratic"
    parts: tuple[Part, ...] = PARTS
    ratios: tuple[float, ...] = (1.0, 1.2, 1.5, 1.8, 2.0, 2.2, 2.5, 3.0, 10.0, 100.0, 1000.0)
    hybrid_ratios: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    dims: tuple[int, ...] = (1, 3, 10, 100, 1000)
    hybrid_dims: tuple[int, ...] = (10, 100)
    map_dims: tuple[int, ...] = (10,)
    couplings: tuple[float, ...] = (0.0, 8.0)
    distributions: DistributionNames = ("gaussian", "sphere")
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    eps: float = 1e-2
    replicas: int = 400
    steps: int = 50
    max_steps: int = 3000
    seed: int = 0

    choices = {"parts": PARTS}
    ranges = {
        "ratios": (1, 10**6), "hybrid_ratios": (1, 10**6), "dims": (1, 10**4), "hybrid_dims": (2, 10**4),
        "map_dims": (1, 39), "couplings": (0, 10**6),
        "scales": (1e-3, 10), "eps": (1e-12, 0.5), "replicas": (30, 10**6), "steps": (10, 10**5),
        "max_steps": (10, 10**7), "seed": (0, 2**32 - 1),
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options out of range, and distributions without the closed form that part noise compares with.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        super().check()
        for name in self.distributions:
            check_distribution(name, "distributions")

    def points(self) -> list[Row]:
        """List the settings: rates at each ratio, noise of each distribution in each dimension, hybrid of each pair."""
        settings: dict[str, list[Row]] = {"rates": [], "noise": [], "hybrid": [], "map": []}
        for ratio in self.ratios:
            settings["rates"].append({"ratio": ratio, "d": 1, "distribution": None})
        for distribution in self.distributions:
            for d in self.dims:
                settings["noise"].append({"ratio": None, "d": d, "distribution": distribution})
        for d in self.hybrid_dims:
            for ratio in self.hybrid_ratios:
                settings["hybrid"].append({"ratio": ratio, "d": d, "distribution": "gaussian"})
        for d in self.map_dims:
            for coupling in self.couplings:
                settings["map"].append({"ratio": 3.0, "d": d, "distribution": "gaussian", "coupling": coupling})
        points = []
        for part in self.parts:
            for values in settings[part]:
                # values without their names, as the settings on record are called
                words = [as_text(value) for value in values.values() if value is not None]
                points.append(point_of(part, words, values))
        return points
