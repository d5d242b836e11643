#!/usr/bin/env bash
# transformers 5.23.0: a CANINE classifier scores a padded row right if its length is a multiple of 4, and else wrong.
#
# Guess: with an attention mask, padding does not move the scores of a row, as for BERT; or it moves those of all rows.
# Seen:  CANINE downsamples characters in groups of 4 before its deep encoder. A row of 8 characters beside one of 40
#        scores as alone to rounding; a row of 13 does not (its last group holds padding that the mask no longer knows).
# Who meets it: whoever evaluates CANINE with another batch size than the one it was tried with.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0  transformers==5.23.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch
import transformers

config = transformers.CanineConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_hash_buckets=64,
    initializer_range=0.3, local_transformer_stride=16, max_position_embeddings=512, num_labels=2,
)
torch.manual_seed(0)
model = transformers.CanineForSequenceClassification(config).eval()


def moved(length):
    """How far the scores of a row of this length move beside a row of 40, relative to their size."""
    ids = torch.randint(97, 122, (2, 40), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, length:] = 0
    ids[0, length:] = 0
    with torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask).logits[0]
        alone = model(input_ids=ids[:1, :length], attention_mask=mask[:1, :length]).logits[0]
    return float((both - alone).norm() / alone.norm())


seen = {length: moved(length) for length in (8, 12, 16, 9, 13, 14, 15)}
print(transformers.__version__, {length: f"{value:.1g}" for length, value in seen.items()})
assert all(seen[length] < 1e-4 for length in (8, 12, 16)), "multiples of 4 are not right any more"
assert all(seen[length] > 1e-2 for length in (9, 13, 14, 15)), "other lengths are right now"
PY
