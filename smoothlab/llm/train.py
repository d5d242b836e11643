"""Joint fine-tuning of a classifier by SGD with random reshuffling: the trajectory that is measured.

The model is x = "base" and y = "peft" (and the head), all trained by exact gradients, each block at its own rate. The
whole trajectory is fixed by the configuration and the seed: minibatch `step` is the same whenever it is asked for.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, check_partition, fixed_loss
from smoothlab.errors import BadInput
from smoothlab.llm.checkpoints import PARTIAL, Snapshot, read, write


@dataclass
class FineTuning:
    """A model, its blocks and its data, standing before update `step`.

    Attributes:
        model: the classifier, wrapped by a PEFT method or not, with every live parameter trainable.
        blocks: disjoint blocks that hold every trainable parameter.
        examples: encoded minibatch for a list of example numbers.
        count: number of examples.
        batch: minibatch size B.
        rates: learning rate of each block (eta_x for "base", eta_y for "peft").
        seed: seed of the reshuffling and of dropout masks.
        dropout: train and measure in train mode, the mask fixed by seed and step; eval mode otherwise.
    """

    model: nn.Module
    blocks: dict[str, Block]
    examples: Any
    count: int
    batch: int
    rates: Mapping[str, float]
    seed: int = 0
    dropout: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.count:
            raise BadInput(f"--batch {self.batch} with {self.count} examples: use 1 to {self.count}")
        for name in self.rates:
            if name not in self.blocks:
                raise BadInput(f"learning rate for unknown block '{name}': use one of {', '.join(self.blocks)}")
        for name, block in self.blocks.items():
            if not 0 <= self.rates[name] <= torch.finfo(kind := block.params[0].dtype).max:
                raise BadInput(f"learning rate {self.rates[name]} of block '{name}': use a rate of {kind}, at least 0")
        check_partition(self.blocks.values(), ((n, p) for n, p in self.model.named_parameters() if p.requires_grad))
        groups = [{"params": list(block.params), "lr": self.rates[name]} for name, block in self.blocks.items()]
        self._optimizer = torch.optim.SGD(groups, lr=0.0)

    def minibatch(self, step: int) -> list[int]:
        """Example numbers of minibatch `step`."""
        return reshuffled(self.count, self.batch, self.seed, step)

    def loss(self, step: int) -> Loss:
        """Mean loss of minibatch `step` at the current parameters."""
        inputs: dict[str, Tensor] = self.examples(self.minibatch(step))
        return fixed_loss(
            lambda: cross_entropy(self.model, inputs), self.model, train=self.dropout, seed=(self.seed << 20) + step
        )

    def update(self) -> float:
        """One SGD step, w_b <- w_b - eta_b grad_b f, on minibatch `step`; the loss before it.

        Raises:
            BadInput: the loss is not finite; the parameters stay as they were.
        """
        loss = self.loss(self.step)()
        value = float(loss.detach())
        if not torch.isfinite(loss):
            raise BadInput(f"the loss is {value} at step {self.step}: lower --lr or --lr-block, or use --dtype float32")
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return value

    def save(self, folder: Path, run: str = "") -> None:
        """Write the trainable weights of `run` as folder/step-00000000.safetensors; complete or not at all.

        Raises:
            BadInput: it cannot be written, or the folder has weights of another run for this step.
        """
        path = weights_path(folder, self.step)
        _check_own(path, run)
        try:
            write(path, Snapshot(self._named(), {"step": self.step, "run": run}))
        except BadInput as error:
            raise BadInput(f"{str(error).partition(';')[0]}; make room, or leave --keep-weights out") from error
        finally:
            with suppress(OSError):
                (folder / PARTIAL).rmdir()

    def load(self, path: Path, run: str | None = None) -> None:
        """Take the weights and the step from a file that `save` wrote for these blocks, and for `run` if it is given.

        Raises:
            BadInput: the file cannot be read, is damaged, or is of other blocks or of another run.
        """
        found = _read(path)
        kept, saved = found.state.get("run"), found.tensors
        if run is not None and kept != run:
            raise _other(path, kept, run)
        named = self._named()
        if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in named.items()}:
            raise BadInput(
                f"weights {path} are of another model, PEFT method or blocks than this run: name another folder"
            )
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(saved[name])
        self.step = int(path.stem.removeprefix("step-"))

    def _named(self) -> dict[str, Tensor]:
        return {
            f"{name}.{i}": p.detach().contiguous() for name, b in self.blocks.items() for i, p in enumerate(b.params)
        }


def _read(path: Path) -> Snapshot:
    """The weights in a file that `FineTuning.save` wrote; those of before are no snapshots and have no checksums."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "state" not in metadata and "sum" not in metadata:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
                return Snapshot(tensors, {"run": metadata.get("run")})
        return read(path)
    except Exception as error:
        why = str(error).removeprefix(f"cannot read {path}: ").partition(";")[0]
        raise BadInput(f"cannot read weights {path}: {why}; delete the file, and go on") from error


def _check_own(path: Path, run: str) -> None:
    """Refuse to replace the weights of another run, by the file's head alone; what cannot be read is nobody's."""
    from safetensors import safe_open

    kept = None
    with suppress(Exception), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        kept = json.loads(metadata["state"])["run"] if "state" in metadata else metadata.get("run")
    if kept and kept != run:
        raise _other(path, kept, run)


def _other(path: Path, kept: str | None, run: str) -> BadInput:
    return BadInput(f"weights {path} were kept by another run ({kept}, this one is {run}): name another --keep-weights")


def cross_entropy(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean of -log softmax(logits)_label over a minibatch, from the logits alone.

    The labels are kept from the model: what it calls its own loss has AdaLoRA's penalty in it, see
    `smoothlab.hessian.penalties`.
    """
    logits: Tensor = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    return nn.functional.cross_entropy(logits.view(len(inputs["labels"]), -1), inputs["labels"])


def reshuffled(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Example numbers of minibatch `step`: each epoch is a fresh permutation, cut into whole minibatches."""
    epoch, place = divmod(step, count // batch)
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator)
    return order[place * batch : (place + 1) * batch].tolist()


def weights_path(folder: Path, step: int) -> Path:
    """File of the weights before update `step`."""
    return folder / f"step-{step:08d}.safetensors"


def saved_steps(folder: Path) -> list[int]:
    """Steps whose weights lie in `folder`, ascending."""
    found = (p.stem.removeprefix("step-") for p in folder.glob("step-*.safetensors"))
    return sorted(int(number) for number in found if number.isascii() and number.isdigit())  # others are not ours
