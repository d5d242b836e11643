"""Claims of arXiv:2507.18076 on BOFT, LoRA-GA and their mix, checked on records of runs.

The abstract, all that was at hand, says that BOFT brings "orthogonal stability", LoRA-GA "gradient-aligned rapid
convergence", and that their mix does better than either. Curvature is that of the PEFT module on minibatches before the
first step; accuracy is that of runs at equal tuning, over seeds. A claim holds where the intervals of all comparisons
say so, is false as printed where one says the opposite, and is left open else. `python -m benchmarks.second_hybrid`
makes the records.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smoothlab.claims.claim import Certificate, Claim, Facts, Finding
from smoothlab.records import header, load
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval

STARTS = ("second_hybrid/*-start-*.jsonl", "second_hybrid/*-curvature.jsonl")
RUNS = ("second_hybrid/*-[0-9].jsonl",)
PLACE = "arXiv:2507.18076, abstract"
ORTHOGONAL = ("boft", "unitary")


@dataclass(frozen=True)
class Measured:
    """The rows of one record file of one PEFT method.

    Attributes:
        method: the PEFT method.
        data: model and data set, as "micro on sst2".
        seed: of the run.
        rows: of the file.
    """

    method: str
    data: str
    seed: int
    rows: Sequence[Mapping[Any, Any]]


def measured(records: Sequence[Path]) -> list[Measured]:
    """The record files that name a PEFT method."""
    files = []
    for path in records:
        config = header(path)["config"]
        if config.get("peft"):
            data = f"{Path(config['model']).name} on {Path(config['data']).stem}"  # a task, or a file of items
            files.append(Measured(config["peft"], data, config["seed"], load(path).to_dict("records")))
    return files


def norms(records: Sequence[Path]) -> dict[tuple[str, int], dict[str, Interval]]:
    """Frobenius norm of each method's module before the first step, for each data set and minibatch."""
    norms_by_minibatch: dict[tuple[str, int], dict[str, Interval]] = {}
    for file in measured(records):
        for row in file.rows:
            if row["quantity"] == "frobenius" and row["block"] == row["wrt"] == "peft" and row["step"] == 0:
                interval = Interval(row["value"], row["low"], row["high"])
                norms_by_minibatch.setdefault((file.data, file.seed), {})[file.method] = interval
    return norms_by_minibatch


def answers(records: Sequence[Path]) -> dict[str, dict[str, dict[int, str]]]:
    """The test answers of each data set, method and seed, a letter an item: 1 for a right one."""
    answers_by_data: dict[str, dict[str, dict[int, str]]] = {}
    for file in measured(records):
        for row in file.rows:
            if row["part"] == "test" and isinstance(row.get("right"), str):
                answers_by_data.setdefault(file.data, {}).setdefault(file.method, {})[file.seed] = row["right"]
    return answers_by_data


def supports(interval: Interval, middle: float) -> bool | None:
    """Whether the interval lies above the middle; None where it holds it."""
    if interval.low > middle or interval.high < middle:
        return interval.low > middle
    return None


def _norms_certificates(records: Sequence[Path], above: str, below: str) -> Iterator[Certificate]:
    """One certificate a minibatch: the norm of the module `above` exceeds that of the module `below`."""
    for (data, seed), methods in sorted(norms(records).items()):
        if above in methods and below in methods:
            ratio = samples.ratio(methods[above], methods[below])
            facts: Facts = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "seed": float(seed)}
            text = f"||H_y||_F of {above} exceeds that of {below} before the first step, {data}"
            yield Certificate(text, "printed", supports(ratio, 1.0), "records", facts)


def _accuracy_certificates(records: Sequence[Path], better: str, worse: str) -> Iterator[Certificate]:
    """One certificate a data set: more test items are right with the method `better` than with the other."""
    for data, methods in sorted(answers(records).items()):
        seeds = sorted(set(methods.get(better, {})) & set(methods.get(worse, {})))
        if not seeds:
            continue
        right = [[[letter == "1" for letter in methods[name][seed]] for seed in seeds] for name in (better, worse)]
        difference = samples.paired(np.array(right[0]), np.array(right[1]))
        facts: Facts = {
            "points of accuracy": 100 * difference.value, "low": 100 * difference.low, "high": 100 * difference.high,
            "seeds": float(len(seeds)), "items": float(len(right[0][0])),
        }  # fmt: skip
        # the interval of one seed does not hold for other seeds
        answer = supports(difference, 0.0) if len(seeds) > 1 else None
        text = f"{better} has a higher test accuracy than {worse}, {data}"
        yield Certificate(text, "printed", answer, "records", facts)


def _orthogonal(seed: int, records: Sequence[Path]) -> Finding:
    return Finding(tuple(
        certificate for method in ORTHOGONAL for certificate in _norms_certificates(records, "lora", method)
    ))  # fmt: skip


def _aligned_start(seed: int, records: Sequence[Path]) -> Finding:
    return Finding(tuple(_norms_certificates(records, "lora-ga", "lora")))


def _aligned_pays(seed: int, records: Sequence[Path]) -> Finding:
    return Finding(tuple(_accuracy_certificates(records, "lora-ga", "lora")))


def _mix(seed: int, records: Sequence[Path]) -> Finding:
    return Finding(tuple(
        certificate
        for method in ("boft", "lora-ga")
        for certificate in _accuracy_certificates(records, "boft-ga", method)
    ))  # fmt: skip


CLAIMS = (
    Claim("orthogonal-curvature", "Orthogonal modules (BOFT, unitary) have a smaller ||H_y||_F than LoRA.", PLACE,
          "before the first step, the minibatches of these records", "holds", "", _orthogonal, records=STARTS),
    Claim("aligned-curvature", "LoRA-GA's start, aligned with the gradient, has a larger ||H_y||_F than LoRA's.", PLACE,
          "before the first step, the minibatches of these records", "holds", "", _aligned_start, records=STARTS),
    Claim("aligned-pays", "LoRA-GA trains to a higher test accuracy than LoRA at equal tuning.", PLACE,
          "the runs of these records: three rates each, chosen on dev", "open", "", _aligned_pays, records=RUNS,
          experiments=("finetune",)),
    Claim("mix-pays", "The mix of BOFT and LoRA-GA trains to a higher test accuracy than either at equal tuning.",
          PLACE, "the runs of these records: three rates each, chosen on dev", "open", "", _mix, records=RUNS,
          experiments=("finetune",)),
)  # fmt: skip
