#!/usr/bin/env bash
# torchao 0.18.0: its 8-bit AdamW takes steps of thousands of learning rates where gradients in a block differ by 1000.
#
# Guess: quantized states change steps by some percent, with 4 bits more than with 8. None is longer than 3.2 learning rates, Adam's
#        bound (1 - beta1) / sqrt(1 - beta2), whatever gradients are; at worst, weights whose gradients are small move too little.
# Seen:  so it is with AdamW4bit, with bitsandbytes' AdamW8bit (0.50.2, on a CPU), and where gradients are of one size. torchao's
#        AdamW8bit rounds squares below about 3e-7 of the largest one in their block of 256 to 0, AdamWFp8 those below 2e-6, and the
#        first moment goes on, as it is not squared: m / sqrt(v) has the last gradient alone in v. With one input feature that is 300
#        times as large as the others a step of 300 learning rates occurs within 100 steps (AdamWFp8: 46,000), with
#        1000 times one of 6,600 (3e6), in weights of the other features. The map of 4 bits has no 0 for squares. No warning.
# Who meets it: whoever fine-tunes layers behind activations with outliers, as language models have them, with 8-bit states, and
#        takes the divergence for a learning rate that is too large.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchao==0.18.0 bitsandbytes==0.50.2 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY' 2> >(grep -v -e "Failed to load" -e pytree -e Warning -e warn >&2)
import bitsandbytes
import torch
from torchao import optim

torch.compiler.set_stance("force_eager")  # the same steps without a compiler
RATE = 1e-3
BOUND = 0.1 / 0.001**0.5


def steps(make, outlier):
    """The longest of 100 steps of any weight, and the length of all together, of weights whose input is no outlier."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64, bias=False)
    start = layer.weight.detach().clone()
    optimizer = make(layer.parameters(), lr=RATE, weight_decay=0.0)
    longest = 0.0
    for _ in range(100):
        inputs = torch.randn(32, 256)
        inputs[:, 0] *= outlier
        optimizer.zero_grad()
        (layer(inputs) * torch.randn(32, 64)).sum().backward()
        before = layer.weight.detach().clone()
        optimizer.step()
        longest = max(longest, float((layer.weight.detach() - before)[:, 1:].abs().max()))
    return longest / RATE, float((layer.weight.detach() - start)[:, 1:].norm())


makers = {
    "torch AdamW": torch.optim.AdamW, "torchao AdamW8bit": optim.AdamW8bit, "torchao AdamWFp8": optim.AdamWFp8,
    "torchao AdamW4bit": optim.AdamW4bit, "bitsandbytes AdamW8bit": bitsandbytes.optim.AdamW8bit,
}  # fmt: skip
for name, make in makers.items():
    for outlier in (1, 300, 1000):
        longest, total = steps(make, outlier)
        print(f"{name}, a feature times {outlier}: longest step {longest:.3g} learning rates, all together {total:.2g}")
        unbounded = name in ("torchao AdamW8bit", "torchao AdamWFp8") and outlier > 1
        assert (longest > {300: 50, 1000: 1000}[outlier]) if unbounded else (longest < BOUND), f"{name} steps otherwise now"
PY
