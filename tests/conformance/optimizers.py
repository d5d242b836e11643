"""Optimizers as their users write them, right ones and broken ones, as data for the suite's tests."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Closure = Callable[[], Tensor]


class MeZO(torch.optim.Optimizer):
    """The step of MeZO (Malladi et al. 2023), from its description, in place; faults are switched on by name."""

    fault = ""

    def __init__(self, params: Sequence[Tensor], lr: float, seed: int = 0, mu: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.mu, self.steps, self.seed = mu, 0, seed

    def _draw(self, word: int) -> list[Tensor]:
        params = self.param_groups[0]["params"]
        generator = torch.Generator().manual_seed(1000 * self.seed + word)
        if self.fault == "streams of seeds overlap":
            generator.manual_seed(self.seed + word)
        if self.fault == "the seed has no effect":
            generator.manual_seed(word)
        if self.fault == "steps share a stream":
            generator.manual_seed(1000 * self.seed)
        drawn = []
        for p in params:
            if self.fault == "tensors share a stream":
                generator.manual_seed(1000 * self.seed + word)
            drawn.append(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        return drawn

    def _move(self, z: Sequence[Tensor], factor: float) -> None:
        for p, direction in zip(self.param_groups[0]["params"], z, strict=True):
            p.data += (factor * direction).to(p.dtype)

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        z, mu, lr = self._draw(self.steps), self.mu, self.param_groups[0]["lr"]
        back = 1.8 if self.fault == "the points are not mirrored" else 2.0
        self._move(z, mu)
        plus = closure()
        self._move(z, -back * mu)
        minus = closure()
        self._move(z, (back - 1) * mu)
        self.steps += 1
        update = z
        if self.fault == "the update is along another z":
            update = self._draw(self.steps)
        slope = float(plus - minus) / (2 * mu)
        if self.fault == "the sign is lost":
            slope = abs(slope)
        self._move(update, -lr * slope)
        return plus - 100 if self.fault == "the loss is another" else plus


FAULTS = {
    "the update is along another z": "along",
    "the sign is lost": "coefficients",
    "the points are not mirrored": "mirrored",
    "tensors share a stream": "tensors",
    "steps share a stream": "steps",
    "streams of seeds overlap": "seeds",
    "the loss is another": "loss",
    "the seed has no effect": "seeds",
}
"""Faults of `MeZO`, and the probe that finds each."""


def faulty(name: str) -> type[MeZO]:
    return type("Faulty", (MeZO,), {"fault": name})


def raises(params: Sequence[Tensor], lr: float) -> Any:
    raise TypeError("no such\nparameter")


def raises_in_step(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
    def step(closure: Closure) -> None:
        raise RuntimeError("no room")

    return step


def ignores(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
    return lambda closure: None


def not_a_number(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
    def step(closure: Closure) -> None:
        params[0].data += float("nan") * float(closure())

    return step


def needs_a_gpu(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
    def step(closure: Closure) -> None:
        params[0].cuda()

    return step


def misses_cuda(text: str) -> Callable[..., Any]:
    """An optimizer that fails as torch does where there is no GPU."""

    def make(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
        def step(closure: Closure) -> None:
            raise RuntimeError(text)

        return step

    return make


def slow(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
    def step(closure: Closure) -> None:
        time.sleep(30)

    return step


def a_number(params: Sequence[Tensor], lr: float) -> float:
    return lr


def looks_at_the_start(params: Sequence[Tensor], lr: float) -> Callable[[Closure], None]:
    def step(closure: Closure) -> None:
        params[0].data -= lr * torch.rand_like(params[0]) * float(closure())

    return step


UNUSABLE: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (raises, "raises TypeError: no such parameter"),
    "raises in its step": (raises_in_step, "raises RuntimeError: no room"),
    "ignores the closure": (ignores, "ignores the closure: no evaluation of the loss in any step"),
    "NaN": (not_a_number, "leaves NaN or infinity in the parameters"),
    "too long": (slow, "takes more than 0.3 s: use a faster setting, or a longer --step-seconds"),
    "a number": (a_number, "made a float: return an object with step(closure), an estimator or a function"),
    "no perturbation": (looks_at_the_start, "evaluates the loss at the start only: no perturbation"),
}
"""Optimizers that cannot be looked at, and the line that says so."""
if not torch.cuda.is_available():
    UNUSABLE["CUDA"] = (needs_a_gpu, "needs CUDA, which is not here")
    # The words of torch 2.13 and 2.14 without CUDA, and with CUDA where there is no driver.
    for text in ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver on your system."):
        UNUSABLE[text] = (misses_cuda(text), f"needs CUDA, which is not here: {text}")
