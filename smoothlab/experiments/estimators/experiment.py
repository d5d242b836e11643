"""Zeroth-order estimators against their closed forms: bias, variance, rounding and cost."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from smoothlab.experiments.estimators.config import AVERAGES, BLOCKS, COSTS, ON_MODEL, Config

if TYPE_CHECKING:
    from smoothlab.experiments.estimators.model_blocks import Measured

Row = dict[str, Any]


@dataclass(frozen=True)
class Estimators(Config):
    """Measure zeroth-order gradient estimators beside their closed forms: bias, variance, rounding and cost."""

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
        model = self._model() if self.measures_model() else None
        settings = self.settings() + (self.model_settings(model.names) if model else [])
        settings = [setting for setting in settings if setting not in behind]
        progress = _progress(len(settings))
        for setting in settings:
            progress.set_postfix_str(setting)
            yield from self._measured(setting, model)
            progress.update()
        progress.close()

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
        if self.measures_model():
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


def _progress(settings: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=settings, desc="settings", unit="setting", disable=not sys.stderr.isatty())
