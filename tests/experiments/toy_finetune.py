"""Fine-tuning on a small torch network."""

import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import Exact
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.setup import Setup, _check_batch, measured_blocks
from smoothlab.llm import distributed
from smoothlab.llm.evaluate import Accuracy, Encoded
from smoothlab.trainer import reshuffled
from tests.experiments.toy import Network, classifier_loss


@dataclass(frozen=True)
class Toy(Finetune):
    """Finetune with `Network` on 240 points in place of a language model."""

    name: ClassVar[str] = "toy"
    pause: ClassVar[float] = 0.0  # seconds that a loss takes longer
    train: int = 64
    optimizer: Exact = "sgd"
    eta_x: float = 2e-3
    eta_y: float = 0.2
    steps: int = 24
    batch: int = 8
    eval_every: int = 4
    patience: int = 0

    def setup(self) -> Setup:
        model = Network()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(240, 8, generator=generator, dtype=torch.float64)
        labels = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
        places = {"train": range(self.train), "dev": range(100, 140), "test": range(140, 240)}
        splits = {n: Encoded(((),) * len(p), (((0,), (1,)),) * len(p), tuple(labels[p.start : p.stop].tolist()),
                             "verbalizer", 0) for n, p in places.items()}  # fmt: skip
        names = {"hybrid": ("base", "peft"), "fo-joint": ("base", "peft"), "fo-peft": ("peft",)}.get(
            self.method, ("base",)
        )
        for name in ("base", "peft"):
            getattr(model, name).requires_grad_(name in names)
        blocks = {n: Block(n, tuple(getattr(model, n).parameters())) for n in names}

        def batches(step: int) -> list[tuple[Tensor, Tensor]]:
            numbers = reshuffled(self.train, self.batch, self.seed, step)
            parts = distributed.parts(numbers, "cpu", self.parts)
            return [(x[part], labels[part]) for part in parts]

        def loss(model: Any, part: tuple[Tensor, Tensor]) -> Tensor:
            time.sleep(self.pause)
            return classifier_loss(model, part)

        def judge(part: Encoded) -> Accuracy:
            place = places["dev" if part is splits["dev"] else "test"]
            some = x[place.start : place.stop]
            with torch.no_grad():
                logs = (model.base(some) + model.peft(some)).log_softmax(-1)
            found = logs.argmax(1).tolist()
            right = sum(int(a == b) for a, b in zip(found, part.labels, strict=True))
            return Accuracy(right, len(found), tuple(found), tuple(map(tuple, logs.tolist())))

        def save(folder: Path, story: str) -> None:
            torch.save(nn.Module.state_dict(model), folder / "model.pt")

        model.eval()
        _check_batch(self, self.train)
        measured = measured_blocks(self, {n: Block(n, tuple(getattr(model, n).parameters())) for n in ("base", "peft")})
        return Setup(
            self, model, blocks, measured, batches,
            lambda numbers: (x[numbers], labels[numbers]), self.train // self.batch, loss, judge, splits["dev"],
            splits["test"], "made up", [], save,
        )  # fmt: skip


def forked(toy: Toy, out: Path, said: Path, pause: float = 0.0, **environment: str) -> int:
    """The number of a new process that runs `toy` as the command line does; its stderr goes to `said`.

    A forked process has imported all there is to import already.
    """
    if child := os.fork():
        return child
    status = 1
    try:
        os.environ.update(environment)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        Toy.pause = pause
        torch.set_num_threads(1)

        def lead() -> None:
            records.run(toy, out, environment={})

        if distributed.world_size() > 1:
            distributed.run(lead, lambda: list(toy.rows([])), "cpu")
        else:
            lead()
        status = 0
    except BadInput as error:
        os.write(2, str(error).encode())
        status = 2
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
