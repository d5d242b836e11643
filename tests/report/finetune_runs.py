"""Records as `smoothlab finetune` writes them, whose every number is known."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from smoothlab import records
from smoothlab.experiments.finetune.experiment import Finetune

RUN = Finetune(data="sst2", steps=40, eval_every=10, eta_x=1e-4, eta_y=0.1)
ITEMS = 200


def write_run(
    out: Path, run: Finetune, level: float, *, test: bool = True, stopped: bool = False,
    rows: Sequence[dict[str, Any]] = (),
) -> Path:  # fmt: skip
    """A run whose answers are right with probability `level`, with rows of curvature."""
    rng = np.random.default_rng([run.seed, int(1000 * level)])
    writer = records.Writer(out, "finetune", asdict(run), {})
    rates = {"trial": 1, "eta_x": run.eta_x, "eta_y": run.eta_y, "mu": run.mu}
    if stopped:
        writer.write({"part": "stopped", **rates, "trial": 0, "step": 3, "why": "the loss is nan: lower --eta-x (3)"})
    for row in rows:
        writer.write(row | {"trial": 1})
    for step in range(0, run.steps + 1, run.eval_every):
        right = int(100 * (0.5 + (level - 0.5) * step / run.steps))
        low, high = stats.binomtest(right, 100).proportion_ci(0.95)
        loss = None if step == 0 else 1 - level * step / run.steps
        writer.write({"part": "dev", **rates, "step": step, "train_loss": loss, "accuracy": right / 100, "low": low,
                      "high": high, "correct": right, "count": 100})  # fmt: skip
    if test:
        answers = (rng.random(ITEMS) < level).astype(int)
        right = int(answers.sum())
        low, high = stats.binomtest(right, ITEMS).proportion_ci(0.95)
        writer.write({"part": "test", **rates, "step": run.steps, "steps_to_best": 30, "accuracy": right / ITEMS,
                      "low": low, "high": high, "correct": right, "count": ITEMS, "chance": 0.5, "majority": 0.51,
                      "served": "train and dev: a; test: b", "right": "".join(map(str, answers))})  # fmt: skip
        writer.end()
    return out
