"""Curvature of a GPT-2- and a Llama-shaped model, random weights, along a training loop of one's own.

The hook measures before the update of steps 0 and 5, on the step's own minibatch, and changes nothing of the training.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from smoothlab import SmoothnessHook, partition

VOCABULARY, STEPS = 99, 6


def models() -> dict[str, PreTrainedModel]:
    """Small models of both shapes; eager attention has the second derivative that exact products need."""
    torch.manual_seed(0)
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, attn_implementation="eager", bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    return {"gpt2": GPT2LMHeadModel(gpt2), "llama": LlamaForCausalLM(llama)}


def train(name: str, model: PreTrainedModel) -> None:
    """Train for a few steps with AdamW, and print the norm of each layer's Hessian."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    hook = SmoothnessHook(model, partition(model, by="layer"), at=[0, STEPS - 1])
    for step in range(STEPS):
        # Tokens from 1 on: 0 is padding, whose embedding gets no gradient.
        tokens = torch.randint(1, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(step))

        def compute(tokens: torch.Tensor = tokens) -> torch.Tensor:
            loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
            return loss

        hook(step, compute)
        optimizer.zero_grad()
        compute().backward()
        optimizer.step()
    hook.close()
    for row in hook.rows:
        if row["quantity"] == "frobenius":
            interval = f"{row['low']:.3g} to {row['high']:.3g}"
            print(f"{name} step {row['step']} {row['block']}: ||H||_F = {row['value']:.3g} ({interval})")


if __name__ == "__main__":
    for shape, network in models().items():
        train(shape, network)
