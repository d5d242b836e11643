"""`smoothlab finetune` killed at given places, and started again: rows, checkpoints and saved weights to the bit."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from smoothlab import record_files
from smoothlab.llm.checkpoints import Folder
from smoothlab.optim import seedlog
from smoothlab.optim.hybrid import HybridSGD
from tests.experiments.command import Plant, dies, ended, forked
from tests.experiments.test_finetune import rows_of

OPTIONS = "--train 24 --dev 8 --test 4 --batch 4 --eval-every 4 --patience 0 --mu 0.03 --steps 24"
RUNS = {
    "adalora": "--peft adalora --eta-y 0.05 --schedule cosine --dtype bfloat16 --steps 16 --eval-every 2",
    "search": "--search eta_x=1e-4,1e-3 --dtype bfloat16 --optimizer sgd --sides 1 --q 2 --peft prefix --steps 8",
    "float32": "--optimizer adam --schedule linear --eta-y 0.01",
    "float16": "--dtype float16 --optimizer sgd --peft ia3 --eta-y 0.1",
    "zo": "--method zo --eta-x 1e-3 --schedule cosine",
    "fo-full": "--method fo-full --schedule cosine",
    "boft-ga": "--peft boft-ga --rank 2 --eta-y 0.05 --schedule cosine --steps 16 --eval-every 2",
    "lora-ga": "--peft lora-ga --rank 2 --eta-y 0.05 --steps 8",
}
"""With Adam but where they say so; 16 steps of AdaLoRA give up a third of its ranks, from step 2 to 8."""


def half_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def half_written(file: int, content: bytes) -> None:
    os.ftruncate(file, os.fstat(file).st_size - len(content) // 2)


PLACES: dict[str, Plant] = {
    "within a step, x moved and y not": dies(HybridSGD, "_move", 3, after=True),
    "within a row": dies(record_files, "write_all", 2, undo=half_written),
    "before the row's snapshots": dies(Folder, "put", 1),
    "within a snapshot": dies(safetensors.torch, "save_file", 1, undo=half_file),
    "before its renaming": dies(Path, "replace", 1),
    "after its renaming": dies(Path, "replace", 1, after=True),
    "before the snapshots of earlier rows are deleted": dies(Folder, "keep", 1),
    "within an entry of the seed log": dies(seedlog, "write_all", 2, undo=half_written),
}
"""Each process goes on from what the killed one before has left."""
FEW = ["within a step, x moved and y not", "within a snapshot", "after its renaming"]
FEW_LOGGED = ["within an entry of the seed log", "before the snapshots of earlier rows are deleted"]


def command(folder: Path, name: str, place: Path, log: str = "") -> list[str]:
    given = ["--model", folder / "model", "--data", folder / "data.jsonl"]
    given += ["--out", place / "run.jsonl", "--save", place / "saved", "--checkpoint", f"{log}{place / 'kept'}"]
    return ["finetune", *map(str, given), *OPTIONS.split(), *RUNS[name].split()]


def written(place: Path) -> dict[str, Any]:
    """Rows, and every tensor and seed log in the run's folders, as bytes."""
    found: dict[str, Any] = {"rows": rows_of(place / "run.jsonl")}
    for path in place.rglob("*.safetensors"):
        for name, tensor in safetensors.torch.load_file(path).items():
            found[f"{path.relative_to(place)}: {name}"] = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    found |= {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*.log")}
    return found


def run(argv: list[str], place: Path, plant: Plant | None = None) -> int:
    place.mkdir(exist_ok=True)
    return ended(forked(argv, place / "said", plant))


def killed(folder: Path, place: Path, name: str, places: list[str], log: str = "") -> dict[str, Any]:
    """What an undisturbed run wrote, which a run that was killed at these places wrote too."""
    argv = partial(command, folder, name, log=log)
    assert run(argv(place / "whole"), place / "whole") == 0, (place / "whole" / "said").read_text()
    wanted, again = written(place / "whole"), place / "killed"
    for where in places:
        assert run(argv(again), again, PLACES[where]) == -9, f"{where}: {(again / 'said').read_text()}"
    assert run(argv(again), again) == 0, (again / "said").read_text()
    found = written(again)
    assert found.keys() == wanted.keys()
    for what, content in wanted.items():
        assert found[what] == content, what
    assert len({row["dev_loss"] for row in wanted["rows"]}) > 2
    return wanted


def stands(place: Path) -> dict[str, torch.Tensor]:
    """Where the run stood at its end."""
    (path,) = (place / "kept").glob("after-*.safetensors")
    return safetensors.torch.load_file(path)


@pytest.mark.check
def test_ranks_and_masters_go_on_to_the_bit(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, "adalora", FEW)
    end = stands(tmp_path / "whole")
    values = [t for name, t in end.items() if name.startswith("trainer/weights/") and "lora_E" in name]
    assert len(values) == 4 and sum(int((t != 0).sum()) for t in values) == 4 * 8, "8 of 12 on average"
    masters = {t.shape: t for name, t in end.items() if name.startswith("trainer/optimizer/") and t.shape == (4096, 16)}
    (master,) = masters.values()
    (words,) = (t for name, t in end.items() if name.endswith("embed_tokens.weight"))
    assert master.dtype == torch.float32 and words.dtype == torch.bfloat16 and torch.equal(master.bfloat16(), words)
    assert float((master != words.float()).float().mean()) > 0.5, "most steps are shorter than bf16's spacing"


@pytest.mark.check
@pytest.mark.parametrize("name", ["boft-ga", "lora-ga"])
def test_a_mix_and_a_moved_base_model_go_on_to_the_bit(folder: Path, tmp_path: Path, name: str) -> None:
    """The mix's weights are part of the weights; LoRA-GA's start is computed again."""
    killed(folder, tmp_path, name, FEW)
    weights = [tensor for key, tensor in stands(tmp_path / "whole").items() if "trainer/weights/norms/" in key]
    assert len(weights) == (4 if name == "boft-ga" else 0) and all(float(norms.min()) > 0 for norms in weights)


@pytest.mark.check
def test_masters_are_rebuilt_from_a_seed_log_to_the_bit(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, "search", FEW_LOGGED, "log:")
    kept = tmp_path / "whole" / "kept"
    assert not any(t.dtype == torch.bfloat16 for t in stands(tmp_path / "whole").values())
    assert sum(path.stat().st_size for path in kept.iterdir()) < 20_000  # the base model has 70,000 parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_anywhere_the_command_goes_on_to_the_bit(folder: Path, tmp_path: Path, name: str) -> None:
    """With snapshots that hold the base model, and with a seed log: the same rows and saved weights."""
    places = [*PLACES]
    wanted = killed(folder, tmp_path, name, places[1:-1] if name == "fo-full" else places[:-1])
    if name == "fo-full":  # no zeroth-order step, so no log
        return
    (tmp_path / "log").mkdir()
    found = killed(folder, tmp_path / "log", name, places, "log:")
    for what in ("rows", *(key for key in wanted if key.startswith("saved/"))):
        assert found[what] == wanted[what], what
