#!/usr/bin/env bash
# torch 2.13.0: torch.optim.Adafactor in bfloat16 takes steps that shrink with the gradient, up to thousands of times too small.
#
# Guess: Adafactor divides gradients by their root mean squares, so that multiplying the loss by a number changes no step, and
#        bfloat16 weights move as float32 ones do, to rounding, as with transformers.Adafactor; eps only keeps 0 from being a divisor.
# Seen:  eps1 is the resolution of the weights' dtype, 0.0078 in bfloat16, where the paper has 1e-30, and is a floor under root mean
#        squares. With gradients of 1e-2 and more, steps are right. Below, they shrink faster than the gradient: at 1e-3 they
#        are 9 times, at 1e-4 200 times, at 1e-5 8000 times too small. In a mixed group the dtype of the first parameter decides for
#        all: float32 weights behind a bfloat16 one stand still, too. The paper's own eps1, (1e-30, 1e-3), turns a row without a
#        gradient into nan, as its square is 0 in either dtype; 1e-15 is right for all. No warning.
# Who meets it: whoever saves memory twice, by Adafactor and bfloat16, on a pretrained model, where most entries of a gradient
#        are below 1e-3, and takes the flat curve for a learning rate that is too small.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import torch
import transformers

BF16, FP32 = torch.bfloat16, torch.float32
SHAPE = (64, 48)


def of_torch(parameters, **options):
    return torch.optim.Adafactor(parameters, lr=0.01, **options)


def of_transformers(parameters):
    return transformers.Adafactor(parameters, lr=0.01, relative_step=False, scale_parameter=True, warmup_init=False)


def moved(make, scale, dtypes, empty_row=False, **options):
    """By how much 10 steps move weights of each dtype, whose gradients have entries of about scale."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter((0.1 * torch.randn(SHAPE)).to(dtype)) for dtype in dtypes]
    starts = [weight.detach().float().clone() for weight in weights]
    optimizer = make(weights, **options)
    for _ in range(10):
        for weight in weights:
            gradient = scale * torch.randn(SHAPE)
            if empty_row:
                gradient[0] = 0.0
            weight.grad = gradient.to(weight.dtype)
        optimizer.step()
    return [float((weight.detach().float() - start).norm()) for weight, start in zip(weights, starts)]


ratios = {}
for scale in (1.0, 1e-2, 1e-3, 1e-4, 1e-5):
    (reference,) = moved(of_torch, scale, [FP32])
    peer = [moved(of_transformers, scale, [dtype])[0] / reference for dtype in (FP32, BF16)]
    (narrow,) = moved(of_torch, scale, [BF16])
    ratios[scale] = narrow / reference
    print(f"gradients of {scale:g}: torch bfloat16 moves {ratios[scale]:.2g} times as far as float32; transformers {peer[0]:.2f}, {peer[1]:.2f}")
    assert all(abs(ratio - 1) < 0.05 for ratio in peer), "transformers' Adafactor depends on the scale, too"
assert all(abs(ratios[scale] - 1) < 0.1 for scale in (1.0, 1e-2)), "large gradients give other steps, too"
assert ratios[1e-3] < 0.2 and ratios[1e-4] < 0.02 and ratios[1e-5] < 1e-3, "small gradients give full steps now"

alone = moved(of_torch, 1e-4, [FP32])[0]
behind, before = moved(of_torch, 1e-4, [BF16, FP32])[1] / alone, moved(of_torch, 1e-4, [FP32, BF16])[1] / alone
print(f"float32 behind a bfloat16 parameter moves {behind:.2g} times as far as alone; bfloat16 behind float32 {before:.2f} times")
assert behind < 0.02 and abs(before - 1) < 0.1, "each parameter has the eps of its dtype now"

for eps in (1e-30, 1e-15):
    shift = [moved(of_torch, 1e-4, [dtype], empty_row=True, eps=(eps, 1e-3))[0] / alone for dtype in (FP32, BF16)]
    print(f"eps1 = {eps:g}, a row without a gradient: {shift[0]:.2g} in float32, {shift[1]:.2g} in bfloat16")
    assert all(value != value for value in shift) if eps == 1e-30 else all(abs(value - 1) < 0.1 for value in shift)
PY
