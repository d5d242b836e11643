"""Two methods on the same test items: the difference of their accuracies with a 95 % interval."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from smoothlab.stats.intervals import LEVEL, Interval


def paired(a: ArrayLike, b: ArrayLike) -> Interval:
    """Accuracy of a less that of b, from right (1) and wrong (0) answers to the same items.

    d_si = a_si - b_si for seed s and item i. Items vary and so do seeds: V = V_items + V_seeds, V_items the variance of
    the mean over items of their means over seeds, V_seeds that over seeds of their means over items (0 for one seed,
    whose interval then tells nothing of other seeds). What both share is counted twice, so V is a little large.
    Student's t with Satterthwaite's degrees of freedom. Two items are added, one right for a alone and one for b alone
    (Bonett and Price 2012): without them few disagreements make the interval too short, and none make it a point.

    Args:
        a: answers of the first method, [seeds, items].
        b: those of the second, same seeds, same items.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    seeds, items = d.shape
    added = np.concatenate([d, np.full((seeds, 1), 1.0), np.full((seeds, 1), -1.0)], 1)
    by_item = float(added.mean(0).var()) / (items + 2)
    by_seed = float(d.mean(1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    total = by_item + by_seed
    dof = total**2 / (by_item**2 / (items + 1) + (by_seed**2 / (seeds - 1) if seeds > 1 else 0.0))
    half = float(stats.t.ppf((1 + LEVEL) / 2, dof)) * total**0.5
    middle = float(added.mean())
    return Interval(float(d.mean()), middle - half, middle + half)
