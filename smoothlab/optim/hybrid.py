"""HybridSGD: Algorithm 1 on a real model, exact gradients for some parameters and zeroth-order ones for others.

With groups x (an estimator of `smoothlab.zeroth.estimators` as its oracle) and y (oracle None: the exact gradient),
one step is

    x <- x - eta_x ghat_x f(x, y),   y <- y - eta_y grad_y f(x, y),   both at the same (x, y),

ghat_x as in Eq. (2). ZO-FT, FO-PEFT, hybrid, layer-wise and frozen parts are lists of groups: what is in none is
frozen. The backward pass differentiates exact groups alone. A one-sided estimate takes f(x, y) from it, and the step
then costs one first-order step, one forward pass and two passes over x.

Several closures in one step are parts of one minibatch; their losses and gradients are added in the order of
`smoothlab.optim.summation`. Several processes (`HybridSGD.peers`) hold as many parts each, and take the same step.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block, differentiable
from smoothlab.errors import BadInput
from smoothlab.optim.closure_check import ClosureCheck
from smoothlab.optim.groups import Group, check_depends, check_rows, checked, warn_narrow
from smoothlab.optim.masters import Masters, accumulator, descend, refreshed, round_to
from smoothlab.optim.minibatch import Closure, Minibatch, WatchedLoss
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.optim.summation import Peers
from smoothlab.shards import any_sharded
from smoothlab.zeroth.closures import evaluate
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.factors import Factors
from smoothlab.zeroth.gathered import reshard
from smoothlab.zeroth.variant import State, Update


@dataclass(frozen=True)
class Step:
    """Results of one step.

    Attributes:
        loss: f(x, y); without exact groups and with two-sided estimates, which do not need it, the mean of the values
            that they took, f(x, y) + O(mu^2).
        gradients: the zeroth-order gradients by their group's name.
        norm: norm of the exact gradient before clipping; None without exact groups.
        realized_fractions: fraction of mu z that rounding let through at the first step, by the group's name, where
            the estimator measures it.
    """

    loss: float
    gradients: dict[str, Directional]
    norm: float | None
    realized_fractions: dict[str, float]


class HybridSGD(torch.optim.Optimizer):
    """Algorithm 1 as a torch optimizer; learning-rate schedulers work as with any other.

    Groups with an oracle take zeroth-order steps, the others, the exact groups, steps by exact gradients at the same
    point.

    >>> import torch
    >>> from smoothlab import HybridSGD, ZerothOrder
    >>> x, y = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    >>> groups = [{"params": [x], "lr": 0.01, "oracle": ZerothOrder(mu=1e-3)}, {"params": [y], "lr": 0.1}]
    >>> optimizer = HybridSGD(groups)
    >>> float(optimizer.step(lambda: x.square().sum() + y.square().sum())), y.tolist()
    (5.0, [0.800000011920929, 0.800000011920929])

    Args:
        groups: dicts with "params", and optionally "lr", "oracle" (None, or an estimator such as `ZerothOrder`),
            "name", "weight_decay", "variant" for zeroth-order groups (what is done with their estimates, such as
            `Momentum`, `smoothlab.zeroth.variants`), and, for exact groups, options of `exact`.
        lr: learning rate of groups that name none.
        seed: fixes all directions; those of step t and group k have the seed (seed, t, k).
        momentum: momentum of SGD on the exact groups, those without an oracle.
        weight_decay: lambda of the term lambda/2 ||w||^2, whose gradient is exact in every group; zeroth-order groups
            are multiplied by 1 - lr lambda before the step.
        clip: greatest norm of the exact groups' gradient together; a longer one is scaled down to it.
        exact: makes the torch optimizer of the exact groups from their list, e.g. torch.optim.AdamW, instead of SGD.
        masters: where steps of 16-bit zeroth-order weights, which single steps would not move, add up. True: in fp32
            copies (4 more bytes a parameter); "factors": in the factors of their sum, beside matrices that are never
            written, for low-rank directions with `perturb="forward"` (see `smoothlab.zeroth.factors`); False: nowhere,
            which warns.
        log: file that every zeroth-order step is appended to; of several processes, one has it.

    Attributes:
        peers: other processes that take the same step on parts of their own of the minibatch; None alone.
        factors: what keeps the steps of 16-bit groups beside their weights, by number, with masters "factors".

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
        masters: Masters = True,
        log: SeedLog | None = None,
    ) -> None:
        if clip is not None and not clip > 0:
            raise BadInput(f"clip = {clip}: use a norm above 0, or None")
        super().__init__(checked(groups, lr, weight_decay), {"lr": lr, "oracle": None})
        self.seed, self.clip, self.log, self.steps = seed, clip, log, 0
        self.last: Step | None = None
        self.peers: Peers | None = None
        self._zeroth: dict[int, Group] = {}
        self._blocks: dict[int, Block] = {}
        self._masters: dict[int, Block] = {}  # fp32 copies of 16-bit blocks
        self.factors: dict[int, Factors] = {}
        self._states: dict[int, State] = {}  # of the groups' variants
        exact_groups = []
        for k, group in enumerate(self.param_groups):
            if group["oracle"] is None:
                exact_groups.append(group)
                continue
            block = Block(group["name"], tuple(group["params"]))
            self._zeroth[k], self._blocks[k], self._states[k] = group, block, ()
            warn_narrow(block, bool(masters))
            wide = accumulator(block, group["oracle"], masters)
            if isinstance(wide, Factors):
                self.factors[k] = wide
            elif wide is not None:
                self._masters[k] = wide
        self._check_log()
        self._pending: tuple[float, float | None, dict[int, Directional]] | None = None  # from `backward` to `step`
        self._exact: torch.optim.Optimizer | None = None
        named = self.param_groups[0]
        if exact_groups:
            # The torch optimizer holds the same dicts, so that a scheduler writes to both.
            self._exact = exact(exact_groups) if exact else torch.optim.SGD(exact_groups, momentum=momentum)
            named = exact_groups[0]
        self._named = Block(named["name"], (named["params"][0],))  # the block that errors about the loss name
        self._closures = ClosureCheck(self.param_groups, self._named)

    def add_param_group(self, param_group: Group) -> None:
        """Refused after the start: seeds, blocks and masters go by the numbers of the groups."""
        if hasattr(self, "seed"):
            raise BadInput("groups cannot be added to HybridSGD: make a new one of all groups")
        super().add_param_group(param_group)

    def _check_log(self) -> None:
        if self.log is None:
            return
        if (self.log.seed, self.log.groups) != (self.seed, tuple(self._blocks)):
            raise BadInput(
                f"{self.log.path} is of seed {self.log.seed} and groups {list(self.log.groups)}, the zeroth-order ones "
                f"here are {list(self._blocks)}, of seed {self.seed}: make the log for them"
            )
        for k, block in self._blocks.items():
            logged, variant = self.log.variants[k], self._zeroth[k]["variant"]
            if logged != variant:
                raise BadInput(
                    f"{self.log.path} is of steps of variant {logged.name}, group '{block.name}' takes steps of "
                    f"{variant.name}: make the log for it"
                )
            if block.params[0].dtype.itemsize == 2 and k not in {**self._masters, **self.factors}:
                raise BadInput("a seed log of 16-bit weights needs masters: a replay adds steps up in fp32, as they do")

    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor:  # type: ignore[override]
        """One step of Algorithm 1; returns the loss at (x, y), see `Step.loss`.

        Args:
            closure: see `backward`, which is called with it; None where it was called before.

        Raises:
            BadInput: see `backward`; or there is no closure, and `backward` was not called.
        """
        if closure is not None:
            self.backward(closure)
        if self._pending is None:
            raise BadInput(
                "HybridSGD.step() got no closure: call step(closure), where the closure computes the loss, or "
                "backward(closure) before; in place of a transformers.Trainer use smoothlab.HybridTrainer"
            )
        (loss, norm, gradients), self._pending = self._pending, None
        updates = {k: group["variant"].update(self._states[k], gradients[k]) for k, group in self._zeroth.items()}
        for k, (update, _) in updates.items():
            check_rows(self._blocks[k], update)
        # All gradients are taken, and logged, before any weight moves: they are those of one point (x, y), and a step
        # that finds no room on the disk has not happened.
        self._append_to_log(gradients)
        estimates, fractions = {}, {}
        for k, group in self._zeroth.items():
            update, self._states[k] = updates[k]
            self._move(k, group, update)
            estimates[group["name"]] = gradients[k]
            measure = getattr(group["oracle"], "realized_fraction", None)
            fraction = measure and measure(self._blocks[k])
            if fraction is not None:
                fractions[group["name"]] = fraction
        if self._exact is not None:
            self._exact.step()
        self.last = Step(loss, estimates, norm, fractions)
        self.steps += 1
        return torch.tensor(loss, dtype=torch.float64)

    def backward(self, closure: Closure | Sequence[Closure]) -> Tensor:
        """Compute f(x, y), which is returned, and both gradients, for a `step()` without closure; no weight moves.

        Between the two a loop may clip the exact gradient, in `.grad` of its parameters; `zero_grad` drops both.

        Args:
            closure: computes the loss of one minibatch, a scalar, and nothing else. It is called two or three times,
                and must give the same at the same weights, whether a graph is kept or not: dropout off, or its mask
                fixed (`smoothlab.blocks.fixed_loss`). Where there are zeroth-order groups, the first step evaluates it
                twice more to see that, and later ones where the closure behaves otherwise than before, and every 128
                steps. Several of them are averaged (accumulation), one graph in memory at a time.

        Raises:
            BadInput: the loss is no scalar, not finite, not deterministic, another one with a graph than without,
                writes to weights or buffers, or depends on no parameter of an exact group; all weights are then as
                they were, but for what a loss has written to weights of no group, or at a later step.
        """
        closures = [closure] if callable(closure) else list(closure)
        if not closures:
            raise BadInput("HybridSGD got an empty list of closures: give a function that computes the loss, or more")
        if self.peers is None and any(any_sharded(block.params) for block in self._blocks.values()):
            raise BadInput(
                "HybridSGD has sharded parameters (DTensor), whose rows must all move alike: set its attribute peers, "
                "optimizer.peers = smoothlab.llm.distributed.Peers()"
            )
        # No activation is kept for zeroth-order groups, whose parameters require no gradient meanwhile.
        with differentiable(self._blocks.values(), required=False):
            try:
                self._pending = self._at_this_point(Minibatch(closures, self.peers, self._named))
            except BaseException:
                self.zero_grad()
                raise
        return torch.tensor(self._pending[0], dtype=torch.float64)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the exact gradients, and estimates that no step has used."""
        super().zero_grad(set_to_none)
        self._pending = None

    def state_dict(self, *, masters: bool = True) -> dict[str, Any]:
        """Everything that the next steps depend on beside the parameters; without `masters` if a log rebuilds them.

        The log, which a checkpoint needs as much, is brought to disk.
        """
        if self.log is not None:
            self.log.force()
        groups = [dict(group) for group in self.param_groups]
        for group in groups:
            del group["params"], group["oracle"], group["variant"]  # weights are the caller's to save, others are code
        state = {"steps": self.steps, "seed": self.seed, "groups": groups, "apart": self._closures.differs}
        state |= {"exact": self._exact and self._exact.state_dict(), "masters": None}
        state["variants"] = {str(k): [self._zeroth[k]["variant"].name, moments] for k, moments in self._states.items()}
        if masters:
            state["masters"] = {str(k): block.copies() for k, block in self._masters.items()}
            state["factors"] = {str(k): factors.state() for k, factors in self.factors.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, to the bit, from where `state_dict` was called on an optimizer of the same groups.

        Masters stay as they are where the state is without them: `replay` was called before.

        Raises:
            BadInput: it is of different groups, or the seed log ends before.
        """
        names = [group["name"] for group in self.param_groups]
        if names != [group.get("name") for group in state_dict["groups"]]:
            raise BadInput(f"the optimizer's state is of other groups than {', '.join(names)}: make it with the same")
        exact, masters, factors = state_dict["exact"], state_dict["masters"], state_dict.get("factors") or {}
        different = (exact is None) != (self._exact is None)
        for saved, current in ((masters, self._masters), (factors, self.factors)):
            if masters is not None and set(map(int, saved)) != set(current):
                different = True
        if different:
            raise BadInput("the optimizer's state is of other oracles or masters: make it with the same")
        self._load_variants(state_dict.get("variants", {}))
        self.steps, self.seed = state_dict["steps"], state_dict["seed"]
        self._closures.differs = state_dict.get("apart")  # states of before 0.2 have none
        self._check_log()
        if self._exact is not None:
            exact_groups = self._exact.param_groups  # torch would put copies in their place
            self._exact.load_state_dict(exact)
            self._exact.param_groups = exact_groups
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
        for k, values in (masters or {}).items():
            for p, value in zip(self._masters[int(k)].params, values, strict=True):
                p.copy_(value)
        for k, moves in factors.items():
            self.factors[int(k)].load(moves)
        if self.log is not None:
            self.log.cut(self.steps)

    def _load_variants(self, states: Mapping[str, Sequence[Any]]) -> None:
        for k, group in self._zeroth.items():
            name, moments = states.get(str(k), ("plain", ()))  # states of before there were variants have none
            if name != group["variant"].name:
                raise BadInput(
                    f"the optimizer's state is of variant {name}, group '{group['name']}' is of "
                    f"{group['variant'].name}: make it with the same"
                )
            self._states[k] = moments

    def replay(self, log: Path, until: int | None = None) -> int:
        """Move the zeroth-order groups, which stand at theta_0, and their masters along a log; see `seedlog.replay`."""
        distributions = {k: group["oracle"].distribution for k, group in self._zeroth.items()}
        variants = {k: group["variant"] for k, group in self._zeroth.items()}
        return replay(log, self._blocks, distributions, until, {**self._masters, **self.factors}, variants)

    def _at_this_point(self, minibatch: Minibatch) -> tuple[float, float | None, dict[int, Directional]]:
        """The loss, the norm of the exact gradient, which is left in the parameters, and the estimates."""
        if not self._zeroth:
            return *self._exact_gradient(minibatch), {}
        closures = self._closures
        watch, first_look = closures.begin(minibatch)  # f(x, y) before the first step, None before later ones
        loss = WatchedLoss(minibatch, watch)
        with watch.step():
            with_graph = norm = without_graph = None
            if self._exact is not None:
                with watch.call():
                    with_graph, norm = self._exact_gradient(minibatch)
            if first_look is not None and with_graph is not None:
                closures.compare(with_graph, first_look, minibatch)
            one_sided = any(group["oracle"].sides == 1 for group in self._zeroth.values())
            if one_sided and (with_graph is None or closures.differs):
                without_graph = evaluate(loss, self._named)  # as f(x + mu z) is evaluated
            center = with_graph if without_graph is None else without_graph
            gradients = {k: self._estimate(k, group, loss, center) for k, group in self._zeroth.items()}
            if center is None:
                center = sum(loss.values[-2:]) / 2  # of the last direction, both sides
            if self.last is None:
                for k, gradient in gradients.items():
                    check_depends(loss, self._blocks[k], gradient)
            if first_look is None:
                closures.check_again(watch, minibatch, with_graph, without_graph, step=self.steps, peers=self.peers)
            else:
                watch.record_checked()
        closures.keep(watch)
        return center if with_graph is None else with_graph, norm, gradients

    def _exact_gradient(self, minibatch: Minibatch) -> tuple[float, float]:
        """The mean loss, and the norm of its exact gradient, which is left in the parameters."""
        assert self._exact is not None
        params = [p for group in self._exact.param_groups for p in group["params"]]
        value = minibatch.differentiate(params)
        if all(p.grad is None for p in params):
            raise BadInput("the loss depends on no parameter of an exact group: look at what is in the groups")
        # Without a limit, clipping to infinity is what measures the norm.
        norm = float(torch.nn.utils.clip_grad_norm_(params, self.clip or math.inf))
        if not norm < math.inf:
            raise BadInput(f"the exact gradient's norm is {norm} at step {self.steps}: lower the learning rates")
        return value, norm

    def _estimate(self, k: int, group: Group, loss: Closure, center: float | None) -> Directional:
        """The zeroth-order gradient of group k; a one-sided one takes f(x, y), `center`."""
        oracle, block = group["oracle"], self._blocks[k]
        options = {}
        if oracle.sides == 1:
            options["value"] = center
        gradient = oracle(loss, block, (self.seed, self.steps, k), **options)
        if not isinstance(gradient, Directional):
            raise BadInput(
                f"the oracle of group '{block.name}' returned a {type(gradient).__name__}: return a "
                "smoothlab.Directional"
            )
        return gradient

    def _append_to_log(self, gradients: Mapping[int, Directional]) -> None:
        """Write the step to the log, all of it or nothing, before any weight moves."""
        if self.log is None:
            return
        try:
            for k, group in self._zeroth.items():
                self.log.append(self.steps, k, gradients[k], group["lr"], group["weight_decay"])
        except BadInput:
            if self.log.steps == self.steps:
                self.log.cut(self.steps)
            raise

    def _move(self, k: int, group: Group, update: Update) -> None:
        block = self._blocks[k]
        if k in self.factors:
            self.factors[k].descend(update, group["lr"], group["weight_decay"])
            return
        masters = refreshed(block, self._masters.get(k, block))
        descend(masters, update, group["lr"], group["weight_decay"])
        round_to(block, masters)
        if any_sharded(block.params):
            reshard(group["oracle"].layers)  # what FSDP2 keeps gathered is of before the step
