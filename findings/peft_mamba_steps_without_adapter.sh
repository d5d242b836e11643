#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0: adapters on dt_proj of Mamba, Falcon-Mamba and Jamba have no effect until they are merged.
#
# Guess: an adapter on a linear layer that peft takes has a gradient, and merging it changes nothing but rounding. Where a Mamba
#        reads a layer's weight past the adapter, peft raises an error, as it does for LoRA on out_proj and conv1d.
# Seen:  the mixer multiplies by dt_proj.weight itself, which under an adapter is the base model's. LoRA, LoHa, IA3, MiSS and
#        FourierFT on dt_proj count as trainable, have gradients of None and leave the loss as it is; with x_proj beside them training
#        goes on. In Jamba, which peft does not check, LoRA on out_proj is taken, and "all-linear" includes dt_proj. An optimizer that
#        goes by gradients leaves B of LoRA at 0, and nothing happens. A zeroth-order one moves all that is trainable along its
#        directions: after 200 steps of MeZO on x_proj and dt_proj a Falcon-Mamba that is merged is off from the trained one
#        by 25 %, a Jamba by 120 % of what the adapter does. No warning.
# Who meets it: whoever adapts the step sizes of a state space model, and whoever trains its adapter by zeroth-order steps and merges.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn -e "fast path" >&2)
import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.1}
MODELS = {
    "mamba": transformers.MambaConfig(state_size=8, **SHAPE),
    "falcon_mamba": transformers.FalconMambaConfig(state_size=8, **SHAPE),
    "jamba": transformers.JambaConfig(
        intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, mamba_d_state=8, mamba_dt_rank=4, num_experts=2,
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False, **SHAPE,
    ),
}  # fmt: skip
BOTH = {"target_modules": ["x_proj", "dt_proj"]}
ADAPTERS = {
    "LoRA": peft.LoraConfig(r=2, **BOTH), "LoHa": peft.LoHaConfig(r=2, **BOTH), "MiSS": peft.MissConfig(r=1, **BOTH),
    "IA3": peft.IA3Config(feedforward_modules=[], **BOTH), "FourierFT": peft.FourierFTConfig(n_frequency=4, **BOTH),
}  # fmt: skip
torch.manual_seed(0)
ids = torch.randint(3, 60, (4, 20))


def adapted(name, adapter):
    torch.manual_seed(0)
    return peft.get_peft_model(transformers.AutoModelForCausalLM.from_config(MODELS[name]), adapter).eval()


def loss(model):
    return model(input_ids=ids, labels=ids).loss


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def mezo(model, steps=200, rate=0.1, mu=1e-3):
    """MeZO on everything that is trainable."""
    parameters = list(trainable(model).values())
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        z = [torch.randn(p.shape, generator=generator) for p in parameters]
        slope = 0.0
        for move, sign in ((mu, 1), (-2 * mu, -1)):
            for p, direction in zip(parameters, z):
                p.add_(direction, alpha=move)
            slope += sign * float(loss(model)) / (2 * mu)
        for p, direction in zip(parameters, z):
            p.add_(direction, alpha=mu - rate * slope)


names = trainable(adapted("jamba", peft.LoraConfig(r=2, target_modules="all-linear")))
assert any("dt_proj" in name for name in names), "all-linear leaves dt_proj out now"
for name in MODELS:
    for kind, adapter in ADAPTERS.items():
        model = adapted(name, adapter)
        for p in trainable(model).values():
            p.data.add_(torch.randn_like(p), alpha=0.1)
        value = loss(model)
        value.backward()
        seen = {part: {p.grad is not None for key, p in trainable(model).items() if part in key} for part in BOTH["target_modules"]}
        for key, p in trainable(model).items():
            if "dt_proj" in key:
                p.data.add_(1.0)
        assert seen == {"x_proj": {True}, "dt_proj": {False}} and loss(model) == value, f"{name}, {kind}: dt_proj is adapted now"
    print(f"{name}: {', '.join(ADAPTERS)} on dt_proj have no gradient and no effect")
    for target in ("dt_proj", "out_proj"):
        try:
            adapted(name, peft.LoraConfig(r=2, target_modules=[target]))
            verdict = "taken"
        except ValueError:
            verdict = "refused"
        print(f"{name}: LoRA on {target} is {verdict}")
        assert (verdict == "refused") == (target == "out_proj" and name != "jamba"), f"{name}: {target} is {verdict} now"
    if name == "mamba":
        continue
    with torch.no_grad():
        model = adapted(name, ADAPTERS["LoRA"])
        before = loss(model)
        mezo(model)
        trained, after = model(input_ids=ids).logits, loss(model)
        with model.disable_adapter():
            unit = (trained - model(input_ids=ids).logits).norm()
        off = float((model.merge_and_unload()(input_ids=ids).logits - trained).norm() / unit)
    print(f"{name}: MeZO takes the loss from {before:.2f} to {after:.2f}; merged, logits are off by {off:.0%} of what the adapter does")
    assert after < before - 0.02 and off > 0.1, "merging keeps the trained model now"
PY
