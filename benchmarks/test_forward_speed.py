"""What zeroth-order passes cost where the move is inside the forward pass, beside a moved copy of the weights.

`make bench` runs it on `micro` and writes benchmarks/results/speed_forward.jsonl; `python -m
benchmarks.test_forward_speed --models micro smollm2-135m opt-125m --repetitions 5 --out FILE` takes random models of
those shapes too. A ratio is a step over its parts, timed around it in the same repetition: a first-order step on LoRA
(backward, then torch's SGD) and as many forward passes as the estimate has sides, or the forward passes alone. The
minibatch is 16 rows of 32 random tokens; the loss is that of `smoothlab finetune`, or with --loss tokens that of all
next tokens. On a busy machine, --clock cpu counts the process's CPU time.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.timing import Ratios, cpu_seconds, ratio_row, recorded, table, timed
from smoothlab.llm.adapters import attach
from smoothlab.llm.encoding import Encoded
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import Perturb, Sides, ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.rng import stream_name

MU, ROWS, LENGTH = 1e-3, 16, 32
TARGETS = {"one-sided hybrid": 1.10, "two-sided hybrid": 1.10, "two-sided zeroth-order": 2.2}
"""Largest ratio of a step to its parts, with the move inside the forward pass."""
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "opt-125m": ("OPTConfig", {}),
    "smollm2-135m": (
        "LlamaConfig",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
}  # fmt: skip
"""Shapes of models with random weights."""


def made(name: str) -> nn.Module:
    """The model under LoRA on queries and values, whose base model is frozen for first-order steps."""
    import transformers

    if name == "micro":
        model: Any = load_lm("micro", seed=0).model
    else:
        config, options = SHAPES[name]
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**options)).eval()
    model = attach(model, "lora", seed=0, measured=False)
    for p in partition(model)["base"].params:
        p.requires_grad_(False)
    return model  # type: ignore[no-any-return]


def loss_of(
    model: nn.Module, kind: str, *, rows: int = ROWS, length: int = LENGTH, device: str = "cpu"
) -> Callable[[], Tensor]:
    """The loss on the minibatch of `rows` rows (an even number) of `length` tokens."""
    ids = torch.randint(5, 4000, (rows, length), generator=torch.Generator().manual_seed(0))
    if kind == "tokens":
        on_device = ids.to(device)
        return lambda: model(input_ids=on_device, labels=on_device).loss
    tokens = tuple(tuple(row) for row in ids.tolist())
    encoded = Encoded(tokens, (((10,), (11,)),) * rows, (0, 1) * (rows // 2), "verbalizer", 1)
    inputs = batch(encoded, range(rows), device)
    assert inputs["input_ids"].shape == (rows, length)
    return lambda: choice_loss(model, inputs)


class Seconds(NamedTuple):
    """Seconds of a step, and of the parts of steps, each timed before and after it."""

    step: float
    first_order: float
    forward: float


def parts_of(peft: Sequence[Tensor], loss: Callable[[], Tensor]) -> tuple[Callable[[], None], Callable[[], None]]:
    """A first-order step of the PEFT module, and a forward pass."""
    plain = torch.optim.SGD(peft, lr=1e-9)  # rates so small that all steps see the same weights

    def first_order() -> None:
        plain.zero_grad()
        loss().backward()
        plain.step()

    def forward() -> None:
        with torch.no_grad():
            loss()

    return first_order, forward


def interleaved(
    parts: tuple[Callable[[], Any], Callable[[], Any]], steps: Mapping[Any, Callable[[], Any]], repetitions: int,
    clock: Callable[[Callable[[], Any]], float], seconds: float = float("inf"),
) -> dict[Any, list[Seconds]]:  # fmt: skip
    """Each step between its parts, in turns; no repetition begins after so many `seconds`, but for the first."""
    first_order, forward = parts
    by_step: dict[Any, list[Seconds]] = {key: [] for key in steps}
    for step in (first_order, forward, *steps.values()):
        step()  # memory is taken, and the checks of a first call are made, before the clock runs
    started = time.monotonic()
    for repetition in range(repetitions):
        if repetition and time.monotonic() - started > seconds:
            break
        before = clock(first_order), clock(forward)
        for key, step in steps.items():
            step_seconds = clock(step)
            after = clock(first_order), clock(forward)
            by_step[key].append(Seconds(step_seconds, *map(statistics.mean, zip(before, after, strict=True))))
            before = after
    return by_step


@dataclass(frozen=True)
class ForwardSpeed(Ratios):
    """Cost of steps over their parts.

    Attributes:
        models: micro, or names of SHAPES.
        repetitions: interleaved repetitions of every step.
        rank: rank of the directions.
        loss: of the candidates' tokens, or of all tokens.
        clock: wall time, or CPU time of the process.
    """

    name: ClassVar[str] = "speed_forward"
    models: tuple[str, ...] = ("micro",)
    repetitions: int = 15
    rank: int = 1
    loss: Literal["candidates", "tokens"] = "candidates"
    clock: Literal["wall", "cpu"] = "wall"

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Each step of each model."""
        for name in self.models:
            yield from self._rows_of(name)

    def _rows_of(self, name: str) -> Iterator[Row]:
        model = made(name)
        blocks, loss = partition(model), loss_of(model, self.loss)
        base, peft = blocks["base"], list(blocks["peft"].params)

        def step(oracle: ZerothOrder, *more: Tensor) -> Callable[[], Any]:
            groups: list[dict[str, Any]] = [{"params": base.params, "oracle": oracle}]
            if more:
                groups.append({"params": more})
            optimizer = HybridSGD(groups, 1e-9)
            return lambda: optimizer.step(loss)

        steps: dict[tuple[str, str], Callable[[], Any]] = {}
        sides: Sides
        perturb: Perturb
        for label, perturb, distribution in (
            ("forward", "forward", LowRank(self.rank)), ("weights, low rank", "weights", LowRank(self.rank)),
            ("weights, Gaussian", "weights", Gaussian()),
        ):  # fmt: skip
            for what, sides, more in (
                ("one-sided hybrid", 1, peft), ("two-sided hybrid", 2, peft), ("two-sided zeroth-order", 2, []),
            ):  # fmt: skip
                steps[what, label] = step(ZerothOrder(MU, sides, distribution, perturb=perturb), *more)
        clock = {"wall": timed, "cpu": cpu_seconds}[self.clock]
        repetitions_by_step = interleaved(parts_of(peft, loss), steps, self.repetitions, clock)
        more = {"model": name, "dim_x": base.dim, "dim_y": blocks["peft"].dim, "load": list(os.getloadavg())}
        for (what, label), repetitions in repetitions_by_step.items():
            unit, ratios = "forward passes" if what == "two-sided zeroth-order" else "parts", []
            for seconds in repetitions:
                gradient, forward = seconds.first_order, seconds.forward
                parts = {"one-sided hybrid": gradient + forward, "two-sided hybrid": gradient + 2 * forward}
                ratios.append(seconds.step / parts.get(what, forward))
            target = TARGETS[what] if label == "forward" else None
            times = [seconds.step for seconds in repetitions]
            yield ratio_row(f"{what}, {label}", ratios, times, **(more | {"unit": unit, "target": target}))


def measure(experiment: ForwardSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out, stream=stream_name())


show = partial(table, names=("model", "what"), number=".3f", more={"unit": ""})
"""The rows as a table."""


@pytest.mark.slow
def test_a_move_inside_the_forward_pass_costs_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(__file__).with_name("results") / "speed_forward.jsonl"
    rows = measure(ForwardSpeed(), out)
    with capsys.disabled():
        print("\n" + show(rows))
    values = {row["what"]: row["value"] for row in rows}
    for what, target in TARGETS.items():
        assert values[f"{what}, forward"] <= target


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=("micro", *SHAPES), default=ForwardSpeed.models)
    parser.add_argument("--repetitions", type=int, default=ForwardSpeed.repetitions)
    parser.add_argument("--rank", type=int, default=ForwardSpeed.rank)
    parser.add_argument("--loss", choices=("candidates", "tokens"), default=ForwardSpeed.loss)
    parser.add_argument("--clock", choices=("wall", "cpu"), default=ForwardSpeed.clock)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_forward.jsonl"))
    args = parser.parse_args()
    experiment = ForwardSpeed(tuple(args.models), args.repetitions, args.rank, args.loss, args.clock)
    print(show(measure(experiment, args.out)))


if __name__ == "__main__":
    main()
