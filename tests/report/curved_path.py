"""Records of a training run whose every number is known in closed form, written as `smoothlab smoothness` writes them.

The loss is separable, f(w) = sum_i a_i w_i^2 / 2 + b_i w_i^4 / 12, so that g_i = a_i w_i + b_i w_i^3 / 3 and
H = diag(a_i + b_i w_i^2): gradient descent moves the Hessian, and its norm falls together with the gradient's.
"""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

BATCH, SPREAD, HVPS = 8, 0.05, {"estimated": 15, "paper": 100}


@dataclass(frozen=True)
class Curved:
    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    start: float = 1.0
    lr: float = 0.02
    dim: int = 3_494_400  # number of parameters this block is said to have: it only scales the values as printed

    def path(self, steps):
        a, b = np.array(self.a), np.array(self.b)
        w = np.full(len(a), self.start)
        for _ in range(steps + 1):
            gradient = a * w + b * w**3 / 3
            yield w, gradient, a + b * w**2
            w = w - self.lr * gradient


BASE = Curved("base", (2.0, 5.0, 9.0), (6.0, 3.0, 1.0))
PEFT = Curved("peft", (0.3, 0.2), (0.1, 0.4), dim=49_152)
HEAD = Curved("head", (0.05, 0.04), (0.02, 0.01), dim=512)


def rows(blocks, at, protocols=("estimated", "paper"), noise=1.5e-3):
    """Rows at the steps `at`; paper rows carry a floor `noise * ||g|| * sqrt(d)` that adds in quadrature."""
    for block in blocks:
        trace = dict(enumerate(block.path(max(at) + 1)))
        for step in at:
            w, gradient, diagonal = trace[step]
            w_next, next_gradient, _ = trace[step + 1]
            norm, grad_norm = float(np.linalg.norm(diagonal)), float(np.linalg.norm(gradient))
            common = {
                "kind": "row", "step": step, "block": block.name, "wrt": block.name, "dim": block.dim, "h": None,
                "flag": None, "normalized": None, "loss": 0.7, "grad_norm": grad_norm, "grad_norm_total": grad_norm,
            }  # fmt: skip
            if "estimated" in protocols:
                yield common | {
                    "protocol": "estimated", "quantity": "frobenius", "hvps": HVPS["estimated"], "floor": 1e-6 * norm,
                    "value": norm, "low": norm * (1 - SPREAD), "high": norm * (1 + SPREAD),
                }  # fmt: skip
                top = float(diagonal.max())
                yield common | {
                    "protocol": "estimated", "quantity": "spectral", "hvps": 0, "floor": None,
                    "value": top, "low": top * (1 - 1e-6), "high": top * 1.1,
                }  # fmt: skip
                yield common | {
                    "protocol": "estimated", "quantity": "gradient_lipschitz", "hvps": 0, "floor": None,
                    "low": None, "high": None,
                    "value": float(np.linalg.norm(next_gradient - gradient) / np.linalg.norm(w_next - w)),
                }  # fmt: skip
            if "paper" in protocols:
                scale = np.sqrt(block.dim) / BATCH
                floor = noise * grad_norm * scale
                measured = float(np.hypot(norm, floor))
                yield common | {
                    "protocol": "paper", "quantity": "frobenius", "hvps": HVPS["paper"], "h": 1e-5,
                    "value": measured / scale, "low": 0.9 * measured / scale, "high": 1.1 * measured / scale,
                    "normalized": measured, "floor": floor / scale,
                    "flag": "below floor" if measured < 2 * floor else None,
                }  # fmt: skip


def write(path, found, config=None, experiment="smoothness"):
    header = {"kind": "header", "experiment": experiment,
              "config": {"model": "micro", "data": "sst2", "peft": "lora", "seed": 0, "batch": BATCH, **(config or {})},
              "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "threads": 1}}  # fmt: skip
    lines = [header, *found, {"kind": "end", "seconds": 12.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


STEPS = [0, 10, 20, 30, 45, 60]


def table(blocks=(BASE,), at=STEPS, **options):
    return pd.DataFrame(rows(blocks, at, **options)).assign(path="run.jsonl", experiment="smoothness")


def methods():
    """Curvature along three methods, as `smoothlab finetune --measure` writes it; without a PEFT module for zo."""
    parts = []
    for name, blocks in (("hybrid", [BASE, PEFT]), ("fo-peft", [BASE, PEFT]), ("zo", [BASE])):
        run = table(blocks, protocols=("estimated",), noise=0.02)
        run["value"] *= {"hybrid": 1.0, "fo-peft": 2.0, "zo": 3.0}[name]
        parts.append(run.assign(path=f"{name}.jsonl", method=name, part="curvature"))
    df = pd.concat(parts, ignore_index=True)
    df.attrs["headers"] = {path: {"config": {"seed": 0}} for path in df["path"].unique()}
    return df


def truth(block=BASE, at=STEPS):
    trace = list(block.path(max(at) + 1))
    return np.array([np.linalg.norm(trace[step][2]) for step in at])


def gradients(block=BASE, at=STEPS):
    trace = list(block.path(max(at) + 1))
    return np.array([np.linalg.norm(trace[step][1]) for step in at])


def layers(count=12):
    """An embedding, numbered layers whose curvature grows with their depth, a PEFT module and a head."""
    numbered = [Curved(f"layer.{i}", (2.0 + i, 5.0), (6.0, 3.0)) for i in range(count)]
    return [Curved("embedding", (2.0, 5.0), (6.0, 3.0)), *numbered, PEFT, HEAD]
