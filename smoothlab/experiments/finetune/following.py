"""Learning rates that follow the curvature: every K steps a share of the stability limit at the present weights.

The limit is the predicted one of `smoothlab advise --by predict`, measured on the minibatches of the coming steps; its
gradients are counted in the rows. Curvature of one minibatch may be far below that of the next, most of all where a
PEFT module starts (LoRA's matrix B is 0 there). Hence the limit that counts is the least of the last KEPT, and a rate
falls at once but rises to at most GROWTH times the rate before.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

from smoothlab.errors import BadInput
from smoothlab.experiments.advise.advice import Rate, rates_of
from smoothlab.experiments.advise.predicting import Prediction, expected_gradients, predicted_limit
from smoothlab.trainer import Trainer

Row = dict[str, Any]
MINIBATCHES = 1
"""Minibatches whose curvature is measured each time."""
LANCZOS = 8
"""Lanczos steps on it. Nothing but the limit decides here, and after five of them it may be twice too high."""
SHARE = 0.25
"""Share of the limit that a rate is set to.

It is less than the half that is advised for SGD, since no run has tried a followed rate: at a half one of three runs of
LoRA diverged (`micro`, K = 25; benchmarks/README.md).
"""
KEPT = 3
"""Measured limits of which the least counts."""
GROWTH = 3.0
"""Largest factor by which a rate rises from one measurement to the next."""


def followed(trainer: Trainer, seed: int, interval: int, limits: MutableMapping[str, list[float]]) -> Iterator[Row]:
    """Set each rate to its share of the limit at the present weights; yields one row for each rate, with its cost.

    A rate of 0 stays, and so does, with the reason in its row, one whose limit is not predicted at a later step.

    Args:
        trainer: trainer before its next update.
        seed: seed of start vectors and probes.
        interval: steps between two settings, for errors.
        limits: last limits of each rate, to which the new ones are added.

    Raises:
        BadInput: no limit is predicted at step 0.
    """
    for rate in rates_of(trainer):
        before = trainer.rates[rate.names[0]]
        if not before:
            continue
        try:
            prediction = predicted_limit(
                trainer, rate.block, minibatches=MINIBATCHES, first=trainer.step, seed=(seed, trainer.step, 3),
                lanczos=LANCZOS,
            )  # fmt: skip
        except BadInput as error:
            if trainer.step == 0:
                raise BadInput(f"--follow {interval} has no limit for {rate.option} to follow: {error}") from None
            reason = f"kept, as no limit was predicted: {error}"
            cost = expected_gradients(trainer, rate.block, MINIBATCHES, LANCZOS)
            yield {"option": rate.option, "block": rate.block.name, "rate": before, "gradients": cost, "flag": reason}
            continue
        limits[rate.option] = [*limits.get(rate.option, []), prediction.limit.value][-KEPT:]
        value, flag = _new(rate, before, limits[rate.option])
        trainer.rates = {name: value for name in rate.names}
        yield _row(rate, value, prediction, flag)


def _new(rate: Rate, before: float, limits: list[float]) -> tuple[float, str | None]:
    """The new rate, and a note where it is not the share of the last limit."""
    value, flag = SHARE * min(limits), None
    if min(limits) < limits[-1]:
        flag = f"share of the least of the last {len(limits)} limits"
    if value > GROWTH * before:
        value, flag = GROWTH * before, f"{GROWTH:g} times the rate before, which is less than the share of the limit"
    return value, flag


def _row(rate: Rate, value: float, prediction: Prediction, flag: str | None) -> Row:
    """The new rate and what it follows from."""
    limit = prediction.limit
    return {
        "option": rate.option, "block": rate.block.name, "rate": value, "limit": limit.value, "limit_low": limit.low,
        "limit_high": limit.high, "condition": prediction.condition, "gradients": round(prediction.gradients, 1),
        "flag": flag,
    }  # fmt: skip
