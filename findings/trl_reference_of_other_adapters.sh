#!/usr/bin/env bash
# trl 1.16.0, peft 0.21.2: DPO that goes on from an adapter of IA3, VeRA or ten other kinds has an untrained one as its reference.
#
# Guess: DPOTrainer(model), where model is a PeftModel whose adapter was trained before, keeps a frozen copy of that adapter as the
#        reference, so that the first loss is log 2 and margins are 0, and leaves the model that it is given as it is.
# Seen:  it adds an adapter "ref" and copies parameters whose names contain ".default.". Where an adapter's parameters end in
#        ".default", nothing is copied, and the reference is what the method starts from. So with IA3, VeRA, LoHa, LoKr, BOFT,
#        RoAd, MiSS, FourierFT, HRA and RandLoRA, and in LoRA with the part on embeddings and with trainable tokens: the loss
#        begins elsewhere and pulls the policy to another model than the one it came from. LoRA on linear layers, DoRA, OFT, saved
#        modules, LN, prompt and prefix tuning are copied. With a PiSSA or OLoRA start the loss is log 2, but adding "ref" takes its
#        principal parts out of the base model's weights once more, so that policy and reference are both another model. No
#        warning. GRPOTrainer, KTOTrainer and RLOOTrainer have the same lines.
# Who meets it: whoever trains an adapter on demonstrations and then on preferences, with one of these methods.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import contextlib
import io
import math

import datasets
import peft
import tokenizers
import torch
import transformers
import trl

transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(57)}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    pad_token_id=0, eos_token_id=1, bos_token_id=1,
)  # fmt: skip
rows = datasets.Dataset.from_list(
    [{"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 3} w{i + 4}", "rejected": f" w{i + 7} w{i + 9}"} for i in range(8)]
)
ids = torch.arange(3, 20)[None]
TASK = {"task_type": "CAUSAL_LM"}
LINEAR = {"target_modules": ["q_proj", "v_proj"], **TASK}
COPIED = {
    "LoRA": peft.LoraConfig(**LINEAR), "DoRA": peft.LoraConfig(use_dora=True, **LINEAR),
    "LoRA and a saved head": peft.LoraConfig(modules_to_save=["lm_head"], **LINEAR),
    "OFT": peft.OFTConfig(oft_block_size=4, **LINEAR),
    "LN tuning": peft.LNTuningConfig(target_modules=["input_layernorm"], **TASK),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=5, **TASK),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=5, **TASK),
}  # fmt: skip
UNTRAINED = {
    "LoRA on embeddings": peft.LoraConfig(target_modules=["embed_tokens"], **TASK),
    "trainable tokens": peft.LoraConfig(trainable_token_indices=[4, 5, 6, 7, 8, 9], **LINEAR),
    "IA3": peft.IA3Config(feedforward_modules=[], **LINEAR), "VeRA": peft.VeraConfig(r=8, **LINEAR),
    "LoHa": peft.LoHaConfig(**LINEAR), "LoKr": peft.LoKrConfig(**LINEAR), "MiSS": peft.MissConfig(r=4, **LINEAR),
    "BOFT": peft.BOFTConfig(boft_block_size=4, **LINEAR), "RoAd": peft.RoadConfig(group_size=8, **LINEAR),
    "FourierFT": peft.FourierFTConfig(n_frequency=50, **LINEAR), "HRA": peft.HRAConfig(r=4, **LINEAR),
    "RandLoRA": peft.RandLoraConfig(r=4, **LINEAR),
}  # fmt: skip
CHANGED = {start: peft.LoraConfig(init_lora_weights=start, **LINEAR) for start in ("pissa", "olora")}
arguments = trl.DPOConfig(
    output_dir="out", per_device_train_batch_size=8, max_steps=1, learning_rate=0.0, logging_steps=1, use_cpu=True,
    report_to=[], disable_tqdm=True, save_strategy="no", bf16=False, gradient_checkpointing=False,
)  # fmt: skip


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=ids).logits[:, -ids.shape[1] :]  # without virtual tokens


for name, adapter in (COPIED | UNTRAINED | CHANGED).items():
    torch.manual_seed(0)
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)  # as if it had been trained
    given = logits(model)
    with model.disable_adapter():
        unit = (given - logits(model)).norm()
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    policy = float((logits(trainer.model) - given).norm() / unit)
    trainer.model.set_adapter("ref")
    reference = float((logits(trainer.model) - given).norm() / unit)
    print(f"{name}: first loss log 2 {loss - math.log(2):+.1e}; distance to the model that was given, in units of what the "
          f"adapter does: policy {policy:.2g}, reference {reference:.2g}")
    assert (abs(loss - math.log(2)) < 1e-6) == (name not in UNTRAINED), f"{name} begins otherwise now"
    assert (policy < 1e-4) == (name not in CHANGED), f"{name}: the model that is given is changed otherwise now"
    assert (reference < 1e-4) == (name in COPIED), f"{name}: the reference is another one now"
PY
