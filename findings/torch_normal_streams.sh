#!/usr/bin/env bash
# torch 2.13.0, CPU: a seed's normal numbers depend on how many are drawn, on their precision, and on strides.
#
# Guess: with one seed, randn(15) is the start of randn(16); float64 draws the same direction as float32 in more digits;
#        normal_() on a transposed tensor fills it with the same matrix; and seeds that differ give different numbers.
# Seen:  below 16 numbers and from 16 on there are two algorithms, which share no number. From 16 on, float64's numbers have
#        nothing to do with float32's (below, they are the same to rounding); those of bfloat16 and float16 are float32's,
#        rounded. Where the length is no multiple of 8, the last 16 numbers are drawn again: randn(17) has 1 of the 16 numbers of randn(16).
#        A tensor of 16 numbers or more that is not contiguous is filled by the algorithm for fewer, so that a transposed one
#        shares no number with its twin. Seeds 5 and 5 + 2^32 give the same numbers.
# Who meets it: whoever draws zeroth-order directions again from a seed (MeZO and its kin) tensor by tensor and compares with
#        one flat vector, checks a float32 implementation in float64, or makes seeds of more than 32 bits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import torch


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shared(short, long):
    """How many of the numbers of randn(short) stand at the same place in randn(long)."""
    return int((normal(short) == normal(long)[:short]).sum())


seen = {
    "8 in 15": shared(8, 15),
    "15 in 16": shared(15, 16),
    "16 in 17": shared(16, 17),
    "16 in 32": shared(16, 32),
    "20 in 32": shared(20, 32),
}
print("numbers of the shorter draw at their place in the longer one:", seen)
for dtype in (torch.float64, torch.bfloat16, torch.float16):
    for n in (15, 64):
        rounded = normal(n).to(dtype)
        correlation = torch.corrcoef(torch.stack([normal(n, dtype=dtype).double(), normal(n).double()]))[0, 1]
        seen[f"{dtype} {n}"] = torch.allclose(normal(n, dtype=dtype), rounded, rtol=0, atol=1e-6)
        print(f"{dtype}, {n} numbers: float32's {seen[f'{dtype} {n}']}, correlation {correlation:.2f}")
for seed in (5 + 2**32, 5 + 2**40):
    seen[seed] = torch.equal(normal(64, seed=5), normal(64, seed=seed))
    print(f"seeds 5 and {seed} are one: {seen[seed]}")
plain = torch.empty(4, 8).normal_(generator=torch.Generator().manual_seed(0))
turned = torch.empty(8, 4).t().normal_(generator=torch.Generator().manual_seed(0))
seen["twins share"] = int(torch.isin(turned, plain).sum())
seen["15 in transposed"] = int((turned.t().reshape(-1)[:15] == normal(15)).sum())
print(f"numbers that a transposed tensor shares with its twin: {seen['twins share']}; with randn(15): {seen['15 in transposed']}")
assert seen == {
    "8 in 15": 8, "15 in 16": 0, "16 in 17": 1, "16 in 32": 16, "20 in 32": 4,
    "torch.float64 15": True, "torch.float64 64": False, "torch.bfloat16 15": True, "torch.bfloat16 64": True,
    "torch.float16 15": True, "torch.float16 64": True, 5 + 2**32: True, 5 + 2**40: True,
    "twins share": 0, "15 in transposed": 15,
}  # fmt: skip
PY
