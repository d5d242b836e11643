"""The smoothness experiment on a small torch network; `python -m tests.experiments.toy OUT [--keep DIR]` runs it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.blocks import Block
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.llm.train import FineTuning


class Network(nn.Module):
    """A tanh network with a skip connection of its own as the "PEFT module"; called as transformers models are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 2)).double()
        self.peft = nn.Linear(8, 2).double()

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.base(x) + self.peft(x))


@dataclass(frozen=True)
class Toy(Smoothness):
    """Smoothness with `Network` in place of a language model."""

    name: ClassVar[str] = "toy"
    steps: int = 40
    points: int = 6
    lr: float = 0.2
    protocol: str = "both"  # type: ignore[assignment]
    probes: int = 5

    def tuning(self) -> FineTuning:
        model = Network()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
        labels = (x[:, 0] * x[:, 1] > 0).long()
        blocks = {n: Block(n, tuple(getattr(model, n).parameters())) for n in ("base", "peft")}
        rates = {"base": self.lr, "peft": self.lr / 2}
        return FineTuning(
            model, blocks, lambda i: {"x": x[i], "labels": labels[i]}, 50, self.batch, rates, self.seed, self.dropout
        )


def main() -> None:
    out = Path(sys.argv[1])
    keep = Path(sys.argv[3]) if "--keep" in sys.argv else None
    torch.set_num_threads(1)
    records.run(Toy(steps=60, points=6, protocol="estimated", keep_weights=keep), out, environment={})


if __name__ == "__main__":
    main()
