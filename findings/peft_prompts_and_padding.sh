#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0: prompt and prefix tuning score a padded row otherwise than the row alone.
#
# Guess: with an attention mask, scores of a row do not depend on the padding beside it: not in a Llama alone, which rotary
#        positions allow to be padded on either side, and so not with virtual tokens before it.
# Seen:  Llama alone is right to rounding on both sides. With prompt tuning, prefix tuning or p-tuning, left padding comes
#        between the virtual tokens and the text, whose distance changes: logits of the last token are off by 18 to 60 %.
#        A sequence classifier with prompt tuning or p-tuning is wrong on both sides: peft passes embeddings, and
#        transformers then pools at the last position, padding or not (200 % off on the right).
# Who meets it: whoever evaluates prompt tuning in padded batches: accuracy depends on the batch size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import warnings

import peft
import torch
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    initializer_range=0.2, pad_token_id=0, num_labels=2,
)
row, padding = torch.arange(3, 20)[None], torch.zeros(1, 5, dtype=torch.long)
methods = {
    "alone": None,
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=4),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=4),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16),
}


@torch.no_grad()
def off(method, task, side):
    """How far the row's scores are from those without padding, relative to their size."""
    torch.manual_seed(0)
    classifies = task == "SEQ_CLS"
    model = (transformers.LlamaForSequenceClassification if classifies else transformers.LlamaForCausalLM)(config)
    if methods[method] is not None:
        methods[method].task_type = task
        model = peft.get_peft_model(model, methods[method])
    model.eval()

    def scores(ids):
        mask = (ids != 0).long()
        logits = model(input_ids=ids, attention_mask=mask).logits
        added = 0 if classifies else logits.shape[1] - ids.shape[1]  # positions of virtual tokens
        return logits if classifies else logits[:, added + int(mask[0].nonzero()[-1])]

    alone = scores(row)
    padded = torch.cat([padding, row] if side == "left" else [row, padding], 1)
    return float((scores(padded) - alone).norm() / alone.norm())


seen = {(m, t, s): off(m, t, s) for m in methods for t in ("CAUSAL_LM", "SEQ_CLS") for s in ("left", "right")}
print(transformers.__version__, peft.__version__)
for key, value in seen.items():
    print(*key, f"{value:.2g}")
right = {("alone", t, s) for t in ("CAUSAL_LM", "SEQ_CLS") for s in ("left", "right")}
right |= {(m, "CAUSAL_LM", "right") for m in methods} | {("prefix", "SEQ_CLS", "right")}
for key, value in seen.items():
    assert value < 1e-4 if key in right else value > 0.05, f"{key}: padding is treated otherwise"
PY
