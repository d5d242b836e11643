#!/usr/bin/env bash
# transformers 5.23.0: a run that is resumed in its second epoch sees rows twice and others never, if rows are grouped by length.
#
# Guess: resuming from a checkpoint within an epoch skips what that epoch has seen, so that each row comes once an epoch, and
#        weights end up as without the stop: as with rows that are shuffled, whose order follows from seed and epoch.
# Seen:  with train_sampling_strategy="group_by_length" the order is drawn from torch's global generator when the epoch begins. A run
#        that is resumed draws it from another state, skips as many minibatches of this other order, and puts the checkpoint's
#        random state in force after that. Of 64 rows, stopped at the middle of epoch 2, 10 are never seen in that epoch and 10
#        twice; data_seed does not help. Shuffled rows, and those of "batch_rebalance", go on as without the stop. No warning.
# Who meets it: whoever fine-tunes on answers of many lengths on machines that may be taken away, and compares runs, or counts on
#        epochs to hold each row once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn -e Writing >&2)
import contextlib
import io

import torch
import transformers

transformers.logging.set_verbosity_error()
config = transformers.LlamaConfig(
    vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, attention_dropout=0.1
)
torch.manual_seed(0)
rows = [{"input_ids": torch.cat([torch.tensor([100 + i]), torch.randint(3, 60, (4 + i % 16,))])} for i in range(64)]


def run(name, checkpoint=None, **options):
    """Rows of each minibatch, and the weights at the end, of two epochs of 8 minibatches."""
    minibatches = []

    def collate(examples):
        minibatches.append([int(example["input_ids"][0]) - 100 for example in examples])
        ids = torch.nn.utils.rnn.pad_sequence([example["input_ids"] for example in examples], batch_first=True)
        return {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}

    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(config)
    arguments = transformers.TrainingArguments(
        output_dir=name, per_device_train_batch_size=8, num_train_epochs=2, save_steps=12, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(resume_from_checkpoint=checkpoint)
    return minibatches, torch.cat([p.detach().flatten() for p in model.parameters()])


for strategy in ("random", "batch_rebalance", "group_by_length"):
    for options in ({}, {"data_seed": 1}):
        whole, weights = run(strategy, train_sampling_strategy=strategy, **options)
        resumed, other = run("again", f"{strategy}/checkpoint-12", train_sampling_strategy=strategy, **options)
        epoch = sum(whole[8:12] + resumed[-4:], [])
        missing, same = 64 - len(set(epoch)), bool(torch.equal(weights, other))
        print(f"{strategy} {options}: rows that epoch 2 never sees: {missing} of 64; weights as without the stop: {same}")
        assert sorted(sum(whole[8:], [])) == list(range(64)) and len(epoch) == 64
        assert same == (missing == 0) == (strategy != "group_by_length"), f"{strategy} goes on otherwise now"
PY
