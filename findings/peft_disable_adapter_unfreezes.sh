#!/usr/bin/env bash
# peft 0.21.2: `with model.disable_adapter()` sets requires_grad of the adapter: what was frozen is trained afterwards.
#
# Guess: leaving the context restores what entering it changed: which adapter counts in the forward pass; requires_grad of
#        each parameter is as before.
# Seen:  leaving it sets requires_grad = True on every parameter of the active adapter. With lora_A frozen (as LoRA-FA trains
#        B alone), one evaluation of the base model under disable_adapter(), even under no_grad, unfreezes A: an
#        optimizer that holds all parameters moves A from then on. A module that was frozen throughout, as a reference
#        or so that the base model is trained beside it, is trainable again. So with IA3, VeRA, OFT, BOFT, LoHa, RoAd,
#        MiSS and LN tuning; prompt and prefix tuning leave requires_grad alone. No warning.
# Who meets it: whoever takes the base model's answers as a reference (KL terms, DPO, "before and after") while a part of the
#        adapter is frozen; numbers of trainable parameters, gradient norms and Hessian blocks change with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
)
ids = torch.arange(3, 20)[None]
LINEAR = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
CONFIGS = [
    peft.LoraConfig(**LINEAR), peft.IA3Config(feedforward_modules=[], **LINEAR), peft.VeraConfig(r=8, **LINEAR),
    peft.OFTConfig(oft_block_size=4, **LINEAR), peft.BOFTConfig(boft_block_size=4, **LINEAR), peft.LoHaConfig(**LINEAR),
    peft.RoadConfig(group_size=8, **LINEAR), peft.MissConfig(r=4, **LINEAR),
    peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
]  # fmt: skip


def adapted(adapter):
    torch.manual_seed(0)
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), adapter)


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


for adapter in CONFIGS:
    model = adapted(adapter)
    own = trainable(model)
    model.requires_grad_(False)
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=ids)
    print(f"{adapter.peft_type.value}: frozen throughout, then disabled once: {len(trainable(model))} of {len(own)} trainable")
    assert trainable(model) == (set() if adapter.is_prompt_learning else own), "disable_adapter restores it now"


def moved(disable):
    """Whether lora_A, which is frozen, moves in three steps that take the base model's answers as a reference."""
    model = adapted(CONFIGS[0])
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        if disable:
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=ids)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return any(not torch.equal(p, start[name]) for name, p in model.named_parameters() if name in start)


print("frozen lora_A moves: with references", moved(True), "without", moved(False))
assert moved(True) and not moved(False)
PY
