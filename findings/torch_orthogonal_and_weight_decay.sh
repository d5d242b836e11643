#!/usr/bin/env bash
# torch 2.13.0: a step with weight decay sets a rectangular orthogonal() weight to 0 for good, a perturbation half.
#
# Guess: a weight under torch.nn.utils.parametrizations.orthogonal is orthogonal whatever its parameter is: weight decay
#        pulls it to another orthogonal matrix, and a perturbation of 1e-3 moves it by about as much.
# Seen:  true of square matrices and of the maps matrix_exp and cayley. A rectangular matrix takes the map householder,
#        which keeps signs (-1 at first) on the diagonal of its parameter and reads them as int(). The gradient there is
#        0, so that steps without decay are right. With decay, AdamW's own 0.01 too, -1 becomes -0.99999, int() of that
#        is 0: after the first step the whole weight is 0, its gradient is 0, and it stays so. A perturbation, as
#        zeroth-order steps and difference quotients make, sets a vector to 0 wherever it moves the sign toward 0: about
#        half of them. LoReFT of adapters 1.3.0 has such a projection: after one AdamW step the adapter is the base
#        model to the bit, for good, without a warning; with weight_decay=0 it learns.
# Who meets it: whoever trains LoReFT, a low-rank projection or a rotation with AdamW as it comes, or with zeroth-order
#        steps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 adapters==1.3.0 transformers==4.57.6 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import adapters
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal
from transformers import LlamaConfig, LlamaForCausalLM

OPTIMIZERS = {
    "Adam": lambda params: torch.optim.Adam(params, 1e-3),
    "AdamW, weight_decay=0": lambda params: torch.optim.AdamW(params, 1e-3, weight_decay=0.0),
    "AdamW": lambda params: torch.optim.AdamW(params, 1e-3),
    "SGD, weight_decay=1e-4": lambda params: torch.optim.SGD(params, 1e-3, weight_decay=1e-4),
}


def layer(rows, columns, kind):
    torch.manual_seed(0)
    return orthogonal(nn.Linear(columns, rows, bias=False), orthogonal_map=kind)


for rows, columns, kind in ((16, 64, None), (64, 16, None), (64, 64, None), (16, 64, "cayley"), (16, 64, "matrix_exp")):
    householder = kind is None and rows != columns
    right, inputs = min(rows, columns) ** 0.5, torch.randn(5, columns)
    for name, make in OPTIMIZERS.items():
        module = layer(rows, columns, kind)
        optimizer = make(module.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            (module(inputs) - 1).square().mean().backward()
            optimizer.step()
        norm = module.weight.norm().item()
        gradient = module.parametrizations.weight.original.grad.norm().item()
        print(f"{rows} x {columns}, map {kind}, 3 steps of {name}: norm {norm:.4f} (right: {right:.4f}),",
              f"gradient {gradient:.1e}")
        dead = householder and name in ("AdamW", "SGD, weight_decay=1e-4")
        assert (norm == 0 and gradient == 0) if dead else abs(norm / right - 1) < 1e-5, "otherwise now"
    module = layer(rows, columns, kind)
    with torch.no_grad():
        module.parametrizations.weight.original.add_(torch.randn(rows, columns), alpha=1e-3)
    kept = round(module.weight.norm().item() ** 2)
    print(f"{rows} x {columns}, map {kind}, perturbed by 1e-3: {kept} of {min(rows, columns)} vectors are left")
    assert (0 < kept < min(rows, columns)) == householder, "perturbed, it is otherwise now"

ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(1))
for decay in (0.0, 0.01):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config)
    base = model.eval()(ids).logits
    adapters.init(model)
    model.add_adapter("reft", config=adapters.LoReftConfig(r=4, prefix_positions=9))
    model.train_adapter("reft")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=decay)
    losses, same = [], []
    for _ in range(100):
        optimizer.zero_grad()
        model.train()(ids, labels=ids).loss.backward()
        optimizer.step()
        output = model.eval()(ids, labels=ids)
        losses.append(output.loss.item())
        same.append(torch.equal(output.logits, base))
    print(f"LoReFT, weight_decay {decay}: loss after 1 and 100 steps {losses[0]:.5f}, {losses[-1]:.5f};",
          "the base model to the bit" if all(same) else "another model than the base model")
    assert all(same) if decay else not any(same) and losses[-1] < losses[0] - 0.05, "LoReFT is otherwise now"
PY
