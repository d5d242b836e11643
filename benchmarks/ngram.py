"""Interpolated Kneser-Ney n-gram models: the yardstick for the pre-training of `micro`.

P_n(w | h) = max(c(h w) - D_n, 0) / c(h) + D_n N1+(h .) / c(h) P_{n-1}(w | h'), where h' drops the oldest token of
the history h, N1+(h .) counts the distinct tokens seen after h, and every order below the highest counts distinct
left contexts instead of occurrences (Chen and Goodman 1999, Eqs. (25) to (27)); D_n = n1 / (n1 + 2 n2).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


class KneserNey:
    """An n-gram model of order 1, 2 or 3 over token numbers below `vocabulary` (at most 2^21)."""

    def __init__(self, train: Tokens, order: int, vocabulary: int) -> None:
        if not 1 <= order <= 3 or vocabulary > 1 << 21:
            raise ValueError(f"order {order}, vocabulary {vocabulary}: order must be 1 to 3, vocabulary at most 2^21")
        self.order, self.vocabulary = order, vocabulary
        self.levels: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], float]] = []
        grams, counts = np.unique(self._keys(train, order), return_counts=True)
        for n in range(order, 0, -1):
            histories, first, inverse = np.unique(grams // vocabulary, return_index=True, return_inverse=True)
            totals = np.bincount(inverse, weights=counts)
            kinds = np.bincount(inverse)
            ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
            discount = ones / (ones + 2 * twos) if ones else 0.0
            self.levels.append((grams, counts.astype(float), histories, totals, kinds.astype(float), discount))
            if n > 1:  # continuation counts: distinct left neighbors of the shorter gram
                grams, counts = np.unique(grams % vocabulary ** (n - 1), return_counts=True)

    def _keys(self, tokens: Tokens, n: int) -> Tokens:
        keys = np.zeros(len(tokens) - n + 1, dtype=np.int64)
        for i in range(n):
            keys = keys * self.vocabulary + tokens[i : len(tokens) - n + 1 + i]
        return keys

    def nats_per_token(self, held_back: Tokens) -> float:
        """Mean -log P(w_i | w_{i-order+1..i-1}) over the tokens of `held_back` that have a full history."""
        keys = self._keys(held_back, self.order)
        p = np.full(len(keys), 1.0 / self.vocabulary)
        for n, (grams, counts, histories, totals, kinds, discount) in zip(
            range(1, self.order + 1), reversed(self.levels), strict=True
        ):
            gram = keys % self.vocabulary**n
            index = np.minimum(np.searchsorted(grams, gram), len(grams) - 1)
            count = np.where(grams[index] == gram, counts[index], 0.0)
            history = gram // self.vocabulary
            index = np.minimum(np.searchsorted(histories, history), len(histories) - 1)
            occurs = histories[index] == history
            total, kind = np.where(occurs, totals[index], 1.0), np.where(occurs, kinds[index], 0.0)
            discounted = np.where(occurs, np.maximum(count - discount, 0.0) / total, 0.0)
            p = discounted + np.where(occurs, discount * kind / total, 1.0) * p
        return float(-np.log(p).mean())
