"""What the records of ``smoothlab finetune`` say, in sentences: accuracies, and where hybrid wins, ties or loses."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from smoothlab.report.plots_finetune import Kind, kinds, pooled
from smoothlab.stats.samples import paired


def reading(df: pd.DataFrame) -> list[str]:
    """Sentences for what is there.

    Raises:
        BadInput: the records are not those of ``smoothlab finetune``, or not of one model and task.
    """
    found = kinds(df)
    told = [_accuracy(kind) for kind in found] + compared(found)
    told += [f"{kind.name} ({kind.rates}): a trial was stopped, {why}." for kind in found for why in kind.stopped]
    served = {str(row["served"]) for kind in found for row in kind.test.values()}
    return told + [f"{text[:1].upper()}{text[1:]}." for text in sorted(served)]


def compared(found: list[Kind]) -> list[str]:
    """Every hybrid run against every other one, or every pair where none is hybrid, on the test items both saw."""
    hybrid = [kind for kind in found if kind.name.startswith("Hybrid-")]
    told = []
    for n, a in enumerate(found):
        for b in found[n + 1 :]:
            if hybrid and a not in hybrid and b not in hybrid:
                continue
            one, other = (b, a) if b in hybrid and a not in hybrid else (a, b)
            if line := _difference(one, other):
                told.append(line)
    return told


def _accuracy(kind: Kind) -> str:
    name = f"{kind.name} ({kind.rates})"
    if not kind.test:
        last = {seed: rows.iloc[-1] for seed, rows in kind.dev.items()}
        each = ", ".join(f"{100 * row['accuracy']:.1f} % at step {row['step']:.0f}" for row in last.values())
        return f"{name}: {'stopped before a test' if kind.stopped else 'not tested yet'}; dev accuracy {each}."
    mean, low, high = pooled(kind)
    rows = list(kind.test.values())
    steps = ", ".join(f"{row['steps_to_best']:.0f}" for row in rows)
    alone = ", ".join(f"{100 * row['accuracy']:.1f}" for row in rows)
    each = f" ({alone})" if len(rows) > 1 else ""
    bars = {"chance": float(rows[0].get("chance", 0)), "the larger class": float(rows[0].get("majority", 0))}
    bar = max(bars, key=lambda name: bars[name])
    above = "" if low > bars[bar] else f", not above {bar} ({100 * bars[bar]:.1f} %)"
    seeds = f"{len(rows)} seeds" if len(rows) > 1 else "one seed"
    return (
        f"{name}: {100 * mean:.1f} %{each} of {rows[0]['count']:.0f} test items, {seeds}, {100 * low:.1f} to "
        f"{100 * high:.1f} % for the items alone{above}; best dev accuracy first at step {steps}."
    )


def _difference(a: Kind, b: Kind) -> str | None:
    """Accuracy of a less that of b with its paired interval, and whether that is a win, a tie or a loss."""
    right_a, right_b = _answers(a.test), _answers(b.test)
    seeds = [seed for seed in right_a if seed in right_b and len(right_a[seed]) == len(right_b[seed])]
    if not seeds:
        return None
    d = paired([right_a[seed] for seed in seeds], [right_b[seed] for seed in seeds])
    verdict = "wins" if d.low > 0 else "loses" if d.high < 0 else "ties"
    items = len(right_a[seeds[0]])
    over = f"{items} items and {len(seeds)} seeds" if len(seeds) > 1 else f"{items} items, one seed"
    return (
        f"{_full(a, b)} {verdict} against {_full(b, a)}: {100 * d.value:+.1f} points ({100 * d.low:+.1f} to "
        f"{100 * d.high:+.1f}, paired over {over})."
    )


def _full(kind: Kind, other: Kind) -> str:
    return f"{kind.name} ({kind.rates})" if kind.name == other.name else kind.name


def _answers(test: Mapping[int, pd.Series]) -> dict[int, np.ndarray]:
    return {seed: np.array([int(c) for c in str(row["right"])]) for seed, row in test.items()}
