"""Zeroth-order estimators against their closed forms: bias, variance, rounding and cost."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from smoothlab.errors import BadInput

if TYPE_CHECKING:
    from smoothlab.experiments.estimators.model_blocks import Measured

Row = dict[str, Any]
Part = Literal["bias", "variance", "averages", "curve", "model-curve", "model-variance", "model-cost"]
Function = Literal["cubic", "quartic", "cosh"]
Distribution = Literal["gaussian", "sphere", "rademacher", "coordinate", "sparse", "lowrank"]
Precision = Literal["float64", "float32", "bfloat16"]
Kind = Literal["gaussian", "sphere", "rademacher", "sparse", "lowrank", "one-sided", "plain4", "orthogonal4"]
SYNTHETIC: tuple[Part, ...] = ("bias", "variance", "averages", "curve")
ON_MODEL: tuple[Part, ...] = ("model-curve", "model-variance", "model-cost")
BLOCKS = ("base", "peft", "head")  # of a model, in their order
AVERAGES = ("plain", "antithetic", "orthogonal")
COSTS = ("gaussian", "kept", "rademacher", "sphere", "sparse", "lowrank")
STEPS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
RANGES: dict[str, tuple[float, float]] = {
    "draws": (100, 10**7), "curve_draws": (6, 10**6), "model_draws": (6, 10**6), "model_curve_draws": (6, 10**6),
    "rounds": (6, 10**4), "batch": (1, 10**9), "seed": (0, 2**32 - 1), "dim": (2, 40), "dims": (2, 1024),
    "qs": (1, 64), "mu": (1e-12, 10), "mus": (1e-12, 10), "curve_mus": (1e-12, 10), "model_mu": (1e-12, 10),
    "model_mus": (1e-12, 10),
}  # fmt: skip
"""Least and greatest value of numbers, or of each of several. Third derivatives grow with dim^3, and cosh overflows
single precision beyond mu = 10."""


MOST_ENTRIES = 2 * 10**8  # of the directions that are in memory together; about four times as much is used


@dataclass(frozen=True)
class Estimators:
    """Measure zeroth-order gradient estimators beside their closed forms: bias, variance, rounding and cost.

    Attributes:
        parts: what to measure. On functions whose derivatives are known: bias (against mu), variance (against d),
            averages (variance against q), curve (error of a directional derivative against mu in each precision). On
            blocks of a model: model-curve, model-variance, model-cost (seconds of a pass against a forward).
        functions: functions of the bias.
        distributions: distributions of directions of bias and variance: gaussian, sphere, rademacher, coordinate,
            sparse (a quarter of the entries), lowrank (rank 2).
        draws: directions of each bias and variance; an eighth of that for averages.
        dim: dimension d of the bias.
        dims: dimensions d of the variance.
        qs: numbers of directions q of averages.
        mu: step of variance and averages.
        mus: steps of the bias, ascending.
        curve_mus: steps of the curve, ascending.
        precisions: precisions of curve and model-curve.
        curve_draws: directions of the curve.
        model: hub name, local directory, or "micro" (in the package).
        data: task (sst2, builtin) or a JSON Lines file with the fields sentence and label.
        data_dir: folder with the task's files; without it a task is read from the hub.
        peft: PEFT method whose block is measured too, or "none".
        measure: blocks of the model-curve (base, peft, head), all by default; variance and cost take the first.
        batch: sentences in the minibatch.
        kinds: estimators of the model-variance.
        model_mu: step of the model's variance and cost.
        model_mus: steps of the model-curve, ascending.
        model_draws: estimates of each model-variance (half as many where q is 4).
        model_curve_draws: directions of the model-curve; below 24 intervals may miss errors of heavy tails.
        rounds: repetitions of each timing.
        device: "cpu" or "cuda", for the model.
        seed: seed of functions, minibatch, head, PEFT module and directions.
    """

    name: ClassVar[str] = "estimators"
    unit: ClassVar[str] = "setting"
    parts: tuple[Part, ...] = SYNTHETIC + ON_MODEL
    functions: tuple[Function, ...] = ("cubic", "quartic", "cosh")
    distributions: tuple[Distribution, ...] = ("gaussian", "sphere", "rademacher", "coordinate", "sparse", "lowrank")
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
    data: str = "builtin"
    data_dir: Path | None = None
    peft: str = "lora"
    measure: tuple[str, ...] = ()
    batch: int = 8
    kinds: tuple[Kind, ...] = get_args(Kind)
    model_mu: float = 1e-3
    model_mus: tuple[float, ...] = STEPS[2:12]
    model_draws: int = 100
    model_curve_draws: int = 24
    rounds: int = 15
    device: str = "cpu"
    seed: int = 0

    @cached_property
    def _places(self) -> dict[str, int]:
        settings = self.settings() + self.model_settings(self.measure or BLOCKS)
        return {setting: n for n, setting in enumerate(settings)}

    def place(self, row: Row) -> int:
        """The number of the setting."""
        return self._places.get(row["setting"], -1)

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of whole settings stand: of those beside no loss."""
        from smoothlab.records import whole

        return whole(rows, self.place)

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows of each setting that is not done, in the order of `parts`."""
        self.check()
        behind = {row["setting"] for row in done}
        model = self._model() if self._on_model() else None
        settings = self.settings() + (self.model_settings(model.names) if model else [])
        settings = [setting for setting in settings if setting not in behind]
        progress = _progress(len(settings))
        for setting in settings:
            progress.set_postfix_str(setting)
            yield from self._measured(setting, model)
            progress.update()
        progress.close()

    def settings(self) -> list[str]:
        """What is measured on synthetic functions, "part/what"."""
        found = []
        for part in self.parts:
            if part == "bias":
                found += [
                    f"bias/{function}/{distribution}"
                    for function in self.functions
                    for distribution in self.distributions
                ]
            elif part == "variance":
                found += [f"variance/{distribution}" for distribution in self.distributions]
            elif part == "averages":
                found += [f"averages/{average}" for average in AVERAGES]
            elif part == "curve":
                found += [f"curve/{precision}" for precision in self.precisions]
        return found

    def model_settings(self, blocks: Sequence[str]) -> list[str]:
        """What is measured on a model with these blocks."""
        found = []
        for part in self.parts:
            if part == "model-curve":
                found += [f"{part}/{block}/{precision}" for block in blocks for precision in self.precisions]
            elif part == "model-variance":
                found += [f"{part}/{kind}" for kind in self.kinds]
            elif part == "model-cost":
                found += [f"{part}/{kind}" for kind in COSTS]
        return found

    def _on_model(self) -> bool:
        return bool(set(self.parts) & set(ON_MODEL))

    def _model(self) -> "Measured":
        from smoothlab.experiments.estimators.model_blocks import Measured

        return Measured(self)

    def _measured(self, setting: str, model: "Measured | None") -> Iterator[Row]:
        part = setting.split("/")[0]
        if model is not None and part in ON_MODEL:
            from smoothlab.experiments.estimators import model_blocks

            of_model = {"model-curve": model_blocks.curve, "model-variance": model_blocks.variance,
                        "model-cost": model_blocks.cost}  # fmt: skip
            return of_model[part](model, setting)
        from smoothlab.experiments.estimators import bias_variance

        known = {"bias": bias_variance.bias, "variance": bias_variance.variance, "averages": bias_variance.averages,
                 "curve": bias_variance.curve}  # fmt: skip
        return known[part](self, setting)

    def check(self) -> None:
        """Refuse values out of range, names that are none of the choices, and a device that is not there.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        from smoothlab.llm.memory import check_device

        for field, kind in get_type_hints(type(self)).items():
            if kind == ClassVar[str]:
                continue
            option, value = "--" + field.replace("_", "-"), getattr(self, field)
            values = value if isinstance(value, tuple) else (value,)
            if isinstance(value, tuple) and field != "measure" and not value:
                raise BadInput(f"{option} names nothing: give at least one, or leave the option out")
            if len(set(values)) < len(values):
                raise BadInput(f"{option} {_listed(values)} names one twice: name each once")
            if isinstance(value, tuple) and get_origin(choices := get_args(kind)[0]) is Literal:
                for one in values:
                    if one not in get_args(choices):
                        raise BadInput(f"{option} {one} is unknown: use some of {_listed(get_args(choices))}")
            if field in RANGES:
                _check_range(option, values, *RANGES[field])
            if field.endswith("mus") and (list(values) != sorted(values) or len(values) < 2):
                raise BadInput(f"{option} {_listed(values)}: give two or more steps, ascending")
        entries = self.draws * max(*self.dims, self.dim, max(self.qs) * 64 // 8)
        if entries > MOST_ENTRIES:
            raise BadInput(
                f"--draws {self.draws} with --dims {_listed(self.dims)} and --qs {_listed(self.qs)} would hold "
                f"{entries:.1e} numbers at once: use at most {self.draws * MOST_ENTRIES // entries} draws"
            )
        check_device(self.device)

    def plan(self) -> str:
        """What a run would measure and cost, from timed directions and forwards."""
        from smoothlab.experiments.estimators.synthetic import Ridges, directions

        self.check()
        lines, seconds = ["zeroth-order estimators, measured beside their closed forms"], 0.0
        if settings := self.settings():
            import torch

            from smoothlab.zeroth.distributions import Gaussian

            block = Ridges.random("cubic", self.dim, 0).block(torch.float64)
            # drawing, and half as long again for what is done with it
            each = 1.5 * _least_seconds(lambda: directions(Gaussian(), block, (0,), 100)) / 100
            drawn = {
                "bias": len(self.functions)
                * (len(self.distributions) + ("gaussian" in self.distributions))
                * self.draws,
                "variance": len(self.distributions) * len(self.dims) * self.draws,
                "averages": len(AVERAGES) * self.draws // 8 * max(self.qs),
                "curve": len(self.precisions) * self.curve_draws,
            }
            directions_ = sum(count for part, count in drawn.items() if part in self.parts)
            seconds += directions_ * each
            lines.append(f"  synthetic: {len(settings)} settings, {directions_:,} directions")
        if self._on_model():
            from smoothlab.zeroth.estimators import evaluate

            model = self._model()
            first = model.blocks[model.names[0]]
            forward = _least_seconds(lambda: evaluate(model.loss, first))
            curve = self.model_curve_draws * (2 * len(self.model_mus) + 5) * len(model.names) * len(self.precisions)
            kinds = sum(4 if kind.endswith("4") else 2 for kind in self.kinds) * self.model_draws
            cost = len(COSTS) * self.rounds * 5
            passes = {"model-curve": curve, "model-variance": kinds, "model-cost": cost}
            forwards = sum(count for part, count in passes.items() if part in self.parts)
            lines += [f"  block {name:12s} {model.blocks[name].dim:12,d} parameters" for name in model.names]
            count = len(self.model_settings(model.names))
            lines.append(f"  {self.model} on {self.data}, {self.peft}: {count} settings, about {forwards:,} forwards "
                         f"of {forward:.3f} s and as many moves of a block")  # fmt: skip
            seconds += 2 * forwards * forward
        return "\n".join([*lines, f"  about {max(seconds / 60, 0.1):.1f} minutes"])


def _least_seconds(work: Callable[[], Any]) -> float:
    """The least of five, after one that warms up: what the work takes when nothing else runs."""

    def once() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    once()
    return min(once() for _ in range(5))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _check_range(option: str, values: Sequence[float], least: float, most: float) -> None:
    for value in values:
        if not math.isfinite(value):
            raise BadInput(f"{option} {value}: use a finite number from {least:g} to {most:.10g}")
        if value < least:
            raise BadInput(f"{option} {value} is too small: use at least {least:g}")
        if value > most:
            raise BadInput(f"{option} {value} is too large: use at most {most:.10g}")


def _progress(settings: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=settings, desc="settings", unit="setting", disable=not sys.stderr.isatty())
