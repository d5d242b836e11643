#!/usr/bin/env bash
# transformers 5.23.0: min_lr and lr_end of its schedules are shares of defaults["lr"]: groups with rates of their own end elsewhere.
#
# Guess: cosine_with_min_lr ends at min_lr, "the minimum learning rate to reach", and polynomial at lr_end, whatever rates the groups
#        begin with; or, as a group has a factor of its own, each group ends at the same share of its rate.
# Seen:  min_lr and lr_end are divided by optimizer.defaults["lr"], and each group's rate is multiplied by the quotient. Where all groups have
#        rates of their own, and AdamW is given none beside them, the divisor is AdamW's default, 1e-3, which no weight is trained
#        with: groups of 1e-5 and 2e-5 with min_lr=1e-6 end at 1e-8 and 2e-8, 100 and 50 times too low; so with lr_end
#        and polynomial. If lr=1e-5 is given, which changes no group, they end at 1e-6 and 2e-6. With peft's LoRA+ at 2e-5 and a
#        ratio of 16, min_lr=1e-6 is kept by A, while B ends at 1.6e-5. min_lr_rate is a share, and is kept by all. No warning.
# Who meets it: whoever trains with two learning rates (base model and adapter, LoRA+, layer by layer), and a floor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn -e "Failed to load" >&2)
import math

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer

STEPS, FLOOR = 100, 1e-6


def groups(rates):
    return [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]


def final(optimizer, name, **options):
    """The rates of groups that have parameters, after the last step."""
    schedule = transformers.get_scheduler(name, optimizer, 10, STEPS, scheduler_specific_kwargs=options)
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
    return [group["lr"] for group in optimizer.param_groups if group["params"]]


def agree(found, expected):
    return all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(found, expected, strict=True))


def loraplus():
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, pad_token_id=0
    )
    model = get_peft_model(transformers.LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj"]))
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=2e-5, loraplus_lr_ratio=16)


CASES = {
    "groups with rates 1e-5 and 2e-5": (lambda: torch.optim.AdamW(groups((1e-5, 2e-5))), (1e-8, 2e-8)),
    "the same and lr=1e-5": (lambda: torch.optim.AdamW(groups((1e-5, 2e-5)), lr=1e-5), (1e-6, 2e-6)),
    "LoRA+ at 2e-5, ratio 16": (loraplus, (1e-6, 1.6e-5)),
}
for case, (make, expected) in CASES.items():
    start = [group["lr"] for group in make().param_groups if group["params"]]
    for name, option in (("cosine_with_min_lr", "min_lr"), ("polynomial", "lr_end")):
        found = final(make(), name, **{option: FLOOR})
        print(f"{case}: {name} with {option}={FLOOR:g} ends at", *(f"{rate:.3g}" for rate in found))
        assert agree(found, expected), f"{name} has another floor now"
    share = final(make(), "cosine_with_min_lr", min_lr_rate=0.1)
    assert agree(share, [0.1 * rate for rate in start]), "min_lr_rate is no share of each group's rate now"
PY
