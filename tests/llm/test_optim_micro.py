"""HybridSGD on `micro` with LoRA: the iterates of a dense reference, and the memory of the base model's gradient."""

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.llm.adapters import attach
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import ZerothOrder


def flat(block: Block) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in block.params])


def test_iterates_are_the_dense_references() -> None:
    model = attach(load_lm("micro", seed=0, dtype=torch.float64).model, "lora", seed=0)
    blocks = partition(model)
    tokens = torch.arange(40).reshape(4, 10) + 100
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def loss() -> Tensor:
        logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())

    def at(x: Tensor, y: Tensor, differentiate: bool = False) -> Tensor:
        """The loss, or its gradient of y, with x and y written into the weights."""
        for block, values in ((blocks["base"], x), (blocks["peft"], y)):
            for p, part in zip(block.params, block.views(values), strict=True):
                p.data.copy_(part)
        with torch.set_grad_enabled(differentiate):
            value = loss()
        if not differentiate:
            return value
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, blocks["peft"].params)])

    zeroth = ZerothOrder(1e-3)
    groups = [
        {"params": blocks["base"].params, "lr": 1e-4, "oracle": zeroth, "name": "base"},
        {"params": blocks["peft"].params, "lr": 1e-1, "name": "peft"},
    ]
    optimizer, x, y = HybridSGD(groups, seed=2), flat(blocks["base"]), flat(blocks["peft"])
    for step in range(2):
        at(x, y)
        z = zeroth.distribution.draw(blocks["base"], (2, step, 0, 0))
        slope = float(at(x + 1e-3 * z, y) - at(x - 1e-3 * z, y)) / 2e-3
        g_y = at(x, y, differentiate=True)
        at(x, y)  # the optimizer starts from the reference's point
        x, y = x - 1e-4 * slope * z, y - 1e-1 * g_y
        optimizer.step(loss)
        torch.testing.assert_close(flat(blocks["base"]), x, rtol=0, atol=1e-13)
        torch.testing.assert_close(flat(blocks["peft"]), y, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in blocks["base"].params)
