"""The smoothness experiment on a small torch network; `python -m tests.experiments.toy OUT [--keep DIR]` runs it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.blocks import Block
from smoothlab.experiments.finetune.setup import Setup, _check_batch, measured_blocks
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.llm.encoding import Encoded
from smoothlab.trainer import reshuffled


class Network(nn.Module):
    """A tanh network with a skip connection of its own as the "PEFT module"; called as transformers models are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 2)).double()
        self.peft = nn.Linear(8, 2).double()

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.base(x) + self.peft(x))


def classifier_loss(model: nn.Module, part: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of labelled points."""
    x, labels = part
    return nn.functional.cross_entropy(model(x).logits, labels)


@dataclass(frozen=True)
class Toy(Smoothness):
    """Smoothness with `Network` on 50 points in place of a language model."""

    name: ClassVar[str] = "toy"
    steps: int = 40
    points: int = 6
    eta_x: float = 0.2
    eta_y: float = 0.1
    protocol: str = "both"  # type: ignore[assignment]
    probes: int = 5

    def setup(self) -> Setup:
        model = Network()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
        labels = (x[:, 0] * x[:, 1] > 0).long()
        blocks = {n: Block(n, tuple(getattr(model, n).parameters())) for n in ("base", "peft")}

        def batches(step: int) -> list[tuple[Tensor, Tensor]]:
            numbers = reshuffled(50, self.batch, self.seed, step)
            return [(x[numbers], labels[numbers])]

        _check_batch(self, 50)
        nothing: Any = None
        items = Encoded((), (), (), "classifier", 0)
        return Setup(
            self, model, blocks, measured_blocks(self, blocks), batches,
            lambda numbers: (x[numbers], labels[numbers]), 50 // self.batch, classifier_loss, nothing,
            items, items, "made up", [], nothing,
        )  # fmt: skip


def main() -> None:
    out = Path(sys.argv[1])
    keep = Path(sys.argv[3]) if "--keep" in sys.argv else None
    torch.set_num_threads(1)
    records.run(Toy(steps=60, points=6, protocol="estimated", checkpoint=keep), out, environment={})


if __name__ == "__main__":
    main()
