"""Zeroth-order estimators against their closed forms: bias, variance, rounding and cost."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smoothlab.experiments.estimators.config import AVERAGES, BLOCKS, COSTS, ON_MODEL, Config

if TYPE_CHECKING:
    from smoothlab.experiments.estimators.model_blocks import Measured

Row = dict[str, Any]


@dataclass(frozen=True)
class Estimators(Config):
    """Measure zeroth-order gradient estimators beside their closed forms: bias, variance, rounding and cost."""

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows of each setting that is not done, in the order of `parts`."""
        # Torch and scipy, which `--help` does without.
        from tqdm import tqdm

        from smoothlab.experiments.estimators import bias_variance, model_blocks

        self.check()
        finished = {row["setting"] for row in done}
        model = model_blocks.Measured(self) if self.measures_model() else None
        names = self.settings(model.names) if model else self.settings()
        progress = tqdm(
            [name for name in names if name not in finished],
            "settings",
            unit="setting",
            disable=not sys.stderr.isatty(),
        )
        for setting in progress:
            progress.set_postfix_str(setting)
            part = setting.partition("/")[0]
            if model is not None and part in ON_MODEL:
                yield from model_blocks.PARTS[part](model, setting)
            else:
                yield from bias_variance.PARTS[part](self, setting)

    def plan(self) -> str:
        """What a run would measure and cost, from timed directions and forwards."""
        from smoothlab.experiments.estimators.model_blocks import Measured

        self.check()
        settings, seconds = len(self.settings(self.measure or BLOCKS)), 0.0
        lines = [f"zeroth-order estimators, measured beside their closed forms: {settings} settings"]
        directions = self._directions()
        if directions:
            seconds += directions * self._seconds_of_a_direction()
            lines.append(f"  synthetic functions: {directions:,} directions")
        if self.measures_model():
            model = Measured(self)
            forwards, forward = self._forwards(len(model.names)), self._seconds_of_a_forward(model)
            lines += [f"  block {name:12s} {model.blocks[name].dim:12,d} parameters" for name in model.names]
            lines.append(
                f"  {self.model} on {self.data}, {self.peft}: about {forwards:,} forwards of {forward:.3f} s and as "
                "many moves of a block"
            )
            seconds += 2 * forwards * forward
        return "\n".join([*lines, f"  about {max(seconds / 60, 0.1):.1f} minutes"])

    def _directions(self) -> int:
        """Directions that are drawn on synthetic functions."""
        series = len(self.distributions) + ("gaussian" in self.distributions)  # Gaussian ones in fp32 too
        counts = {
            "bias": len(self.functions) * series * self.draws,
            "variance": len(self.distributions) * len(self.dims) * self.draws,
            "averages": len(AVERAGES) * self.draws // 8 * max(self.qs),
            "curve": len(self.precisions) * self.curve_draws,
        }
        return sum(counts.get(part, 0) for part in self.parts)

    def _forwards(self, blocks: int) -> int:
        """Forward passes of the model."""
        averaged = [kind for kind in self.kinds if kind.endswith("4")]
        curve = self.model_curve_draws * (2 * len(self.model_mus) + 5) * blocks * len(self.precisions)
        variance = (2 * len(self.kinds) + 2 * len(averaged)) * self.model_draws
        counts = {"model-curve": curve, "model-variance": variance, "model-cost": len(COSTS) * self.rounds * 5}
        return sum(counts.get(part, 0) for part in self.parts)

    def _seconds_of_a_direction(self) -> float:
        """Seconds to draw a direction, and half as long again for what is done with it."""
        import torch

        from smoothlab.experiments.estimators.synthetic import Ridges, directions
        from smoothlab.zeroth.distributions import Gaussian

        block = Ridges.random("cubic", self.dim, 0).block(torch.float64)
        return 1.5 * _least_seconds(lambda: directions(Gaussian(), block, (0,), 100)) / 100

    def _seconds_of_a_forward(self, model: "Measured") -> float:
        from smoothlab.zeroth.closures import evaluate

        return _least_seconds(lambda: evaluate(model.loss, model.blocks[model.names[0]]))


def _least_seconds(work: Callable[[], Any]) -> float:
    """The least of five times, after a run that warms up: what the work takes when nothing else runs."""
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
