"""Options of `smoothlab estimators`, and what a run with them measures."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from tyro.conf import arg

from smoothlab.errors import BadInput
from smoothlab.experiments.options import DistributionNames, option
from smoothlab.experiments.settings import Row, SettingsExperiment, listed, point_of
from smoothlab.llm.peft_methods import MeasuredPeftName
from smoothlab.llm.tasks import TaskName
from smoothlab.zeroth.names import DISTRIBUTIONS

VARIANTS: dict[str, dict[str, Any]] = {
    "one-sided": {"sides": 1}, "plain4": {"q": 4}, "orthogonal4": {"q": 4, "average": "orthogonal"},
}  # fmt: skip
"""Estimators of model-variance that are no two-sided ones with the distribution of their name, as `ZerothOrder`'s."""
Part = Literal["bias", "variance", "averages", "curve", "model-curve", "model-variance", "model-cost"]
Function = Literal["cubic", "quartic", "cosh"]
Precision = Literal["float64", "float32", "bfloat16"]
Kinds = Annotated[tuple[str, ...], arg(metavar=f"{'|'.join((*DISTRIBUTIONS, *VARIANTS))} ...")]
"""Distributions of two-sided estimates, and variants of Gaussian ones."""
# Coordinate directions are left out on models: one of millions of weights moves, so that no affordable sample covers.
ON_MODELS = tuple(name for name in DISTRIBUTIONS if name != "coordinate")
SYNTHETIC: tuple[Part, ...] = ("bias", "variance", "averages", "curve")
ON_MODEL: tuple[Part, ...] = ("model-curve", "model-variance", "model-cost")
BLOCKS: tuple[str, ...] = ("base", "peft", "head")  # of a model, in their order
AVERAGES = ("plain", "antithetic", "orthogonal")
COSTS = (*ON_MODELS, "kept")
STEPS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MOST_ENTRIES = 2 * 10**8  # of the directions that are in memory together; about four times as much is used


@dataclass(frozen=True)
class Config(SettingsExperiment):
    """Options of the estimators experiment.

    Attributes:
        parts: parts of the experiment to run. On synthetic functions with known derivatives: bias (against mu),
            variance (against the dimension d), averages (variance against the number q of directions), curve (error of
            a directional derivative against mu in each precision). On blocks of a model: model-curve and
            model-variance, the same, and model-cost (time of a pass over the weights, in forward passes).
        functions: synthetic functions in part bias.
        distributions: distributions of the directions in parts bias and variance; "sparse(0.25)" sets the share of
            entries that move, "lowrank(2)" the rank.
        draws: number of directions of each estimate in parts bias and variance; part averages takes an eighth of it.
        dim: dimension d of the functions in part bias.
        dims: dimensions d of the functions in part variance.
        qs: numbers of directions q that an estimate averages over in part averages.
        mu: perturbation mu in parts variance and averages.
        mus: perturbations mu in part bias, ascending.
        curve_mus: perturbations mu in part curve, ascending.
        precisions: number formats in parts curve and model-curve.
        curve_draws: number of directions in part curve.
        model: model of the parts on a model: a hub name, a local directory, a GGUF file, or micro (in the package).
        data: data of the minibatch: name of a task, or a JSON Lines file with the fields sentence and label.
        data_dir: folder with the files of the named task; without it they are read from the hub.
        peft: PEFT method to add to the model, whose block is measured too, or none.
        measure: blocks in part model-curve: base (the model's own weights), peft (the PEFT module) and head (the
            classification head), by default all; model-variance and model-cost take the first one named.
        batch: number of sentences in the minibatch.
        kinds: estimators in part model-variance: the name of a distribution takes two-sided estimates with it;
            one-sided takes one-sided Gaussian estimates; plain4 and orthogonal4 average over four Gaussian directions,
            independent or orthogonal.
        model_mu: perturbation mu in parts model-variance and model-cost.
        model_mus: perturbations mu in part model-curve, ascending.
        model_draws: number of estimates of each kind in part model-variance (half as many where q is 4).
        model_curve_draws: number of directions in part model-curve; with fewer than 24, intervals may miss errors of
            heavy tails.
        rounds: number of repetitions of each timing in part model-cost.
        device: device of the model: cpu, cuda, or one of several, such as cuda:1.
        seed: seed of functions, minibatch, classification head, PEFT module and directions.
    """

    name: ClassVar[str] = "estimators"
    parts: tuple[Part, ...] = SYNTHETIC + ON_MODEL
    functions: tuple[Function, ...] = ("cubic", "quartic", "cosh")
    distributions: DistributionNames = (
        "gaussian", "sphere", "rademacher", "coordinate", "sparse(0.25)", "lowrank(2)",
    )  # fmt: skip
    draws: int = 20_000
    dim: int = 9
    dims: tuple[int, ...] = (4, 16, 64, 256)
    qs: tuple[int, ...] = (1, 2, 4, 8, 16)
    mu: float = 0.1
    mus: tuple[float, ...] = STEPS
    precisions: tuple[Precision, ...] = ("float64", "float32", "bfloat16")
    curve_mus: tuple[float, ...] = (1e-9, 1e-8, 1e-7, *STEPS)
    curve_draws: int = 2000
    model: str = "micro"
    data: TaskName = "builtin"
    data_dir: Path | None = None
    peft: MeasuredPeftName = "lora"
    measure: tuple[str, ...] = ()
    batch: int = 8
    kinds: Kinds = (*ON_MODELS, *VARIANTS)
    model_mu: float = 1e-3
    model_mus: tuple[float, ...] = STEPS[2:12]
    model_draws: int = 100
    model_curve_draws: int = 24
    rounds: int = 15
    device: str = "cpu"  # type: ignore[misc]
    seed: int = 0

    choices = {"parts": SYNTHETIC + ON_MODEL, "functions": get_args(Function), "precisions": get_args(Precision)}
    # Third derivatives grow with dim^3, and cosh overflows single precision beyond mu = 10.
    ranges = {
        "draws": (100, 10**7), "curve_draws": (6, 10**6), "model_draws": (6, 10**6), "model_curve_draws": (6, 10**6),
        "rounds": (6, 10**4), "batch": (1, 10**9), "seed": (0, 2**32 - 1), "dim": (2, 40), "dims": (2, 1024),
        "qs": (1, 64), "mu": (1e-12, 10), "mus": (1e-12, 10), "curve_mus": (1e-12, 10), "model_mu": (1e-12, 10),
        "model_mus": (1e-12, 10),
    }  # fmt: skip
    optional = ("measure",)

    def points(self) -> list[Row]:
        """List the settings, on functions before those on a model; each block of the model has its own."""
        cases: dict[str, Iterable[tuple[str, ...]]] = {
            "bias": product(self.functions, self.distributions), "variance": product(self.distributions),
            "averages": product(AVERAGES), "curve": product(self.precisions),
            "model-curve": product(self.measured_blocks(), self.precisions), "model-variance": product(self.kinds),
            "model-cost": product(COSTS),
        }  # fmt: skip
        points = []
        for part in sorted(self.parts, key=ON_MODEL.__contains__):
            for words in cases[part]:
                values = {}
                if part == "model-curve":
                    values["block"] = words[0]
                points.append(point_of(part, words, values))
        return points

    def measured_blocks(self) -> tuple[str, ...]:
        """Return the blocks of part model-curve: those of --measure, or all that the model has."""
        if self.measure:
            return self.measure
        return tuple(name for name in BLOCKS if name != "peft" or self.peft != "none")

    def measures_model(self) -> bool:
        """Whether a part needs the model."""
        return not set(self.parts).isdisjoint(ON_MODEL)

    def check(self) -> None:
        """Refuse values out of range, names that are none of the choices, and a device that is not there.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        from smoothlab.llm.memory import check_device
        from smoothlab.zeroth.distributions import named

        super().check()
        for field in ("mus", "curve_mus", "model_mus"):
            steps = getattr(self, field)
            if list(steps) != sorted(steps) or len(steps) < 2:
                raise BadInput(f"{option(field)} {listed(steps)}: give two or more steps, ascending")
        for name in self.distributions:
            named(name, "--distributions")
        for name in set(self.kinds).difference(VARIANTS):
            named(name, "--kinds")
        entries = self.draws * max(*self.dims, self.dim, max(self.qs) * 64 // 8)
        if entries > MOST_ENTRIES:
            raise BadInput(
                f"--draws {self.draws} with --dims {listed(self.dims)} and --qs {listed(self.qs)} would hold "
                f"{entries:.1e} numbers at once: use at most {self.draws * MOST_ENTRIES // entries} draws"
            )
        check_device(self.device)
