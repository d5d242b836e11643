"""Hybrid fine-tuning in a loop of one's own: zeroth-order steps on the base model, AdamW on LoRA, both at one point."""

import torch

from smoothlab import HybridSGD, ZerothOrder, partition
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss, encode
from smoothlab.llm.models import load_lm
from smoothlab.llm.tasks import load_choices

STEPS, BATCH = 30, 16


def main() -> None:
    """Train micro, the model in the package, on its own sentiment task, and print the mean loss every ten steps."""
    loaded, task = load_lm("micro", seed=0), load_choices("builtin")
    model = attach(loaded.model, "lora", seed=0)  # peft.get_peft_model does as well
    items = encode(loaded.tokenizer, task.train, loaded.max_length, task.kind)

    blocks = partition(model)
    optimizer = HybridSGD(
        [
            {"params": blocks["base"].params, "lr": 1e-4, "oracle": ZerothOrder(mu=1e-3), "name": "base"},
            {"params": blocks["peft"].params, "lr": 5e-3, "name": "peft"},
        ],
        exact=torch.optim.AdamW,
    )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    losses = []
    for step in range(STEPS):
        start = step * BATCH % (len(items) - BATCH)
        minibatch = batch(items, order[start : start + BATCH])
        # The closure computes the loss and nothing else: a step evaluates it two or three times.
        losses.append(float(optimizer.step(lambda minibatch=minibatch: choice_loss(model, minibatch))))
        if step % 10 == 9:
            print(f"steps {step - 8} to {step + 1}: mean loss {sum(losses[-10:]) / 10:.4f}")


if __name__ == "__main__":
    main()
