#!/usr/bin/env bash
# datasets 5.2.0: after set_epoch, a stream that was shuffled and then split by skip() holds rows of the split by take().
#
# Guess: the documentation advises to shuffle a stream before it is split, test = stream.take(k), train = stream.skip(k). The splits
#        stay disjoint, whatever epoch training is in, and a new epoch orders the rows of train anew.
# Seen:  the split is by position in the shuffled stream, and set_epoch(1) shuffles that stream anew, before take or
#        skip counts. train then leaves out other rows, and contains rows of test: with a buffer that holds the whole stream of
#        200, about 32 of 40, as if there were no split. test is another set in each epoch, too, if it is told the epoch. In
#        epoch 0 all is well. With the order that is advised against, take and skip first, splits stay disjoint. No warning.
# Who meets it: whoever splits a stream of text and trains more than one epoch: accelerate's and transformers' loaders call
#        set_epoch on the training data by themselves. Accuracies on test are then in part of rows that were trained on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    datasets==5.2.0 torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import accelerate
import datasets
from torch.utils.data import DataLoader

stream = datasets.Dataset.from_dict({"i": list(range(200))}).to_iterable_dataset(num_shards=4)


def rows(split):
    return {row["i"] for row in split}


def splits(shuffled_first, buffer):
    """Test and training data, in the order of calls that is advised, or the other one."""
    if shuffled_first:
        shuffled = stream.shuffle(seed=0, buffer_size=buffer)
        return shuffled.take(40), shuffled.skip(40)
    return stream.take(40), stream.skip(40).shuffle(seed=0, buffer_size=buffer)


for buffer in (20, 1000):
    for shuffled_first in (True, False):
        test, train = splits(shuffled_first, buffer)
        tested = rows(test)
        shared = []
        for epoch in range(3):
            train.set_epoch(epoch)
            shared.append(len(tested & rows(train)))
        print(f"buffer of {buffer}, shuffled {'before' if shuffled_first else 'after'} the split: rows of test in train, by epoch", shared)
        assert shared[0] == 0 and all((count > 0) == shuffled_first for count in shared[1:]), "splits are otherwise now"
        if shuffled_first and buffer == 1000:
            assert all(abs(count - 32) < 12 for count in shared[1:]), "it is no longer as if there were no split"
            test.set_epoch(1)
            assert rows(test) != tested, "test stays what it was now"

test, train = splits(True, 1000)
loader = accelerate.Accelerator(cpu=True).prepare_data_loader(DataLoader(train, batch_size=8))
shared = [len(rows(test) & {i for batch in loader for i in batch["i"].tolist()}) for _ in range(3)]
print("by accelerate's loader, which nobody tells the epoch", shared)
assert shared[0] == 0 and min(shared[1:]) > 20, "accelerate's loader keeps splits apart now"
PY
