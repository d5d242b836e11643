"""What zeroth-order passes and steps cost, in forwards, at OPT-125M's shape, beside MeZO's literal loop.

`make bench` runs it and writes benchmarks/results/speed_zeroth.jsonl; `python -m benchmarks.test_zeroth_speed
--repetitions 2 --out FILE` is a short look. Everything is a ratio within one run: one repetition times every item once
between two forwards, and the medians of the ratios are reported with their quartiles. Times are held against nothing.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.timing import Ratios, ratio_row, recorded, table, timed
from smoothlab.blocks import Block, Loss
from smoothlab.records import Row
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.perturbation import Perturbation
from smoothlab.zeroth.rng import Terms, stream_name

Kind = Literal["language model", "classifier"]
BATCH, LENGTH = 8, 32
MU, ETA = 1e-3, 1e-7
PASSES = {"update in place, regenerated": 1.1, "update in place, kept z": 0.1, "update in place, Rademacher": 0.25}
"""Largest ratios allowed to a forward's time."""
STEPS = {"step, regenerated": 2.0, "step, kept z": 3.0, "step, Rademacher": 3.5}
"""Least speedups over MeZO's literal loop of a two-sided step."""
FLOORS = {
    "step, kept z": ("floor, numbers drawn", "floor, moved copy", "floor, moved copy", "floor, in place"),
    "step, Rademacher": ("floor, moved copy", "floor, moved copy", "floor, in place"),
}
"""What a two-sided step does beside two forwards at the very least: bare loops over as many numbers, no parameters."""


@dataclass(frozen=True)
class Bench:
    """OPT of a given shape, random weights, on one batch of random tokens; as a language model or as a classifier.

    The vocabulary head of the language model is a third of its forward, and classifiers do without.
    """

    model: nn.Module
    loss: Loss
    block: Block

    @classmethod
    def load(cls, kind: Kind, hidden: int = 768, layers: int = 12, vocabulary: int = 50272) -> "Bench":
        """OPT-125M's shape by default."""
        from transformers import OPTConfig, OPTForCausalLM, OPTForSequenceClassification

        torch.manual_seed(0)
        config = OPTConfig(
            hidden_size=hidden, word_embed_proj_dim=hidden, num_hidden_layers=layers, ffn_dim=4 * hidden,
            num_attention_heads=hidden // 64, vocab_size=vocabulary,
        )  # fmt: skip
        model = (OPTForCausalLM if kind == "language model" else OPTForSequenceClassification)(config).eval()
        tokens = torch.randint(3, vocabulary, (BATCH, LENGTH))
        labels = tokens if kind == "language model" else torch.arange(BATCH) % 2
        params = tuple({id(p): p for p in model.parameters()}.values())
        return cls(model, lambda: model(input_ids=tokens, labels=labels).loss, Block("base", params))


def mezo_step(loss: Loss, params: Sequence[Tensor], seed: int, mu: float, eta: float) -> float:
    """A two-sided step as MeZO's paper describes it (Malladi et al. 2023, Algorithm 1), literally.

    One global seed; +mu z, -2 mu z, +mu z and the update each draw every tensor's z anew, out of place. The projected
    gradient is returned.
    """

    def perturb(scale: float) -> None:
        torch.manual_seed(seed)
        for p in params:
            z = torch.normal(mean=0.0, std=1.0, size=p.size(), dtype=p.dtype)
            p.data = p.data + scale * z

    with torch.no_grad():
        perturb(mu)
        plus = float(loss())
        perturb(-2 * mu)
        minus = float(loss())
        perturb(mu)
        slope = (plus - minus) / (2 * mu)
        perturb(-eta * slope)
    return slope


def _step(bench: Bench, estimator: ZerothOrder) -> Callable[[int], Any]:
    return lambda seed: estimator(bench.loss, bench.block, (0, seed)).add_to(bench.block, -ETA)


def _passes(bench: Bench) -> dict[str, Callable[[int], Any]]:
    """One move of the whole block along a direction, the loss left out; and one update in place."""

    def move(perturbation: Perturbation, distribution: Distribution, fresh: bool = True) -> Callable[[int], Any]:
        def pass_(seed: int) -> None:
            direction: Terms = (((0, seed if fresh else 0), 1.0),)
            with perturbation.along(distribution, direction, MU):
                pass

        return pass_

    copy, keeping = Perturbation(bench.block), Perturbation(bench.block, keep=True)
    estimator = ZerothOrder(MU, keep=True)
    gradient, signs = (Directional(distribution, (((0, 0), 1.0),)) for distribution in (Gaussian(), Rademacher()))
    estimate = estimator(bench.loss, bench.block, (1,))
    return {
        "pass, regenerated": move(copy, Gaussian()),
        "pass, kept z": move(keeping, Gaussian(), fresh=False),
        "pass, Rademacher": move(copy, Rademacher()),
        "pass, sphere": move(copy, Sphere()),
        "pass, low rank 4": move(copy, LowRank(4)),
        "update in place, regenerated": lambda seed: gradient.add_to(bench.block, ETA),
        "update in place, kept z": lambda seed: estimate.add_to(bench.block, ETA),
        "update in place, Rademacher": lambda seed: signs.add_to(bench.block, ETA),
    }


def _floors(bench: Bench) -> dict[str, Callable[[int], Any]]:
    """The same memory traffic and drawing on flat tensors: what no bookkeeping can be faster than on this machine."""
    theta, z, out = (torch.zeros(bench.block.dim) for _ in range(3))
    return {
        "floor, in place": lambda seed: theta.add_(z, alpha=ETA),
        "floor, moved copy": lambda seed: torch.add(theta, z, alpha=MU, out=out),
        "floor, numbers drawn": lambda seed: Gaussian().stream(bench.block, (0, seed)).map(lambda piece, numbers: None),
    }


def _ways(bench: Bench) -> dict[str, Callable[[int], Any]]:
    params = list(bench.block.params)
    one_sided = ZerothOrder(MU, sides=1)
    return (
        _passes(bench)
        | _floors(bench)
        | {
            "step, MeZO's literal loop": lambda seed: mezo_step(bench.loss, params, seed, MU, ETA),
            "step, regenerated": _step(bench, ZerothOrder(MU)),
            "step, kept z": _step(bench, ZerothOrder(MU, keep=True)),
            "step, Rademacher": _step(bench, ZerothOrder(MU, distribution=Rademacher())),
            "step, layer by layer": _step(bench, ZerothOrder(MU, layers=bench.model)),
            "step, one-sided, f(x) given": lambda seed: one_sided(bench.loss, bench.block, (0, seed), value=0.0).add_to(
                bench.block, -ETA
            ),
        }
    )


@dataclass(frozen=True)
class ZerothSpeed(Ratios):
    """Cost of zeroth-order passes and steps.

    Attributes:
        repetitions: interleaved repetitions of every item.
        hidden: hidden size of the OPT.
        layers: its layers.
        vocabulary: its vocabulary.
    """

    name: ClassVar[str] = "speed_zeroth"
    repetitions: int = 7
    hidden: int = 768
    layers: int = 12
    vocabulary: int = 50272

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Each item in forwards, then each step's speedup over MeZO's literal loop; for both kinds of model."""
        for kind in get_args(Kind):
            for row in self._of(Bench.load(kind, self.hidden, self.layers, self.vocabulary)):
                yield {"model": kind, **row}

    def _of(self, bench: Bench) -> Iterator[Row]:
        def forward() -> None:
            with torch.no_grad():
                bench.loss()

        passes = _ways(bench)
        for one_pass in passes.values():
            one_pass(0)  # memory is taken, and the checks of a first call are made, before the clock runs
        times: dict[str, list[float]] = {name: [] for name in passes}
        ratios: dict[str, list[float]] = {name: [] for name in passes}
        forwards: list[float] = []
        for repetition in range(1, self.repetitions + 1):
            before = timed(forward)
            for name, one_pass in passes.items():
                times[name].append(timed(partial(one_pass, repetition)))
                after = timed(forward)
                ratios[name].append(times[name][-1] / statistics.mean((before, after)))
                forwards.append(before)
                before = after
        shared = {"unit": "forwards", "dim": bench.block.dim}
        yield ratio_row("forward", [1.0], forwards, **shared)
        for name in passes:
            yield ratio_row(name, ratios[name], times[name], target=PASSES.get(name), **shared)
        literal = times["step, MeZO's literal loop"]
        for name, target in STEPS.items():
            speedups = [a / b for a, b in zip(literal, times[name], strict=True)]
            yield ratio_row(
                f"speedup of {name}", speedups, [], target=target, unit="times MeZO's loop", dim=shared["dim"]
            )
        loops = ratios["step, MeZO's literal loop"]
        for name, parts in FLOORS.items():
            gains = [a / (2 + sum(each)) for a, *each in zip(loops, *(ratios[part] for part in parts), strict=True)]
            yield ratio_row(f"most that {name} can gain", gains, [], unit="times MeZO's loop", dim=shared["dim"])


def measure(experiment: ZerothSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out, batch=[BATCH, LENGTH], stream=stream_name())


show = partial(table, names=("model", "what"), number=".3f", more={"unit": ""})
"""The rows as a table."""


@pytest.mark.slow
def test_passes_and_steps_against_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(__file__).with_name("results") / "speed_zeroth.jsonl"
    rows = measure(ZerothSpeed(), out)
    with capsys.disabled():
        print("\n" + show(rows))
    values = {(row["model"], row["what"]): row["value"] for row in rows}
    for kind in get_args(Kind):
        missed = {name: x for name, most in PASSES.items() if not (x := values[kind, name]) <= most}
        missed |= {name: x for name, least in STEPS.items() if not (x := values[kind, f"speedup of {name}"]) >= least}
        print(f"{kind}: " + (f"missed {missed}" if missed else "all met"))
    assert np.isfinite(list(values.values())).all()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=ZerothSpeed.repetitions)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try it out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_zeroth.jsonl"))
    args = parser.parse_args()
    small = {"hidden": 64, "layers": 2, "vocabulary": 500} if args.small else {}
    print(show(measure(ZerothSpeed(args.repetitions, **small), args.out)))


if __name__ == "__main__":
    main()
