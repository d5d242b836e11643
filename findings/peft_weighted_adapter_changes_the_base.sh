#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter over a PiSSA or OLoRA adapter changes the base model, and with it the adapter it reads.
#
# Guess: add_weighted_adapter(["default"], [1.0], "new", "cat"), which the documentation calls precise, makes a copy of the adapter
#        and touches nothing else, whatever the adapter was started from.
# Seen:  the new adapter is made with the first one's configuration. With init_lora_weights "pissa", "pissa_niter_4" or "olora" it
#        is therefore started like it, which once more takes principal parts (or Q R) out of the base model's weights: the base
#        model, the adapter "default" and the copy all compute something else afterwards, and deleting the new adapter
#        does not bring the old model back. What else is inherited: with use_rslora the copy counts sqrt(r) times,
#        with use_dora it has magnitudes of its own, with lora_bias, modules_to_save or trainable tokens it is
#        without them. LoRA, its Gaussian and orthogonal starts, and rank and alpha patterns are copied exactly. No warning.
#        Known for use_rslora, lora_bias and DoRA: https://github.com/huggingface/peft/issues/3761.
# Who meets it: whoever averages adapters of several seeds or tasks (all types of combination do it), or subtracts
#        one, and compares the mixture with what it was made of.
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
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)
ids = torch.arange(3, 20)[None]
EXACT = [{}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, {"rank_pattern": {"q_proj": 2}}]
STARTS = [{"init_lora_weights": start} for start in ("pissa", "pissa_niter_4", "olora")]
INHERITED = [
    {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]},
    {"trainable_token_indices": [3, 4, 5]},
]  # fmt: skip


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def moved(kind, options):
    """By how much, in units of what the adapter does, base model, adapter and copy differ from what they should be."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, **options)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    adapted = logits(model)
    with model.disable_adapter():
        base = logits(model)
    model.add_weighted_adapter(["default"], [1.0], "new", combination_type=kind)
    source = logits(model)
    with model.disable_adapter():
        base_after = logits(model)
    model.set_adapter("new")
    copy = logits(model)
    model.set_adapter("default")
    model.delete_adapter("new")
    unit = (adapted - base).norm()
    pairs = {"base": (base_after, base), "source": (source, adapted), "copy": (copy, adapted), "deleted": (logits(model), adapted)}
    return {name: float((after - before).norm() / unit) for name, (after, before) in pairs.items()}


for kind in ("cat", "svd", "linear"):
    for options in EXACT + STARTS + INHERITED:
        seen = moved(kind, options)
        print(kind, options, {name: f"{value:.2g}" for name, value in seen.items()})
        wrong = set(seen) if options in STARTS else {"copy"} if options in INHERITED else set()
        for name, value in seen.items():
            assert (value > 0.03) == (name in wrong) and (value < 1e-4) == (name not in wrong), f"{name} is otherwise now"
PY
