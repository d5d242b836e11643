"""A fine-tuned base model from the model that its run began with and the run's seed log: under 1 MB, not weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.optim import seedlog, seedlog_file
from smoothlab.zeroth.distributions import of_repr
from smoothlab.zeroth.variants import variant_named

BEGINNING = b'{"format": "smoothlab seed log '


@dataclass(frozen=True)
class Replay:
    """Rebuild a fine-tuned base model, to the bit, from its seed log and the model that its run began with.

    Attributes:
        log: seed log of `finetune --checkpoint log:FOLDER`: the file, a folder that holds one, or a repository on the
            hub (owner/name, or owner/name/FILE).
        model: model that the run began with, as its --model named it.
        save: folder that model/ is written to, for plain transformers.
        steps: number of steps to make, such as the best one that finetune found; by default all.
        device: device to draw the directions on.
    """

    log: str
    model: str
    save: Path
    steps: int | None = None
    device: str = "cpu"

    def run(self) -> str:
        """Rebuild and save the model; what was done, in words.

        Raises:
            BadInput: there is no such log or model; the log is of other weights, of several groups, of a distribution
                that no name stands for, or of a generator that is not this machine's.
        """
        from smoothlab.llm import export
        from smoothlab.llm.models import load_lm
        from smoothlab.llm.partition import partition

        path = find(self.log)
        number, group = _only_group(path)
        distribution = of_repr(group["distribution"], group.get("generator", "torch"))
        dtype = getattr(torch, str(group["dtype"]).removeprefix("torch."))
        export.make_room(self.save)
        loaded = load_lm(self.model, seed=0, dtype=dtype, device=self.device)
        block: Block = partition(loaded.model)["base"]
        variants = {number: variant_named(group.get("variant", "plain"), "the log's variant")}
        steps = seedlog.replay(path, {number: block}, {number: distribution}, self.steps, variants=variants)
        story = f"Rebuilt by `smoothlab replay` from {self.model} and {steps} steps of the seed log {path.name}."
        export.save(loaded.model, loaded.tokenizer, self.save, base=True, story=story)
        return f"{self.save / 'model'}: {self.model} after {steps} steps of {path}"


def find(log: str) -> Path:
    """The seed log that a file, a folder or a repository on the hub holds.

    Raises:
        BadInput: none, or several.
    """
    path = Path(log)
    if path.is_file():
        return path
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in sorted(path.rglob("*.log")) if _begins_as_log(file)]
        return path / _only(log, names)
    from smoothlab.llm import hub

    owner, _, name_and_file = log.partition("/")
    name, _, file_name = name_and_file.partition("/")
    if not name:
        raise BadInput(f"there is no seed log {log}: name a file, a folder, or a repository on the hub as owner/name")
    repository = f"{owner}/{name}"
    if not file_name and not hub.reachable():  # what the hub has of its cache is one file by its name
        raise BadInput(
            f"there is no file or folder {log} here, and the hub cannot be reached to look for it there: check the "
            "path, or connect, or name a file that was fetched before as owner/name/FILE"
        )
    return hub.fetch(repository, file_name or _only(log, [n for n in hub.files(repository) if n.endswith(".log")]))


def _only(log: str, names: list[str]) -> str:
    if len(names) != 1:
        raise BadInput(f"{log} holds {len(names)} seed logs ({', '.join(names) or 'none'}): name the file of one")
    return names[0]


def _begins_as_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING


def _only_group(path: Path) -> tuple[int, dict[str, Any]]:
    groups = seedlog_file.read(path).head["groups"]
    if len(groups) != 1:
        raise BadInput(
            f"{path} moves groups {', '.join(groups)}: replay it in Python, by smoothlab.replay(log, blocks, "
            "distributions)"
        )
    ((number, group),) = groups.items()
    return int(number), group
