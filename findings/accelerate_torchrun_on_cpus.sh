#!/usr/bin/env bash
# accelerate 1.15.0: on a machine without a GPU, processes that torchrun starts each train a model of their own.
#
# Guess: Accelerator() under torchrun joins the processes, as on GPUs: prepare() wraps the model, gradients are averaged and
#        weights stay equal; accelerate launch --cpu --num_processes 2 starts two that are joined alike.
# Seen:  both processes of torchrun say num_processes 1 and is_main_process, prepare() returns the bare model, and weights
#        differ after one step, without a warning. With ACCELERATE_USE_CPU=true, or Accelerator(cpu=True), they are joined.
#        accelerate launch --cpu --num_processes 2 starts one process; the other number is ignored.
# Who meets it: whoever tries a distributed loop on CPUs before going to GPUs, or in continuous integration.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/train.py" <<'PY'
import json
import os
import sys

import accelerate
import torch

rank = int(os.environ.get("RANK", 0))
accelerator = accelerate.Accelerator(**({"cpu": True} if "cpu" in sys.argv else {}))
model = torch.nn.Linear(4, 1, bias=False)
torch.nn.init.ones_(model.weight)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
data = torch.randn(8, 4, generator=torch.Generator().manual_seed(rank))  # each process has its own
accelerator.backward(model(data).square().mean())
optimizer.step()
state = {"processes": accelerator.num_processes, "main": accelerator.is_main_process}
state["weights"] = next(model.parameters()).detach().flatten().tolist()
with open(os.path.join(os.environ["SEEN"], str(rank)), "w") as file:
    json.dump(state, file)
accelerator.end_training()
PY
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= SEEN
run() {
    SEEN="$folder/$1"
    mkdir "$SEEN"
    shift
    "$@" > "$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
}
torchrun=("$folder/env/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 "$folder/train.py")
run torchrun "${torchrun[@]}"
run variable env ACCELERATE_USE_CPU=true "${torchrun[@]}"
run argument "${torchrun[@]}" cpu
run launch "$folder/env/bin/accelerate" launch --cpu --num_processes 2 "$folder/train.py"
"$folder/env/bin/python" - "$folder" <<'PY'
import json
import sys
from importlib.metadata import version
from pathlib import Path

seen = {}
for way in ("torchrun", "variable", "argument", "launch"):
    states = [json.loads(path.read_text()) for path in sorted((Path(sys.argv[1]) / way).iterdir())]
    same = all(state["weights"] == states[0]["weights"] for state in states)
    seen[way] = [len(states), [state["processes"] for state in states], [state["main"] for state in states], same]
    print("accelerate", version("accelerate"), f"{way}: processes, num_processes, main, same weights:", *seen[way])
assert seen["torchrun"] == [2, [1, 1], [True, True], False], "torchrun's processes are joined now"
assert seen["variable"] == seen["argument"] == [2, [2, 2], [True, False], True], "they are not joined any more"
assert seen["launch"] == [1, [1], [True], True], "accelerate launch starts several processes on a CPU now"
PY
