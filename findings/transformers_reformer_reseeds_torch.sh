#!/usr/bin/env bash
# transformers 5.23.0: each forward pass of a Reformer in train mode seeds torch's generator anew, from the system's entropy.
#
# Guess: after torch.manual_seed a run of one process on a CPU is reproducible; a forward pass draws its dropout masks from torch's
#        generator and so moves it on, and in eval mode, or with all dropout at 0, it gives the same loss each time.
# Seen:  in train mode layers call torch.seed() and torch.manual_seed(), so as to repeat their masks in the backward pass. Whatever
#        is drawn afterwards (zeroth-order directions, shuffles, new weights) differs from run to run; so does the loss, without
#        dropout as well, as hashes are drawn too. Seeding before each of two evaluations, so that they share a mask, does not
#        help: their difference is noise. The backward pass seeds as well. With hash_seed set it is the other way round in eval
#        mode: each pass leaves torch's generator in one and the same state, so that directions drawn between passes are all the same.
# Who meets it: whoever draws perturbations from torch's own generator, or relies on a seed for a run with a Reformer in it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import torch
import transformers

transformers.logging.set_verbosity_error()
ids = torch.randint(3, 60, (2, 64), generator=torch.Generator().manual_seed(0))


def reformer(dropout, hash_seed):
    torch.manual_seed(0)
    config = transformers.ReformerConfig(
        vocab_size=60, hidden_size=32, attention_head_size=16, num_attention_heads=2, feed_forward_size=64,
        attn_layers=["local", "lsh"], axial_pos_shape=(8, 8), axial_pos_embds_dim=(16, 16), is_decoder=True,
        lsh_attn_chunk_length=8, local_attn_chunk_length=8, num_buckets=4, max_position_embeddings=64,
        hidden_dropout_prob=dropout, lsh_attention_probs_dropout_prob=dropout, local_attention_probs_dropout_prob=dropout,
        hash_seed=hash_seed, initializer_range=0.3,
    )  # fmt: skip
    return transformers.ReformerModelWithLMHead(config)


def seeded(model):
    """The loss after torch.manual_seed(1), and the number that torch draws next."""
    torch.manual_seed(1)
    return model(input_ids=ids, labels=ids).loss.item(), torch.rand(()).item()


for dropout in (0.0, 0.1):
    for hash_seed in (None, 5):
        model = reformer(dropout, hash_seed)
        for train in (False, True):
            losses, numbers = zip(*(seeded(model.train(train)) for _ in range(4)))
            print(f"dropout {dropout}, hash_seed {hash_seed}, train {train}: losses", *(f"{loss:.4f}" for loss in losses), end="; ")
            print("next numbers", *(f"{number:.3f}" for number in numbers))
            assert len(set(numbers)) == (4 if train else 1), "a forward pass leaves the generator alone now"
            random = train and (dropout > 0 or hash_seed is None)
            assert (len(set(losses)) > 1) == random, "losses are reproducible in other cases now"

model = reformer(0.0, 5).eval()
directions = []
for _ in range(3):
    model(input_ids=ids)
    directions.append(torch.randn(4))
print("directions after three passes in eval mode, with hash_seed:", *(direction.tolist() for direction in directions))
assert all(torch.equal(direction, directions[0]) for direction in directions), "directions differ now"
loss = reformer(0.1, None).train()(input_ids=ids, labels=ids).loss
state = torch.get_rng_state()
loss.backward()
assert not torch.equal(torch.get_rng_state(), state), "the backward pass leaves the generator alone now"
PY
