"""Training, dev and test items of a run as tokens, and what judges a model on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import FinetuneOptions, Training
from smoothlab.llm import calibration
from smoothlab.llm.answers import CompletionScores, are_short, completion_scores
from smoothlab.llm.calibration import ContentFree
from smoothlab.llm.completions import encode_completions
from smoothlab.llm.encoding import Encoded, Loss, encode
from smoothlab.llm.evaluate import Accuracy, accuracy
from smoothlab.llm.models import LoadedModel
from smoothlab.llm.peft_methods import PEFT_METHODS
from smoothlab.llm.tasks import GENERATIVE, Choice, Splits

Judge = Callable[[Encoded], Accuracy | CompletionScores]
"""Function that scores a model, with its present weights, on items."""


@dataclass(frozen=True)
class Items:
    """The items of a run.

    Attributes:
        train: items to train on.
        dev: items to select by.
        test: items to test on.
        longest: number of tokens of a row, at most.
        content_free: content-free prompts of the test items, if these are calibrated.
    """

    train: Encoded
    dev: Encoded
    test: Encoded
    longest: int
    content_free: ContentFree | None

    @property
    def splits(self) -> tuple[Encoded, Encoded, Encoded]:
        """Training, dev and test items."""
        return self.train, self.dev, self.test


def tokenized(run: Training, splits: Splits, loaded: LoadedModel, kind: Loss) -> Items:
    """The items of `splits` as rows of `kind` that the model, with its module's virtual tokens, can read.

    Raises:
        BadInput: they cannot be encoded, or --calibrate is given where nothing is compared.
    """
    longest = loaded.max_length
    if run.module in PEFT_METHODS:
        longest -= PEFT_METHODS[run.module].virtual_tokens
    if run.max_length is not None:
        longest = min(longest, run.max_length)
    encoded: Callable[[Sequence[Choice]], Encoded]
    encoded = partial(encode, loaded.tokenizer, max_length=longest, kind=kind)
    if kind in GENERATIVE:
        encoded = partial(encode_completions, loaded.tokenizer, max_length=longest, kind=kind, chat=run.chat)
    train, dev, test = encoded(splits.train), encoded(splits.dev), encoded(splits.test)
    content_free = None
    if isinstance(run, FinetuneOptions) and run.calibrate:
        plurals = {"classifier": "classes", "completion": "completions", "text": "texts"}
        if kind in plurals:
            raise BadInput(
                f"--calibrate with {plurals[kind]}: it compares candidates that a language model scores, leave it out"
            )
        content_free = calibration.content_free(splits.test, encoded)
    return Items(train, dev, test, longest, content_free)


def judge(run: Training, items: Items, model: nn.Module, tokenizer: Any, mixed: bool) -> tuple[Judge, list[str]]:
    """The judge of the model, and a note where it generates answers; `mixed`: rows of different lengths together."""
    if items.dev.kind not in GENERATIVE:
        return partial(accuracy, model, mixed=mixed), []
    decode, notes = None, []
    if isinstance(run, FinetuneOptions) and are_short((items.dev, items.test), run.answer_tokens):
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        notes.append(f"answers of at most {run.answer_tokens} tokens are generated greedily on dev and test")
    scores = partial(completion_scores, model, mixed=mixed, decode=decode, max_length=items.longest)
    if isinstance(run, FinetuneOptions):
        scores = partial(scores, longest=run.answer_tokens)
    return scores, notes
