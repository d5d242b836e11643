"""Hybrid fine-tuning in an accelerate loop, in one process or in several (torchrun, accelerate launch)."""

import itertools
from functools import partial

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from smoothlab import HybridSGD, ZerothOrder, partition
from smoothlab.llm.adapters import attach
from smoothlab.llm.distributed import Peers
from smoothlab.llm.evaluate import batch, choice_loss, encode
from smoothlab.llm.models import load_lm
from smoothlab.llm.tasks import load_choices

STEPS, ACCUMULATED, BATCH = 30, 2, 8


def main() -> None:
    """Train micro, the model in the package, on its own sentiment task, and print the mean loss every ten steps."""
    accelerator = Accelerator()
    loaded, task = load_lm("micro", seed=0), load_choices("builtin")
    items = encode(loaded.tokenizer, task.train, loaded.max_length, task.kind)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(range(len(items)), BATCH, shuffle=True, generator=generator, collate_fn=partial(batch, items))
    # With evaluation_mode there is no DistributedDataParallel around the model: HybridSGD adds up over processes.
    model = accelerator.prepare_model(attach(loaded.model, "lora", seed=0), evaluation_mode=True)
    loader = accelerator.prepare(loader)

    blocks = partition(model)
    optimizer = HybridSGD(
        [
            {"params": blocks["base"].params, "lr": 1e-4, "oracle": ZerothOrder(mu=1e-3), "name": "base"},
            {"params": blocks["peft"].params, "lr": 5e-3, "name": "peft"},
        ],
        exact=torch.optim.AdamW,
    )
    if accelerator.num_processes > 1:
        optimizer.peers = Peers()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    minibatches = itertools.chain.from_iterable(itertools.repeat(loader))
    losses = []
    for step in range(STEPS):
        # Both gradients are of the mean loss of the accumulated minibatches: one direction for all of them.
        parts = [partial(choice_loss, model, minibatch) for minibatch in itertools.islice(minibatches, ACCUMULATED)]
        losses.append(float(optimizer.backward(parts)))
        accelerator.clip_grad_norm_(blocks["peft"].params, 1.0)  # the exact gradient alone
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            accelerator.print(f"steps {step - 8} to {step + 1}: mean loss {sum(losses[-10:]) / 10:.4f}")


if __name__ == "__main__":
    main()
