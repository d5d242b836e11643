"""The suite: all probes on one optimizer, with one bound on the probability of any false accusation."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smoothlab.conformance.adapter import Subject, Unobservable
from smoothlab.conformance.answer import Answer, Finding, Probe
from smoothlab.conformance.bench import Bench
from smoothlab.conformance.contract import CONTRACT
from smoothlab.conformance.moments import MOMENTS
from smoothlab.conformance.precision import PRECISION
from smoothlab.conformance.steps import STEPS
from smoothlab.errors import BadInput
from smoothlab.stats import scores
from smoothlab.zeroth.expectations import Shapes

PROBES: dict[str, Probe] = {probe.name: probe for probe in (*STEPS, *MOMENTS, *PRECISION, *CONTRACT)}
"""The table of probes: the command line, the documentation and the tests read it."""
ALPHA = 1e-3
"""Probability that the whole suite accuses a right optimizer, at most, where z-scores are those of normal numbers.

Each comparison has ALPHA / their number.
"""
COMPARISONS = sum(probe.comparisons for probe in PROBES.values())
CONCLUSIVE = 30.0
"""|z| from which on an accusation needs no second look, on new seeds and problems and four times as many steps.

Means of heavy-tailed numbers stray further than normal ones: of rank-1 directions on 2 x 2 matrices 0.8 % of samples of
4,000 steps pass the limit, and 9 % of those of 400 steps, with |z| of up to 17 in 1,500 samples.
"""
SMALLER: tuple[Shapes, ...] = (((1,),), ((2,),), ((1,), (1,)), ((2, 2),))
"""Tensors that a failing probe is tried on, the smallest first."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}
"""Formats that the parameters may have in probes that are not about a format."""


@dataclass(frozen=True)
class Report:
    """Answers to all questions about one optimizer.

    Attributes:
        name: the optimizer's.
        answers: one a probe, in the order of `PROBES`.
    """

    name: str
    answers: tuple[Answer, ...]

    @property
    def wrong(self) -> list[str]:
        """Names of the probes that found a fault."""
        return [answer.probe for answer in self.answers if answer.verdict == "wrong"]

    @property
    def passed(self) -> bool:
        """Whether no probe found a fault, and the optimizer ran in all of them."""
        return not any(answer.verdict == "wrong" or answer.failed for answer in self.answers)

    def __getitem__(self, probe: str) -> Answer:
        return {answer.probe: answer for answer in self.answers}[probe]

    def __str__(self) -> str:
        return "\n".join([self.name, *map(str, self.answers)])


def verify(
    make: Callable[..., Any], *, probes: Sequence[str] = (), seed: int = 0, dtype: str = "float64",
    claims: Mapping[str, Any] | None = None, step_seconds: float = 60.0, name: str = "",
) -> Report:  # fmt: skip
    """Look whether an optimizer's step is a zeroth-order gradient, and a right one; docs/howto/verify.md.

    >>> import smoothlab
    >>> report = smoothlab.verify(smoothlab.ZerothOrder(), probes=["along", "mirrored"])
    >>> report.passed, report["along"].verdict
    (True, 'right')

    Args:
        make: makes the optimizer: a class or function NAME(params, lr=..., seed=...) that returns an object with
            `step(closure)`, an estimator, or a function of the closure; or an estimator itself. See
            `smoothlab.conformance.adapter` for more keywords that it may accept.
        probes: names of `PROBES`; all of them by default.
        seed: first seed of the optimizer's runs, and the seed of the problems.
        dtype: format of the parameters, float64 or float32, where a probe is not about another one.
        claims: what the optimizer says of itself: "distribution" (a name, e.g. "lowrank(2)") and "mu".
        step_seconds: longest time of a step, in seconds.
        name: what the report calls it; the maker's name by default.

    Returns:
        The answers. The probability that a right optimizer is called wrong in any of them is at most `ALPHA`.

    Raises:
        BadInput: an unknown probe, claim or format, or `make` is neither function nor estimator.
    """
    name = name or getattr(make, "name", "") or getattr(make, "__name__", type(make).__name__)
    subject = Subject(make, name, claims or {}, step_seconds)
    return Report(name, tuple(answers(subject, probes, seed, dtype)))


def answers(subject: Subject, probes: Sequence[str] = (), seed: int = 0, dtype: str = "float64") -> Iterator[Answer]:
    """The answers, one by one as they are found."""
    for probe in probes:
        if probe not in PROBES:
            raise BadInput(f"probe '{probe}' is unknown: use one of {', '.join(PROBES)}")
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype}: use one of {', '.join(DTYPES)}")
    bench = Bench(subject, seed, DTYPES[dtype])
    for name in probes or PROBES:
        yield answer(bench, PROBES[name])


def answer(bench: Bench, probe: Probe) -> Answer:
    """The answer to one question; whatever the optimizer does there, the other questions can be asked."""
    started, before = time.perf_counter(), bench.spent
    limit = scores.limit(ALPHA, COMPARISONS)
    try:
        finding = _finding(bench, probe, probe.shapes)
        if finding.z is not None and limit < abs(finding.z) < CONCLUSIVE:
            finding = _finding(bench.again, probe, probe.shapes)
    except Unobservable as error:
        evaluations, seconds = bench.spent - before, round(time.perf_counter() - started, 3)
        failed = str(error).startswith(FAILED)
        return Answer(probe.name, probe.asks, "not observable", str(error), evaluations=evaluations, seconds=seconds,
                      failed=failed)  # fmt: skip
    verdict, within, case = "right", None, ""
    if finding.wrong(limit):
        verdict, case = "wrong", finding.case
        if probe.shrinks:
            case = _smallest(bench, probe, limit) or case
    elif finding.error is not None and finding.z is not None:
        within = limit * finding.error
        verdict = "right within" if within > 1e-9 else "right"
    z, bound = finding.z, None if finding.z is None else round(limit, 3)
    return Answer(
        probe.name, probe.asks, verdict, finding.words, within, finding.measured, finding.reference, finding.low,
        finding.high, z, bound, bench.spent - before, round(time.perf_counter() - started, 3), case,
    )  # fmt: skip


FAILED = ("raises", "takes more", "needs CUDA", "ignores", "leaves NaN", "made a")
"""Beginnings of the lines on optimizers that do not run."""


def _finding(bench: Bench, probe: Probe, shapes: Shapes) -> Finding:
    """The probe's finding, without the optimizer's warnings; random generators are afterwards as before."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        return probe.measure(bench, shapes)


def _smallest(bench: Bench, probe: Probe, limit: float) -> str:
    """The case of the smallest tensors where the probe finds a fault too; "" if it does on none of them."""
    for shapes in SMALLER:
        try:
            finding = _finding(bench, probe, shapes)
        except Unobservable:  # more directions than entries, say
            continue
        if finding.wrong(limit):
            return finding.case
    return ""
