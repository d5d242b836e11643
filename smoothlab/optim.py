"""HybridSGD: Algorithm 1 on a real model, exact gradients for some parameters and zeroth-order ones for others.

With groups x (an estimator of `smoothlab.zeroth` as its oracle) and y (oracle None: the exact gradient), one step is

    x <- x - eta_x ghat_x f(x, y),   y <- y - eta_y grad_y f(x, y),   both at the same (x, y),

ghat_x as in Eq. (2). ZO-FT, FO-PEFT, hybrid, layer-wise and frozen parts are lists of groups: what is in none is
frozen. The backward pass differentiates exact groups alone. A one-sided estimate takes f(x, y) from it, and the step
then costs one first-order step, one forward pass and two passes over x.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.seedlog import SeedLog, descend, widened
from smoothlab.zeroth import Directional, ZerothOrder, evaluate

Closure = Callable[[], Tensor]
Group = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        loss: f(x, y); without exact groups and with two-sided estimates, which do not need it, the mean of the values
            that they took, f(x, y) + O(mu^2).
        gradients: the zeroth-order gradients by their group's name.
        norm: norm of the exact gradient before clipping; None without exact groups.
        shares: share of mu z that rounding let through, by the group's name, as measured at the first step.
    """

    loss: float
    gradients: dict[str, Directional]
    norm: float | None
    shares: dict[str, float]


class HybridSGD(torch.optim.Optimizer):
    """Algorithm 1 as a torch optimizer; learning-rate schedulers work as with any other.

    Args:
        groups: dicts with "params", and optionally "lr", "oracle" (None, or an estimator such as `ZerothOrder`),
            "name", "weight_decay", and, for exact groups, options of `exact`.
        lr: learning rate of groups that name none.
        seed: fixes all directions; those of step t and group k have the seed (seed, t, k).
        momentum: of exact groups.
        weight_decay: lambda of the term lambda/2 ||w||^2, whose gradient is exact in every group; zeroth-order groups
            are multiplied by 1 - lr lambda before the step.
        clip: greatest norm of the exact groups' gradient together; a longer one is scaled down to it.
        exact: makes the torch optimizer of the exact groups from their list, e.g. torch.optim.AdamW, instead of SGD.
        masters: add steps up in fp32 copies of 16-bit zeroth-order weights (2 more bytes for each of theirs), which
            single steps would not move; False warns.
        log: file that every zeroth-order step is appended to.

    Raises:
        BadInput: no groups, parameters in two of them (ties too), exact ones that are frozen, numbers out of range.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 1e-3,
        *,
        seed: int = 0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = None,
        exact: Callable[[list[Group]], torch.optim.Optimizer] | None = None,
        masters: bool = True,
        log: SeedLog | None = None,
    ) -> None:
        if clip is not None and not clip > 0:
            raise BadInput(f"clip = {clip}: use a norm above 0, or None")
        super().__init__(_checked(groups, lr, weight_decay), {"lr": lr, "oracle": None})
        self.seed, self.clip, self.log, self.steps = seed, clip, log, 0
        self.last: Step | None = None
        self._zeroth = [(k, group) for k, group in enumerate(self.param_groups) if group["oracle"] is not None]
        self._blocks = {k: Block(group["name"], tuple(group["params"])) for k, group in self._zeroth}
        self._masters = {k: wide for k, b in self._blocks.items() if masters and (wide := widened(b)) is not b}
        for block in self._blocks.values():
            _warn_short(block, masters)
        first = [group for group in self.param_groups if group["oracle"] is None]
        make = exact or (lambda those: torch.optim.SGD(those, momentum=momentum))
        self._exact = make(first) if first else None  # holds the same dicts: a scheduler writes to both

    def step(self, closure: Closure | Sequence[Closure]) -> Tensor:  # type: ignore[override]
        """One step of Algorithm 1.

        Args:
            closure: computes the loss of one minibatch, a deterministic scalar, and nothing else; several of them
                are averaged (accumulation), one graph in memory at a time.

        Returns:
            The loss at (x, y), see `Step.loss`.

        Raises:
            BadInput: the loss is no scalar, not finite or not deterministic, or depends on no parameter of an exact
                group; all weights are then as they were.
        """
        closures = [closure] if callable(closure) else list(closure)
        values: list[float] = []

        def mean() -> Tensor:
            losses = [one() for one in closures]
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            values.append(float(loss.detach()))
            return loss

        with self._frozen():
            try:
                loss, norm = self._differentiate(closures) if self._exact else (None, None)
                found = {k: self._estimate(k, group, mean, loss) for k, group in self._zeroth}
            except BaseException:
                self.zero_grad()
                raise
        if loss is None:
            loss = sum(values[-2:]) / len(values[-2:]) if values else 0.0
        for k, group in self._zeroth:
            self._move(k, group, found[k])
        if self._exact is not None:
            self._exact.step()
        names = {k: group["name"] for k, group in self._zeroth}
        shares = {
            names[k]: s for k, group in self._zeroth if (s := _share(group["oracle"], self._blocks[k])) is not None
        }
        self.last = Step(loss, {names[k]: one for k, one in found.items()}, norm, shares)
        self.steps += 1
        return torch.tensor(loss)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on beside the parameters."""
        groups = [{k: v for k, v in group.items() if k not in ("params", "oracle")} for group in self.param_groups]
        state: dict[str, Any] = {"steps": self.steps, "seed": self.seed, "groups": groups}
        state["exact"] = None if self._exact is None else self._exact.state_dict()
        state["masters"] = {str(k): [p.clone() for p in block.params] for k, block in self._masters.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, to the bit, from where `state_dict` was called on an optimizer of the same groups.

        Raises:
            BadInput: it is of other groups.
        """
        names = [group["name"] for group in self.param_groups]
        if [group.get("name") for group in state_dict["groups"]] != names:
            raise BadInput(f"the optimizer's state is of other groups than {', '.join(names)}: make it with the same")
        self.steps, self.seed = state_dict["steps"], state_dict["seed"]
        if self._exact is not None:
            mine = self._exact.param_groups
            self._exact.load_state_dict(state_dict["exact"])
            self._exact.param_groups = mine
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
        for k, block in self._masters.items():
            for p, saved in zip(block.params, state_dict["masters"][str(k)], strict=True):
                p.copy_(saved)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Without gradients of zeroth-order groups: no activation is kept for them."""
        flags = [(p, p.requires_grad) for block in self._blocks.values() for p in block.params]
        for p, _ in flags:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)

    def _differentiate(self, closures: Sequence[Closure]) -> tuple[float, float]:
        """The mean loss, and the norm of its exact gradient, which is left in the parameters."""
        assert self._exact is not None
        self._exact.zero_grad()
        total = 0.0
        for closure in closures:
            with torch.enable_grad():
                loss = closure()
            value = evaluate(_constant(loss), self._first_block())
            if not loss.requires_grad:
                raise BadInput("the loss depends on no parameter of an exact group: look at what is in the groups")
            (loss / len(closures)).backward()
            total += value / len(closures)
        params = [p for group in self._exact.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(params, self.clip if self.clip is not None else float("inf")))
        if not norm < float("inf"):
            raise BadInput(f"the exact gradient's norm is {norm} at step {self.steps}: lower the learning rates")
        return total, norm

    def _first_block(self) -> Block:
        assert self._exact is not None
        group = self._exact.param_groups[0]
        return Block(group["name"], (group["params"][0],))

    def _estimate(self, k: int, group: Group, mean: Closure, loss: float | None) -> Directional:
        oracle, block, seed = group["oracle"], self._blocks[k], (self.seed, self.steps, k)
        if loss is not None and isinstance(oracle, ZerothOrder) and oracle.sides == 1:
            return oracle(mean, block, seed, value=loss)
        return oracle(mean, block, seed)

    @torch.no_grad()
    def _move(self, k: int, group: Group, gradient: Directional) -> None:
        block, lr, decay = self._blocks[k], group["lr"], group["weight_decay"]
        if self.log is not None:
            self.log.append(self.steps, k, gradient, lr, decay)
        target = self._masters.get(k, block)
        descend(target, gradient, lr, decay)
        if target is not block:
            for p, master in zip(block.params, target.params, strict=True):
                p.copy_(master)


def _constant(loss: Tensor) -> Closure:
    """What was computed, as a closure without a graph; what is no tensor stays so, to be refused."""
    return lambda: loss.detach() if isinstance(loss, Tensor) else loss


def _checked(groups: Iterable[Group], lr: float, weight_decay: float) -> list[Group]:
    """The groups with names, lists of parameters and decay, after a look at what cannot be meant."""
    found: list[Group] = []
    owners: dict[tuple[Any, ...], str] = {}
    for k, given in enumerate(groups):
        group = {"name": f"group {k}", "oracle": None, "lr": lr, **given}
        group["params"] = [given["params"]] if isinstance(given["params"], Tensor) else list(given["params"])
        name, exact = group["name"], group["oracle"] is None
        if not group["params"]:
            raise BadInput(f"group '{name}' has no parameters: leave it out, or look at what should be in it")
        if any(other["name"] == name for other in found):
            raise BadInput(f"two groups are named '{name}': give each a name of its own")
        if not exact and not callable(group["oracle"]):
            raise BadInput(
                f"oracle {group['oracle']!r} of group '{name}': use None (exact), or an estimator (ZerothOrder)"
            )
        if not (isinstance(group["lr"], Tensor) or 0 <= group["lr"] < float("inf")):
            raise BadInput(f"lr = {group['lr']} of group '{name}': use a finite rate of at least 0")
        if weight_decay or not exact:
            group.setdefault("weight_decay", weight_decay)
        if not 0 <= group.get("weight_decay", 0.0) < float("inf"):
            raise BadInput(f"weight_decay = {group['weight_decay']} of group '{name}': use a number of at least 0")
        for p in group["params"]:
            if not p.is_floating_point():
                raise BadInput(f"group '{name}' holds {p.dtype} parameters: leave quantized or integer ones out")
            if exact and not p.requires_grad:
                raise BadInput(
                    f"group '{name}' has no oracle, but a parameter of shape {tuple(p.shape)} that is frozen "
                    "(requires_grad = False): give the group an estimator, or let the parameter require a gradient"
                )
            memory = (p.untyped_storage().data_ptr(), p.storage_offset()) if p.numel() else (id(p),)
            if memory in owners:
                raise BadInput(
                    f"a parameter of shape {tuple(p.shape)} is in groups '{owners[memory]}' and '{name}' (a tie, "
                    "or the same one twice): keep it in one"
                )
            owners[memory] = name
        found.append(group)
    if not found:
        raise BadInput("no groups: give at least one, a dict with params")
    return found


def _warn_short(block: Block, masters: bool) -> None:
    dtype = block.params[0].dtype
    if dtype == torch.float16:
        warnings.warn(f"block '{block.name}' is fp16: losses overflow at 65,504; bf16 or fp32 is safer", stacklevel=3)
    if dtype.itemsize == 2 and not masters:
        warnings.warn(
            f"block '{block.name}' is {str(dtype).removeprefix('torch.')} without masters: steps below half of the "
            "spacing of its numbers are lost",
            stacklevel=3,
        )


def _share(oracle: Any, block: Block) -> float | None:
    """What the estimator has measured of mu z that passes rounding."""
    places = getattr(oracle, "_places", {})
    return places[block].share if block in places else None
