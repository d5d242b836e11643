"""The trace of a Hessian block to a precision that is asked for, or the products that it would take.

With Q the basis of a deflation and B = (I - Q'Q) H (I - Q'Q), tr H = tr(Q H Q') + tr B, and a Gaussian probe g
orthogonal to Q gives g'Bg with mean tr B and variance 2 ||B||_F^2 (Hutchinson 1989; Avron and Toledo 2011). The 95 %
interval after m probes has the half-width Z sqrt(2 ||B||_F^2 / m), so that a relative precision p takes about
    m = 2 (Z ||B||_F / (p tr H))^2
probes. Where the spectrum has both signs, as that of large trained models, eigenvalues cancel in the trace and not in
||B||_F: m may be thousands, and it is better to know that than to wait for it.
"""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from smoothlab.hessian.estimates import NOT_REACHED, NormEstimate, TraceEstimate
from smoothlab.stats.intervals import Interval, Z
from smoothlab.stats.probes import mean_of_forms

if TYPE_CHECKING:
    from smoothlab.hessian.deflation import Deflation


def trace_probes(value: float, square: float, precision: float) -> float:
    """Probes m at which Z sqrt(2 `square` / m) = `precision` |`value`|; infinite for a value of 0.

    >>> round(trace_probes(value=10.0, square=50.0, precision=0.2))
    96
    """
    if value == 0.0:
        return math.inf
    return 2 * square * (Z / (precision * value)) ** 2


def half_width_reached(interval: Interval, precision: float) -> bool:
    """Whether the half-width of an interval is at most `precision` of its value's modulus."""
    return (interval.high - interval.low) / 2 <= precision * abs(interval.value)


def trace_interval(run: "Deflation") -> Interval:
    """Interval of tr H from a deflation and its probes."""
    _, probed = run.frobenius_squared()
    return mean_of_forms(run.forms, probed.high, float(run.projected().trace()))


def probe_trace(run: "Deflation", precision: float, budget: int) -> None:
    """Probe on until the trace's interval is short enough, as long as that seems possible within `budget` products."""
    while not run.complete and run.hvps < budget:
        interval = trace_interval(run)
        needed = trace_probes(interval.value, run.frobenius_squared()[1].value, precision)
        # Hopeless probing would spend the whole budget on every block at every point, and say the same.
        if half_width_reached(interval, precision) or run.hvps - len(run.forms) + needed > budget:
            return
        run.probe()


def with_precision(
    estimate: NormEstimate, square: float, probes: int, precision: float, floor: float = 0.0
) -> TraceEstimate:
    """A trace's estimate, flagged with the products that it would need where it misses the precision.

    Args:
        estimate: the trace, from `probes` probes among its products.
        square: estimate of ||B||_F^2, half the variance of a probe.
        probes: probes m that the interval rests on.
        precision: half-width asked for, as a fraction of |trace|.
        floor: part of the half-width that is rounding, which more probes would not lower.
    """
    interval = Interval(estimate.value, estimate.low + floor, estimate.high - floor)
    fields = asdict(estimate)
    if half_width_reached(interval, precision):
        return TraceEstimate(**fields)
    needed = trace_probes(estimate.value, square, precision)
    if math.isfinite(needed):
        # The interval rests on an upper limit of ||B||_F^2: the next probe may be the last, but there is one.
        fields["needed"] = max(estimate.hvps - probes + math.ceil(needed), estimate.hvps + 1)
    fields["flag"] = ", ".join(filter(None, [estimate.flag, NOT_REACHED]))
    return TraceEstimate(**fields)
