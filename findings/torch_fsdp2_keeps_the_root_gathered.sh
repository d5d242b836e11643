#!/usr/bin/env bash
# torch 2.13.0: FSDP2 does not see moves of the outermost module's shards after a forward pass without a backward pass.
#
# Guess: fully_shard(model) gathers parameters for each forward pass, so that shards that are moved in place between two
#        of them (a zeroth-order perturbation) move the model.
# Seen:  what fully_shard was called on last, the root, stays gathered after its forward pass, "since the parameters would
#        be freed and all-gathered immediately" by a backward pass. Without one (torch.no_grad), the next forward pass
#        reads the old values of embedding, last norm and head. f(w + mu z) - f(w - mu z) misses their part without an
#        error; model.parameters() gives the gathered ones, to which an optimizer's writes are lost. With
#        model.reshard() before each pass, or reshard_after_forward=True for the root, all moves show.
# Who meets it: whoever runs MeZO, or any search without gradients, on a model that FSDP2 shards; whoever writes to shards
#        between evaluations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
numbers = torch.arange(11)


def made(sharded, **root):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 11))
    if sharded:
        fully_shard(model[1])
        fully_shard(model, **root)
    return model


@torch.no_grad()
def slope(model, before=lambda: None, only=""):
    """(f(w + mu z) - f(w - mu z)) / (2 mu) along the parameters whose names begin with `only`."""
    named = [(name, p) for name, p in model.named_parameters() if name.startswith(only)]

    def move(by):
        for seed, (_, p) in enumerate(named):
            shard = p.to_local() if isinstance(p, DTensor) else p
            shard.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)), alpha=by)

    def loss():
        before()
        return float(nn.functional.cross_entropy(model(numbers), numbers.flip(0)))

    move(1e-2)
    plus = loss()
    move(-2e-2)
    minus = loss()
    move(1e-2)
    return (plus - minus) / 2e-2


resharded = made(True)
seen = {
    "whole": slope(made(False)),
    "sharded": slope(made(True)),
    "sharded, embedding alone": slope(made(True), only="0."),
    "whole, embedding alone": slope(made(False), only="0."),
    "model.reshard() before each pass": slope(resharded, resharded.reshard),
    "reshard_after_forward=True": slope(made(True, reshard_after_forward=True)),
}
model = made(True)
with torch.no_grad():
    model(numbers)
kept = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
print("torch", torch.__version__, {k: round(v, 4) for k, v in seen.items()}, "gathered after a pass:", kept)
assert abs(seen["whole, embedding alone"]) > 0.01, "the embedding does not matter"
assert seen["sharded, embedding alone"] == 0 and kept == ["0.weight", "2.weight", "2.bias"], "the root is gathered anew now"
assert abs(seen["sharded"] - seen["whole"]) > 0.01, "its moves show now"
for way in ("model.reshard() before each pass", "reshard_after_forward=True"):
    assert abs(seen[way] - seen["whole"]) < 1e-4, way
dist.destroy_process_group()
PY
