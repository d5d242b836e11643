"""Parts "model-curve", "model-variance" and "model-cost" of the estimators experiment: blocks of a real model.

The gradient is autograd's. Weights are rounded to bf16 first, so that every precision stands at the same point and has
the same gradient and derivatives, which are taken in fp64.

- model-curve: as "curve"; kappa and tau come from fp64 values of the loss along directions of their own
  (`ucurve.derivatives`), the noise from values in the precision itself.
- model-variance: the mean of ||ghat - g||^2 / ||g||^2 in fp32 beside E ||ghat||^2 / ||g||^2 - 1 of a linear function
  (`moments.linear_factor`), which is what two sides give on a quadratic.
- model-cost: seconds of moving the block and of the update, in seconds of a forward pass of the same round; medians.
"""

import time
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from smoothlab.blocks import Block, Loss
from smoothlab.errors import BadInput
from smoothlab.experiments.estimators import ucurve
from smoothlab.experiments.estimators.bias_variance import curve_rows, row
from smoothlab.experiments.estimators.config import VARIANTS, Config
from smoothlab.experiments.finetune.config import Method
from smoothlab.experiments.settings import Row
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.hessian.gradients import gradient
from smoothlab.stats import samples
from smoothlab.zeroth.closures import evaluate
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.moments import linear_factor
from smoothlab.zeroth.perturbation import Perturbation


def estimator_of(kind: str, mu: float) -> ZerothOrder:
    """The estimator of a kind of the model's parts, see `config.VARIANTS` and `config.COSTS`."""
    variants = VARIANTS | {"kept": {"keep": True}}
    if kind in variants:
        return ZerothOrder(mu, **variants[kind])
    return ZerothOrder(mu, distribution=named(kind))


class Measured:
    """The model of a run, its minibatch and blocks, at weights representable in bf16."""

    def __init__(self, run: Config) -> None:
        method: Method = "fo-full" if run.peft == "none" else "fo-joint"
        setup = Smoothness(
            model=run.model, data=run.data, data_dir=run.data_dir, method=method, peft=run.peft, batch=run.batch,
            seed=run.seed, device=run.device,
        ).setup()  # fmt: skip
        self.run, self.model = run, setup.model
        self.blocks = {block.name: block for block in setup.measured}
        self.loss: Loss = setup.trainer().minibatch_loss(0)
        self.device = str(next(self.model.parameters()).device)
        for name in run.measure:
            if name not in self.blocks:
                raise BadInput(f"--measure {name}: no such block, use some of {', '.join(self.blocks)}")
        self.names = run.measure or tuple(self.blocks)
        self.model.bfloat16().float()

    @cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        """True gradients [d] of the measured blocks, fp64."""
        self.model.double()
        _, gradients = gradient(self.loss, {name: self.blocks[name] for name in self.names})
        self.model.float()
        return {name: g.numpy(force=True).copy() for name, g in gradients.items()}

    @cached_property
    def spreads(self) -> dict[str, tuple[float, float]]:
        """kappa and tau of the measured blocks."""
        spreads = {}
        self.model.double()
        for name in self.names:
            block = self.blocks[name]
            step = 0.05 * size_of(block)  # far below the scale on which the loss bends, far above fp64's rounding
            steps = step * np.array(ucurve.STENCIL)
            values = values_along(self.loss, block, (self.run.seed, 6), self.run.model_curve_draws, steps)
            second, third = ucurve.derivatives(values, step)
            spreads[name] = (float((second**2).mean() ** 0.5), float((third**2).mean() ** 0.5))
        self.model.float()
        return spreads

    def labels(self, name: str) -> dict[str, Any]:
        """Columns of the rows of a block."""
        return {"d": self.blocks[name].dim, "block": name, "function": self.run.model, "device": self.device}


def size_of(block: Block) -> float:
    """Root mean square of the block's weights."""
    return float((sum(float(p.detach().double().square().sum()) for p in block.params) / block.dim) ** 0.5)


def values_along(
    loss: Loss, block: Block, seed: tuple[int, ...], count: int, steps: np.ndarray, on_direction: Any = None,
    distribution: Distribution | None = None,
) -> np.ndarray:  # fmt: skip
    """Values of the loss at theta + h z, [count, steps], z Gaussian by default; `look(z)` is called with each."""
    perturbation, distribution, rows = Perturbation(block, keep=True), distribution or Gaussian(), []
    for i in range(count):
        direction = (((*seed, i), 1.0),)
        values = []
        for h in steps:
            with perturbation.along(distribution, direction, float(h)):
                values.append(evaluate(loss, block))
        if on_direction is not None:
            on_direction(perturbation.kept[(*seed, i)])
        perturbation.forget()
        rows.append(values)
    return np.array(rows)


def curve(measured: Measured, setting: str) -> Iterator[Row]:
    """Setting "model-curve/BLOCK/DTYPE"."""
    _, name, dtype = setting.split("/")
    run, block, loss = measured.run, measured.blocks[name], measured.loss
    g, spreads = measured.gradients[name], measured.spreads[name]
    truth = torch.tensor(g, device=measured.device)
    exact: list[float] = []
    measured.model.to(getattr(torch, dtype))
    mus, count = np.array(run.model_mus), run.model_curve_draws
    center = evaluate(loss, block)
    values = values_along(
        loss, block, (run.seed, 4), count, np.concatenate([mus, -mus]),
        lambda z: exact.append(float(z.double() @ truth)),
    )  # fmt: skip
    plus, minus = np.split(values, 2, axis=1)
    values_at = dict(zip(mus, plus.T, strict=True)) | dict(zip(-mus, minus.T, strict=True))
    errors = ucurve.errors(values_at.__getitem__, center, np.array(exact), run.model_mus)
    spacing = ucurve.spacing(dtype, size_of(block))
    nearby = values_along(loss, block, (run.seed, 7), max(count // 2, 4), spacing * ucurve.OFFSETS)
    measured.model.float()
    yield from curve_rows(setting, errors, run.model_mus, nearby, spreads, float(np.linalg.norm(g)), seed=run.seed,
                          dtype=dtype, **measured.labels(name))  # fmt: skip


def variance(measured: Measured, setting: str) -> Iterator[Row]:
    """Setting "model-variance/ESTIMATOR" on the first measured block."""
    run, name = measured.run, measured.names[0]
    block, estimator = measured.blocks[name], estimator_of(setting.split("/")[1], run.model_mu)
    g = measured.gradients[name]
    truth, square = torch.tensor(g, dtype=torch.float32, device=measured.device), float(g @ g)
    factor = linear_factor(estimator, block.dim, block.shapes, gradient=g)
    count = run.model_draws if estimator.q == 1 else max(run.model_draws // 2, 2)
    estimator_seed = zlib.crc32(setting.encode())  # each estimator has its own directions, so that each is new evidence
    errors = []
    for i in range(count):
        dense = estimator(measured.loss, block, (run.seed, 5, estimator_seed, i)).dense(block)
        errors.append(float((dense - truth).double().square().sum()) / square)
    yield row(setting, "error", samples.mean_square(errors), estimator, dtype="float32", draws=count,
              reference=factor - 1, flag=samples.rare_draws(errors), **measured.labels(name))  # fmt: skip


def cost(measured: Measured, setting: str) -> Iterator[Row]:
    """Setting "model-cost/ESTIMATOR" on the first measured block: a pass, and its part of a two-sided step."""
    run, name = measured.run, measured.names[0]
    block, estimator = measured.blocks[name], estimator_of(setting.split("/")[1], run.model_mu)
    perturbation = Perturbation(block, keep=estimator.keep)
    passes, fractions = [], []
    for i in range(run.rounds + 1):
        key = (run.seed, 8, i)
        step = (estimator.distribution, ((key, 1.0),), run.model_mu)
        perturbation.forget()
        started = _device_clock(measured.device)
        evaluate(measured.loss, block)
        evaluate(measured.loss, block)
        evaluated = _device_clock(measured.device)
        with perturbation.along(*step):
            pass
        with perturbation.against(*step):
            pass
        Directional(estimator.distribution, ((key, 0.0),), kept=perturbation.kept).add_to(block, 0.0)
        moves, forwards = _device_clock(measured.device) - evaluated, evaluated - started
        if i:  # the first round warms up
            passes.append(moves / 3 / (forwards / 2))
            fractions.append(moves / (moves + forwards))
    labels = {**measured.labels(name), "kept": estimator.keep, "threads": torch.get_num_threads()}
    for quantity, values in (("pass in forwards", passes), ("share of a step", fractions)):
        yield row(setting, quantity, samples.median(values), estimator, dtype="float32", draws=run.rounds, **labels)


def _device_clock(device: str) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS: dict[str, Callable[[Measured, str], Iterator[Row]]] = {
    "model-curve": curve, "model-variance": variance, "model-cost": cost
}  # fmt: skip
