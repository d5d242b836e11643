"""Models loaded in float64: what transformers' code cannot do with it is put right, and told."""

from pathlib import Path

import pytest
import torch

from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.models import load_lm
from tests.llm.architectures import causal, rows
from tests.llm.tiny import tokenizer


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("llama", ""),
        ("mixtral", "experts: computed one after the other"),
        ("gemma2", "attention: eager, whose softmax"),
    ],
)
def test_losses_in_float64_are_those_in_float32(kind: str, said: str, tmp_path: Path) -> None:
    """A grouped product would raise, and the fp32 softmax of a padded row that sees no text would be nan."""
    causal(kind, vocab_size=4096).save_pretrained(tmp_path)  # type: ignore[operator]
    tokenizer().save_pretrained(tmp_path)
    minibatch = batch(rows("verbalizer"), range(5))
    losses = {}
    for dtype in (torch.float32, torch.float64):
        loaded = load_lm(str(tmp_path), seed=0, dtype=dtype)
        losses[dtype] = float(choice_loss(loaded.model, minibatch).detach())
        assert any(note.startswith(said) for note in loaded.notes if said) == bool(said and dtype == torch.float64)
    assert losses[torch.float64] == pytest.approx(losses[torch.float32], rel=1e-5)
