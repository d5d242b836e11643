"""Models whose code takes a narrower number format for granted: it is put right, and told."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.export import save
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
        expected = bool(said) and dtype == torch.float64
        if kind == "gemma2":  # transformers below 5.21 gives it another attention, whose softmax is in float64
            expected = expected and loaded.model.config._attn_implementation == "eager"
        assert any(note.startswith(said) for note in loaded.notes if said) == expected
    assert losses[torch.float64] == pytest.approx(losses[torch.float32], rel=1e-5)


def test_rwkv_is_saved_with_the_weights_that_it_was_loaded_with(tmp_path: Path) -> None:
    """transformers would have halved those of the last two blocks at the first evaluation, and saved them so."""
    original = causal("rwkv", vocab_size=4096, num_hidden_layers=4, rescale_every=2)
    original.save_pretrained(tmp_path / "hub")  # type: ignore[operator]
    tokenizer().save_pretrained(tmp_path / "hub")
    loaded = load_lm(str(tmp_path / "hub"), seed=0)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits
        torch.testing.assert_close(logits, original.train()(input_ids=ids).logits)  # it has no dropout
        save(loaded.model, loaded.tokenizer, tmp_path / "out", base=True)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()
        torch.testing.assert_close(again(input_ids=ids).logits, logits)
    assert any(note.startswith("rescale_every") for note in loaded.notes)
