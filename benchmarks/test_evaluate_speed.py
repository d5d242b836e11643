"""Accuracy of `micro` in batches, beside one candidate at a time: how much faster, and what arithmetic leaves to gain.

`make bench` runs it and writes benchmarks/results/speed_evaluate.jsonl; `python -m benchmarks.test_evaluate_speed
--repetitions 2 --items 50 --out FILE` is a short look. Everything is a ratio within one run: a repetition times the
baselines one after another on the same items, the length buckets before and after. The baselines are
`accuracy_one_by_one`, on tokens that are there; the same with prompts and candidates tokenized on the way, as public
code does each time; and the next simpler path, minibatches of 16 items in their given order ("given order").
"arithmetic" is what could be gained if the products of the batches ran as fast as one large matrix product and nothing
else took time: attention, activations and Python are not in it.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.timing import Ratios, ratio_row, recorded, table, timed
from smoothlab.llm.evaluate import accuracy, accuracy_one_by_one, batch, encode, evaluating, scores
from smoothlab.llm.models import load_lm
from smoothlab.llm.tasks import TASKS, load_choices
from smoothlab.records import Row

SPEEDUP = 10.0  # asked for, over one candidate at a time


@dataclass(frozen=True)
class EvaluateSpeed(Ratios):
    """Speed of evaluation.

    Attributes:
        repetitions: interleaved repetitions of all baselines.
        items: test items of each task.
        data_dir: folder of the published tasks; builtin alone without.
    """

    name: ClassVar[str] = "speed_evaluate"
    repetitions: int = 7
    items: int = 100
    data_dir: str | None = None

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """For each task how many times faster batches are."""
        loaded = load_lm("micro", seed=0)
        for name, task in TASKS.items():
            if task.train and not self.data_dir:
                continue
            folder = Path(self.data_dir) if self.data_dir and task.train else None
            yield from self._task(name, folder, loaded)

    def _task(self, name: str, folder: Path | None, loaded: Any) -> Iterator[Row]:
        splits = load_choices(name, folder, sizes=(8, 4, self.items))
        model, tokenizer = loaded.model, loaded.tokenizer
        items = encode(tokenizer, splits.test, loaded.max_length, splits.kind)

        def tokenizing() -> None:
            for item in splits.test:
                for candidate in item.candidates:  # of every candidate the prompt too, to know where it ends
                    tokenizer(item.prompt), tokenizer(item.prompt + candidate)
            accuracy_one_by_one(model, items)

        def given_order() -> None:
            with evaluating(model):
                for start in range(0, len(items), 16):
                    scores(
                        model, batch(items, range(start, min(start + 16, len(items))), all_candidates=True, multiple=1)
                    )

        slow = {
            "one by one": lambda: accuracy_one_by_one(model, items),
            "one by one, tokenizing": tokenizing,
            "given order": given_order,
        }
        ratios: dict[str, list[float]] = {baseline: [] for baseline in (*slow, "arithmetic")}
        seconds: list[float] = []
        fast, truth = accuracy(model, items), accuracy_one_by_one(model, items)
        error = max(
            abs(a - b) for p, q in zip(fast.scores, truth.scores, strict=True) for a, b in zip(p, q, strict=True)
        )
        for _ in range(self.repetitions):
            ends = [timed(lambda: accuracy(model, items))]
            times = {baseline: timed(job) for baseline, job in slow.items()}
            ends.append(timed(lambda: accuracy(model, items)))
            seconds += ends
            for baseline, baseline_seconds in times.items():
                ratios[baseline].append(baseline_seconds / statistics.mean(ends))
            ratios["arithmetic"].append(times["one by one"] / self._least_seconds(model, items))
        load_average = list(os.getloadavg())
        columns = {"task": name, "loss": splits.kind, "items": len(items), "error": error, "load": load_average}
        for baseline, values in ratios.items():
            target = SPEEDUP if baseline == "one by one" else None
            yield ratio_row(baseline, values, seconds, target=target, unit="times", **columns)

    def _least_seconds(self, model: Any, items: Any) -> float:
        """Seconds for the products alone, 2 operations a weight, token and layer, at the speed of a large one."""
        rows, positions = set(), set()
        for item, (context, tails) in enumerate(zip(items.contexts, items.options, strict=True)):
            for tail in tails:
                rows.add((item, context + tail[:-1]))
                positions |= {(item, context + tail[:k]) for k in range(len(tail))}
        tokens = sum(len(row) for _, row in rows)
        products = 0
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed_positions" not in name:
                products += weight.numel() * (len(positions) if "embed_tokens" in name else tokens)
        a = torch.randn(1024, 1024)
        speed = 2 * 1024**3 / min(timed(lambda: a @ a) for _ in range(5))
        return 2 * products / speed


def measure(experiment: EvaluateSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out)


show = partial(table, names=("task", "what"), number=".2f", more={"seconds": ".3f", "error": ".1e"})
"""The rows as a table."""


@pytest.mark.slow
def test_batches_are_faster_where_arithmetic_allows_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten times, or a third of what arithmetic leaves where that is less: a batch saves overhead, not products."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    out = Path(__file__).with_name("results") / "speed_evaluate.jsonl"
    rows = measure(EvaluateSpeed(data_dir=str(folder) if folder.is_dir() else None), out)
    with capsys.disabled():
        print("\n" + show(rows))
    values = {(row["task"], row["what"]): row["value"] for row in rows}
    for task in {task for task, _ in values}:
        assert values[task, "one by one"] >= min(SPEEDUP, values[task, "arithmetic"] / 3), task
    assert all(row["error"] < 1e-4 for row in rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=EvaluateSpeed.repetitions)
    parser.add_argument("--items", type=int, default=EvaluateSpeed.items)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_evaluate.jsonl"))
    args = parser.parse_args()
    print(show(measure(EvaluateSpeed(args.repetitions, args.items, args.data_dir), args.out)))


if __name__ == "__main__":
    main()
