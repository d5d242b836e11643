#!/usr/bin/env bash
# adapters 1.3.0: its VeRA trains whole matrices, more numbers than full fine-tuning; peft's VeRA trains two vectors.
#
# Guess: VeRA trains two vectors for each adapted matrix, one of r numbers and one of d: that is the method's point.
#        Below that is 288 numbers, which peft 0.21.2 trains.
# Seen:  vera_D and vera_B of adapters are whole matrices, r x r and d x d, that start as diagonal ones; nothing keeps
#        them diagonal. 16,640 numbers are trained below, more than the 16,384 weights of the adapted matrices; all
#        16,352 outside the diagonals have moved away from 0 after 50 steps of Adam. On the same model, batch and rate
#        the loss falls to 3.09, peft's to 3.67: another method, near to LoRA with a redundant factor.
# Who meets it: whoever compares VeRA with LoRA by trainable numbers, by memory of Adam's moments, by curvature of the
#        adapter's block, or by results of the two libraries.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 adapters==1.3.0 transformers==4.57.6 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v "none are activated" >&2)
import adapters
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, LAYERS, RANK = 64, 2, 8
ids = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def trained(model):
    """How far each trainable parameter moved in 50 steps of Adam on one batch, and the loss before the last step."""
    params = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    return [p.detach() - first for p, first in zip(params, start)], loss.item()


of_adapters = base()
adapters.init(of_adapters)
of_adapters.add_adapter("vera", config=adapters.VeraConfig(r=RANK))
of_adapters.train_adapter("vera")
of_peft = peft.get_peft_model(base(), peft.VeraConfig(r=RANK, target_modules=["q_proj", "v_proj"]))

matrices = 2 * LAYERS  # of the queries and of the values
print(f"weights in the {matrices} adapted matrices: {matrices * WIDTH**2}")
for name, model, per_matrix in (
    ("adapters", of_adapters, WIDTH**2 + RANK**2),
    ("peft", of_peft, WIDTH + RANK),
):
    moves, loss = trained(model)
    count = sum(move.numel() for move in moves)
    off_diagonal = [move - torch.diag(move.diagonal()) for move in moves if move.dim() == 2]
    outside = sum(int(move.count_nonzero()) for move in off_diagonal)
    shapes = sorted({tuple(move.shape) for move in moves})
    print(f"{name}: {count} trainable numbers, of shapes {shapes}; {outside} moved outside a diagonal; loss {loss:.3f}")
    assert count == matrices * per_matrix, f"{name} trains another number of numbers now"
    if name == "adapters":
        assert count > matrices * WIDTH**2 and outside > 0.9 * count, "it stays diagonal now"
PY
