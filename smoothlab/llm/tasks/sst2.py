"""SST-2 (Socher et al. 2013), movie reviews: negative 0, positive 1; 67,349 training phrases, 872 for validation."""

from pathlib import Path

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import jsonlines, published
from smoothlab.llm.tasks.choices import Choice, Row, Task, label, text


def choice(row: Row) -> Choice:
    """The sentence and "It was"; "terrible" or "great" follows."""
    sentence = text(row, "sentence")
    prompt = jsonlines.TEMPLATE.replace("{sentence}", sentence)
    return Choice(prompt, jsonlines.VERBALIZERS, label(row, 2), sentence)


TASK = Task("sst2", "verbalizer", choice, ("train.jsonl.gz",), ("validation.jsonl",), ("nyu-mll/glue", "sst2"))


def read(split: str, data_dir: Path | None) -> list[tuple[str, int]]:
    """(sentence, label) pairs from data_dir/sst2 or data_dir, or from the hub when no folder is given."""
    if data_dir is None:
        return [(row["sentence"].strip(), int(row["label"])) for row in published.from_hub(TASK, split)]
    place = published.place(TASK, split, data_dir)
    pairs = jsonlines.read(place)
    if other := {label for _, label in pairs} - {0, 1}:
        raise BadInput(f"{place} has label {max(other)}: those of SST-2 are 0 and 1")
    return pairs
