"""What a fine-tuned model is when it stands at weights of an earlier step."""

from pathlib import Path

import pytest
import torch
from torch import nn

from smoothlab.llm import adalora
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import accuracy, batch, choice_loss
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Trainer, reshuffled
from tests.llm.tiny import encoded, tiny_lm

ITEMS = encoded("verbalizer")


def trained(steps: int) -> Trainer:
    """AdaLoRA alone, by gradients, on a tiny OPT."""
    model = attach(tiny_lm("opt"), "adalora", seed=0)
    blocks = {"peft": partition(model)["peft"]}
    for p in model.parameters():
        p.requires_grad_(any(p is q for q in blocks["peft"].params))
    optimizer = HybridSGD([{"params": blocks["peft"].params, "lr": 0.1, "name": "peft"}], exact=torch.optim.Adam)

    def batches(step: int) -> list:
        return [batch(ITEMS, reshuffled(6, 2, 0, step))]

    return Trainer(model, blocks, batches, choice_loss, optimizer, steps=steps, allocator=adalora)


def ranked(model: nn.Module) -> int:
    return sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)


@pytest.mark.parametrize("best", [0, 2, 5, 20])
def test_adalora_is_saved_as_it_stands(tmp_path: Path, best: int) -> None:
    """Step 0 has no singular value yet, step 2 all of them, step 5 some that later steps gave up."""
    from peft import PeftModel

    run = trained(20)
    kept = run.weights()
    for _ in range(20):
        run.update()
        kept = run.weights() if run.step == best else kept
    assert ranked(run.model) == 32
    run.load_weights(kept, best)
    few, many = {0: (0, 0), 2: (48, 48), 5: (33, 47), 20: (32, 32)}[best]
    assert few <= ranked(run.model) <= many
    run.model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = PeftModel.from_pretrained(tiny_lm("opt"), tmp_path)
    one, two = (torch.tensor(accuracy(model, ITEMS).scores) for model in (run.model, again))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_a_run_that_goes_on_takes_back_the_schedules_ranks() -> None:
    """`load_state_dict` loads the weights, and the ranks that peft then masks are those of the schedule."""
    run, other = trained(20), trained(20)
    for _ in range(12):
        run.update()
    other.load_state_dict(run.state_dict())
    assert adalora.state(other.model).keys() == adalora.state(run.model).keys()
    for name, value in adalora.state(run.model).items():
        assert torch.equal(value, adalora.state(other.model)[name]), name
