"""Zeroth-order estimators against their closed forms: bias, variance, rounding and cost."""

import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from smoothlab.experiments.estimators.config import AVERAGES, BLOCKS, COSTS, Config
from smoothlab.experiments.settings import Row


@dataclass(frozen=True)
class Estimators(Config):
    """Measure zeroth-order gradient estimators beside their closed forms: bias, variance, rounding and cost."""

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Measure settings one after another; the model is loaded once, before the first of them."""
        # Torch and scipy, which `--help` does without.
        from smoothlab.experiments.estimators import bias_variance, model_blocks

        runs: dict[str, Callable[[str], Iterator[Row]]] = {}
        for part, measure in bias_variance.PARTS.items():
            runs[part] = partial(measure, self)
        blocks = BLOCKS
        if self.measures_model():
            model = model_blocks.Measured(self)
            blocks = model.names
            for part, measure_block in model_blocks.PARTS.items():
                runs[part] = partial(measure_block, model)
        for point in points:
            if point.get("block", blocks[0]) in blocks:  # a model may have no head
                yield from runs[point["part"]](point["setting"])

    def plan(self) -> str:
        """What a run would measure and cost, from timed directions and forwards."""
        from smoothlab.experiments.estimators.model_blocks import Measured
        from smoothlab.zeroth.closures import evaluate

        self.check()
        points, lines, seconds = self.points(), [], 0.0
        directions = self._directions()
        if directions:
            seconds += directions * self._seconds_of_a_direction()
            lines.append(f"  synthetic functions: {directions:,} directions")
        if self.measures_model():
            model = Measured(self)
            points = [point for point in points if point.get("block", model.names[0]) in model.names]
            forwards = self._forwards(len(model.names))
            forward = _least_seconds(partial(evaluate, model.loss, model.blocks[model.names[0]]))
            for name in model.names:
                lines.append(f"  block {name:12s} {model.blocks[name].dim:12,d} parameters")
            lines.append(
                f"  {self.model} on {self.data}, {self.peft}: about {forwards:,} forwards of {forward:.3f} s and as "
                "many moves of a block"
            )
            seconds += 2 * forwards * forward
        title = f"zeroth-order estimators, measured beside their closed forms: {len(points)} settings"
        return "\n".join([title, *lines, f"  about {max(seconds / 60, 0.1):.1f} minutes"])

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
        curve = self.model_curve_draws * (2 * len(self.model_mus) + 5) * blocks * len(self.precisions)
        # two forwards a direction; a kind that averages over four has half the draws, so twice as many in all
        averages = {"plain4", "orthogonal4"}.intersection(self.kinds)
        variance = 2 * (len(self.kinds) + len(averages)) * self.model_draws
        counts = {"model-curve": curve, "model-variance": variance, "model-cost": len(COSTS) * self.rounds * 5}
        return sum(counts.get(part, 0) for part in self.parts)

    def _seconds_of_a_direction(self) -> float:
        """Seconds to draw a direction, and half as long again for what is done with it."""
        import torch

        from smoothlab.experiments.estimators.synthetic import Ridges, directions
        from smoothlab.zeroth.distributions import Gaussian

        block = Ridges.random("cubic", self.dim, 0).block(torch.float64)
        return 1.5 * _least_seconds(partial(directions, Gaussian(), block, (0,), 100)) / 100


def _least_seconds(work: Callable[[], Any]) -> float:
    """The least of five times, after a run that warms up: what the work takes when nothing else runs."""
    return min(timeit.repeat(work, number=1, repeat=6)[1:])
