"""SST-2 (Socher et al. 2013), movie reviews: negative 0, positive 1; 67,349 training phrases, 872 for validation."""

from pathlib import Path

from smoothlab.errors import BadInput
from smoothlab.llm import hub
from smoothlab.llm.tasks import jsonlines

FILES = {"train": "train.jsonl.gz", "validation": "validation.jsonl"}


def read(split: str, data_dir: Path | None) -> list[tuple[str, int]]:
    """(sentence, label) pairs from data_dir/sst2 or data_dir, or from the hub when no folder is given."""
    if data_dir is None:
        return _from_hub(split)
    if not data_dir.is_dir():
        raise BadInput(f"--data-dir {data_dir} is no folder: give the one that holds sst2/{FILES['train']}")
    name = FILES[split]
    places = [folder / file for folder in (data_dir / "sst2", data_dir) for file in (name, name.removesuffix(".gz"))]
    for place in places:
        if place.exists():
            pairs = jsonlines.read(place)
            if other := {label for _, label in pairs} - {0, 1}:
                raise BadInput(f"{place} has label {max(other)}: those of SST-2 are 0 and 1")
            return pairs
    raise BadInput(f"no sst2/{name} in {data_dir}: give --data-dir the folder that holds sst2/")


def _from_hub(split: str) -> list[tuple[str, int]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise BadInput("sst2 without --data-dir is read from the hub by `datasets`: pip install datasets, or give "
                       f"--data-dir a folder with sst2/{FILES['train']}") from None  # fmt: skip
    if not hub.kept_offline() and not hub.reachable():  # `datasets` would retry for long
        raise BadInput(
            "sst2 is read from the hub, which cannot be reached: give --data-dir a folder with its files, or set "
            "HF_HUB_OFFLINE=1 if `datasets` has them in its cache"
        )
    try:
        rows = load_dataset("nyu-mll/glue", "sst2", split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"cannot read sst2 from the hub ({reason}): give --data-dir a folder with its files") from error
    return [(row["sentence"].strip(), int(row["label"])) for row in rows]
