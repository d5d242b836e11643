"""Calibrated scores: candidates' log-probabilities less those after a prompt without content.

A language model prefers some words whatever it reads: SmolLM2 answers "great" to nearly all sentences of SST-2. What it
prefers shows after a content-free prompt, as "N/A It was", and is taken off,

    s'_c = s_c - 1/|o_c| sum_k log p(o_ck | content-free prompt, o_c1 .. o_c,k-1),

with the score s_c of `smoothlab.llm.evaluate`. For candidates of one token this is contextual calibration with a single
content-free input (Zhao et al. 2021, arXiv:2102.09690), and for candidates of equally many tokens their domain
conditional pointwise mutual information (Holtzman et al. 2021, arXiv:2104.08315) over that number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smoothlab.llm.encoding import Encoded
from smoothlab.llm.evaluate import Accuracy
from smoothlab.llm.tasks import Choice


@dataclass(frozen=True)
class ContentFree:
    """Content-free prompts of some items with their candidates, each once.

    Attributes:
        encoded: the distinct ones.
        number: for each item the number of its prompt.
    """

    encoded: Encoded
    number: tuple[int, ...]


def content_free(items: Sequence[Choice], encode: Callable[[Sequence[Choice]], Encoded]) -> ContentFree:
    """The items' content-free prompts, tokenized by `encode`."""
    distinct: dict[tuple[str, tuple[str, ...]], int] = {}
    number = [distinct.setdefault((item.content_free, item.candidates), len(distinct)) for item in items]
    return ContentFree(encode([Choice(prompt, candidates, 0) for prompt, candidates in distinct]), tuple(number))


def calibrated(result: Accuracy, prior: Sequence[Sequence[float]], labels: Sequence[int]) -> Accuracy:
    """Accuracy by calibrated scores.

    Args:
        result: plain scores of the items.
        prior: scores of each item's candidates after its content-free prompt.
        labels: number of the right candidate of each item.
    """
    scores, predictions, correct = [], [], 0
    for candidates, prior_scores, label in zip(result.scores, prior, labels, strict=True):
        shifted = tuple(score - prior_score for score, prior_score in zip(candidates, prior_scores, strict=True))
        prediction = shifted.index(max(shifted))
        scores.append(shifted)
        predictions.append(prediction)
        correct += prediction == label
    return replace(result, correct=correct, predictions=tuple(predictions), scores=tuple(scores))


def row(result: Accuracy, labels: Sequence[int]) -> dict[str, Any]:
    """The columns of a record of the test, beside those of the plain accuracy."""
    low, high = result.interval
    right = "".join(str(int(p == label)) for p, label in zip(result.predictions, labels, strict=True))
    return {
        "calibrated_accuracy": result.value, "calibrated_low": low, "calibrated_high": high, "calibrated_right": right,
    }  # fmt: skip
