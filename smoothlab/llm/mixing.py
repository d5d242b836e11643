"""The weights of `boft-ga`, which follow the gradient norms of its two parts in each layer.

With g_p the gradient of the loss by the parameters of part p (BOFT, LoRA-GA) of a layer, and w_p its weight,

    n_p = ||g_p|| / w_p,   m_p <- beta m_p + (1 - beta) n_p,   w_p = m_p / (m_BOFT + m_LoRA-GA).

g_p itself is proportional to w_p. Without the division a part with the larger weight had the larger norm, hence a
larger weight yet, until it had all. beta is `smoothing` of the configuration, 0.9; the first norms are taken as m_p.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers of `boft-ga` by name; none for every other method."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_mix"):
            yield name, module


def after_step(model: nn.Module, step: int = 0, total: int = 0) -> None:
    """Update the weights of every layer from the gradients of the step; does nothing for other methods.

    To be called after the optimizer's step, while the gradients are there; a layer whose gradients are not finite keeps
    its weights.
    """
    for _, layer in _layers(model):
        adapter = layer.active_adapters[0]
        mix, norms = layer.mix(adapter), []
        for params in layer.parts(adapter):
            squares = [p.grad.float().square().sum() for p in params if p.grad is not None]
            norms.append(sum(squares, torch.zeros(())).sqrt())
        at_weight_one = torch.stack([norm.to(mix.norms) for norm in norms]) / mix.weights()
        if bool(torch.isfinite(at_weight_one).all()):
            mix.observe(at_weight_one)


def follow(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the weights move after each step of the optimizer; nothing for other methods."""
    if next(_layers(model), None) is not None:
        optimizer.register_step_post_hook(lambda *_: after_step(model))


def weights(model: nn.Module) -> dict[str, tuple[float, float]]:
    """(w_BOFT, w_LoRA-GA) of each layer by its name."""
    by_layer = {}
    for name, layer in _layers(model):
        boft, lora = layer.mix(layer.active_adapters[0]).weights().tolist()
        by_layer[name.removeprefix("base_model.model.")] = (boft, lora)
    return by_layer


def state(model: nn.Module) -> dict[str, Tensor]:
    """State of `after_step` beside the parameters; copies, as a checkpoint's file holds no tensor twice."""
    return {name: norms.clone() for name, norms in buffers(model).items()}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """The norms of each layer, not copied: with those of another step the model computes something else."""
    return {f"norms/{name}": layer.mix(layer.active_adapters[0]).norms for name, layer in _layers(model)}


def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Restore what `state` returned; an empty mapping is the state before step 0."""
    for name, layer in _layers(model):
        norms = layer.mix(layer.active_adapters[0]).norms
        norms.copy_(saved.get(f"norms/{name}", torch.zeros_like(norms)))


def settle(model: nn.Module) -> None:
    """Do nothing: the weights are not part of the model's description."""
