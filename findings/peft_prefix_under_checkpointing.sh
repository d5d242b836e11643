#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0: under gradient checkpointing a BERT with prefix tuning is trained without its prefix.
#
# Guess: gradient checkpointing computes again what it does not keep, and changes neither the loss nor a gradient; where a
#        method cannot have it, as peft says of prefix tuning when one is attached to a checkpointed model, it is refused.
# Seen:  switched on after the prefix was attached, which is what a Trainer does, nothing is refused. In train mode a
#        checkpointed layer sets past_key_values to None (transformers, modeling_layers.py), where the prefix is. BERT,
#        RoBERTa and ELECTRA go on without it: the loss is the same whatever the prefix is, the prefix gets no gradient, and
#        the head alone is trained, on positions that leave room for it. In eval mode the prefix is there, as it was drawn. Llama raises an error of
#        shapes. LoRA and prompt tuning have the same loss with and without checkpointing.
# Who meets it: whoever trains a prefix (or a cartridge) for an encoder by a Trainer with gradient_checkpointing=True.
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
shape = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
encoder = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, embedding_size=32)
prefix = peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="SEQ_CLS")
rows = dict(input_ids=torch.arange(3, 37).reshape(2, 17), attention_mask=torch.ones(2, 17), labels=torch.tensor([0, 1]))


def trained(config, method, checkpointing, scale=1):
    """Loss in train mode and in eval mode, norm of the gradient of the method's parameters, and whether all have none."""
    torch.manual_seed(0)
    base = transformers.AutoModelForSequenceClassification.from_config(config)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, method)
    if scale != 1:
        model.prompt_encoder["default"].embedding.weight.data.mul_(scale)
    if checkpointing:
        base.activation_checkpointing_enable()
    evaluated = model.eval()(**rows).loss.item()
    model.train()
    loss = model(**rows).loss
    loss.backward()
    own = [p for name, p in model.named_parameters() if "prompt_encoder" in name or "lora_" in name]
    gradient = sum(float(p.grad.norm()) for p in own if p.grad is not None)
    return loss.item(), evaluated, gradient, all(p.grad is None for p in own)


for kind in ("Bert", "Roberta", "Electra"):
    config = getattr(transformers, f"{kind}Config")(**shape, **encoder, pad_token_id=0)
    off, on = trained(config, prefix, False), trained(config, prefix, True)
    other_off, other_on = trained(config, prefix, False, scale=2)[0], trained(config, prefix, True, scale=2)[0]
    print(f"{kind}: loss {off[0]:.4f}, with twice the prefix {other_off:.4f}; checkpointed {on[0]:.4f} and {other_on:.4f}, in eval mode {on[1]:.4f}")
    assert abs(off[0] - off[1]) < 1e-5 and off[2] > 0, "without checkpointing the prefix is there, and is trained"
    assert abs(other_off - off[0]) > 1e-3 and other_on == on[0] and abs(on[0] - off[0]) > 1e-3 and on[3], f"{kind} keeps its prefix under checkpointing now, or refuses it"
    assert abs(on[1] - off[1]) < 1e-5, "in eval mode it is there"
    for method in (
        peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False, task_type="SEQ_CLS"),
        peft.PromptTuningConfig(num_virtual_tokens=5, task_type="SEQ_CLS"),
    ):
        off, on = trained(config, method, False), trained(config, method, True)
        assert abs(on[0] - off[0]) < 1e-5 and abs(on[2] - off[2]) < 1e-3 * off[2], f"{method.peft_type} differs, too"
try:
    trained(transformers.LlamaConfig(**shape, pad_token_id=0), prefix, True)
    raise SystemExit("Llama says nothing now")
except RuntimeError as error:
    print("Llama:", str(error)[:60])
PY
