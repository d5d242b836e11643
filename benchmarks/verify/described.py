"""Steps written from their descriptions in papers, where the code is no package; and HybridSGD."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from smoothlab import HybridSGD, ZerothOrder

Closure = Callable[[], Tensor]
Step = Callable[[Closure], Any]


def hybrid_sgd(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3, exact: Sequence[Tensor] = ()) -> Any:
    """smoothlab's HybridSGD, a zeroth-order group, and an exact one where it is asked for."""
    groups: list[dict[str, Any]] = [{"params": params, "lr": lr, "oracle": ZerothOrder(mu)}]
    if exact:
        groups.append({"params": exact, "lr": lr})
    return HybridSGD(groups, seed=seed)


def _move(params: Sequence[Tensor], z: Sequence[Tensor], factor: float) -> None:
    for p, direction in zip(params, z, strict=True):
        p.data = p.data + factor * direction


def _gaussian(params: Sequence[Tensor], word: int) -> list[Tensor]:
    """One stream for all tensors, in their order, drawn in their formats."""
    generator = torch.Generator().manual_seed(word)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def _two_points(params: Sequence[Tensor], z: Sequence[Tensor], mu: float, closure: Closure) -> tuple[Tensor, float]:
    """The loss at +mu z, and the slope; weights go +1, -2, +1 times mu z in place."""
    with torch.no_grad():
        _move(params, z, mu)
        plus = closure()
        _move(params, z, -2 * mu)
        minus = closure()
        _move(params, z, mu)
    return plus, float(plus - minus) / (2 * mu)


def mezo(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """MeZO, Algorithm 1 of Malladi et al. (2023)."""
    words = torch.Generator().manual_seed(seed)

    def step(closure: Closure) -> Tensor:
        z = _gaussian(params, int(torch.randint(2**31, (1,), generator=words)))
        loss, slope = _two_points(params, z, mu, closure)
        _move(params, z, -lr * slope)
        return loss

    return step


def zo_bench_sgd(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """ZO-SGD with forward differences and q = 2, as in the benchmark of Zhang et al. (2024), Eq. (2) there."""
    words = torch.Generator().manual_seed(seed)

    def step(closure: Closure) -> Tensor:
        terms = []
        with torch.no_grad():
            center = closure()
            for _ in range(2):
                z = _gaussian(params, int(torch.randint(2**31, (1,), generator=words)))
                _move(params, z, mu)
                terms.append((z, float(closure() - center) / mu))
                _move(params, z, -mu)
        for z, slope in terms:
            _move(params, z, -lr * slope / 2)
        return center

    return step


def lozo(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """LOZO, Chen et al. (2024): Z = U V' with rank 2, V kept for 50 steps, update U V'/r."""
    words, state = torch.Generator().manual_seed(seed), {"step": 0}
    factors: list[Tensor] = []

    def step(closure: Closure) -> Tensor:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=words)))
        if state["step"] % 50 == 0:
            factors.clear()
            factors.extend(torch.randn(p.shape[-1], 2, generator=generator, dtype=p.dtype) for p in params)
        z = []
        for p, v in zip(params, factors, strict=True):
            if p.dim() == 2:
                z.append(torch.randn(p.shape[0], 2, generator=generator, dtype=p.dtype) @ v.T)
            else:
                z.append(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        loss, slope = _two_points(params, z, mu, closure)
        for p, direction in zip(params, z, strict=True):
            rank = 2 if p.dim() == 2 else 1
            p.data = p.data - lr * slope * direction / rank
        state["step"] += 1
        return loss

    return step


def es_at_scale(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """Evolution strategies at scale, Qiu et al. (2025): N = 4 seeds, z-scored rewards, theta + alpha mean(R z)."""
    words = torch.Generator().manual_seed(seed)

    def step(closure: Closure) -> None:
        drawn, rewards = [], []
        with torch.no_grad():
            for _ in range(4):
                z = _gaussian(params, int(torch.randint(2**31, (1,), generator=words)))
                _move(params, z, mu)
                rewards.append(-float(closure()))
                _move(params, z, -mu)
                drawn.append(z)
        r = torch.tensor(rewards, dtype=torch.float64)
        scores = ((r - r.mean()) / (r.std() + 1e-8)).tolist()
        for z, score in zip(drawn, scores, strict=True):
            _move(params, z, lr * score / 4)

    return step


CLAIMS = {
    "hybrid_sgd": {"distribution": "gaussian"},
    "mezo": {"distribution": "gaussian"},
    "zo_bench_sgd": {"distribution": "gaussian"},
    "es_at_scale": {"distribution": "gaussian"},
}
