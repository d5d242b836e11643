"""The finding of a probe, and the answer that a suite makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from smoothlab.conformance.bench import Bench
from smoothlab.conformance.problems import SMALL
from smoothlab.stats.scores import Score
from smoothlab.zeroth.expectations import Shapes

VERDICTS = ("right", "right within", "wrong", "not observable")


@dataclass(frozen=True)
class Finding:
    """The measurement of a probe.

    A statistical probe has a z-score, and is wrong where |z| is above the suite's limit. One of exact properties has a
    deviation that may be at most `allowed`.

    Attributes:
        words: what was seen, a phrase.
        z: largest z-score; None for exact properties.
        deviation: largest deviation; None for statistical probes.
        allowed: deviation that rounding may make.
        measured: value of the statistic.
        reference: its true value.
        low: lower end of its 95 % interval.
        high: upper end.
        error: its standard error relative to the reference.
        case: where it was seen, the worst comparison.
    """

    words: str
    z: float | None = None
    deviation: float | None = None
    allowed: float = 0.0
    measured: float | None = None
    reference: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    case: str = ""

    def wrong(self, limit: float) -> bool:
        """Whether chance or rounding cannot have done it."""
        if self.deviation is not None and not self.deviation <= self.allowed:  # NaN is wrong
            return True
        return self.z is not None and not abs(self.z) <= limit


def of_score(score: Score, reference: float, words: str, case: str = "") -> Finding:
    """The finding of a mean beside its truth."""
    error = score.error / max(abs(reference), 1e-300)
    return Finding(
        words, z=score.z, measured=score.value, reference=reference, low=score.low, high=score.high, error=error,
        case=case,
    )  # fmt: skip


class Probe(NamedTuple):
    """One question about an optimizer, with the measurement that answers it.

    Attributes:
        name: its name.
        asks: the question.
        measure: examines the optimizer on tensors of some shapes; raises Unobservable where it cannot.
        comparisons: z-scores of which it takes the largest, at most.
        shapes: shapes of its problem.
        shrinks: whether smaller shapes are tried where it is wrong.
    """

    name: str
    asks: str
    measure: Callable[[Bench, Shapes], Finding]
    comparisons: int = 0
    shapes: Shapes = SMALL
    shrinks: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to a probe's question.

    Attributes:
        probe: the probe's name.
        asks: its question.
        verdict: one of `VERDICTS`.
        within: relative error that would have been seen; None for exact properties.
        measured: value of the statistic.
        reference: its true value.
        low: lower end of its 95 % interval.
        high: upper end.
        z: largest z-score.
        limit: |z| above which the suite says wrong.
        evaluations: of the loss.
        seconds: that the probe took.
        case: the smallest failing case; "" unless wrong.
        note: what was seen, or why nothing was.
        failed: whether the optimizer raised, or took too long.
    """

    probe: str
    asks: str
    verdict: str
    note: str
    within: float | None = None
    measured: float | None = None
    reference: float | None = None
    low: float | None = None
    high: float | None = None
    z: float | None = None
    limit: float | None = None
    evaluations: int = 0
    seconds: float = 0.0
    case: str = ""
    failed: bool = False

    def __str__(self) -> str:
        verdict = self.verdict
        if self.within is not None and verdict == "right within":
            verdict = f"right within {100 * self.within:.2g} %"
        text = f"{self.probe:<14} {verdict}: {self.note}"
        if self.z is not None:
            text += f"; z = {self.z:.1f}"
        if self.case:
            text += f"; smallest failing case: {self.case}"
        return text
