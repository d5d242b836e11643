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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block, standing_at
from smoothlab.errors import BadInput
from smoothlab.optim.groups import Group, check_depends, checked, warn_short
from smoothlab.optim.seedlog import SeedLog, descend, replay
from smoothlab.optim.seedlog import widened as masters_of
from smoothlab.optim.summation import Peers, Terms, Tree, in_order, over_all, widened
from smoothlab.zeroth.closures import AGAIN, Watch, check_same, check_written, same_function
from smoothlab.zeroth.estimators import Directional, evaluate, finite, scalar

Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """What one step did.

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

    >>> import torch
    >>> from smoothlab import HybridSGD, ZerothOrder
    >>> x, y = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    >>> groups = [{"params": [x], "lr": 0.01, "oracle": ZerothOrder(mu=1e-3)}, {"params": [y], "lr": 0.1}]
    >>> optimizer = HybridSGD(groups)
    >>> float(optimizer.step(lambda: x.square().sum() + y.square().sum())), y.tolist()
    (5.0, [0.800000011920929, 0.800000011920929])

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
        log: file that every zeroth-order step is appended to; of several processes, one has it.

    Attributes:
        peers: other processes that take the same step on parts of their own of the minibatch; None alone.

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
        super().__init__(checked(groups, lr, weight_decay), {"lr": lr, "oracle": None})
        self.seed, self.clip, self.log, self.steps = seed, clip, log, 0
        self.last: Step | None = None
        self.peers: Peers | None = None
        self._zeroth = [(k, group) for k, group in enumerate(self.param_groups) if group["oracle"] is not None]
        self._blocks = {k: Block(group["name"], tuple(group["params"])) for k, group in self._zeroth}
        self._masters = {k: wide for k, b in self._blocks.items() if masters and (wide := masters_of(b)) is not b}
        for block in self._blocks.values():
            warn_short(block, masters)
        self._check_log()
        self._watch: Watch | None = None
        self._apart: bool | None = (
            None  # whether f(x, y) is evaluated without a graph too: with one it is rounded otherwise
        )
        first = [group for group in self.param_groups if group["oracle"] is None]
        make = exact or (lambda exact_groups: torch.optim.SGD(exact_groups, momentum=momentum))
        self._exact = make(first) if first else None  # holds the same dicts: a scheduler writes to both

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
        if any(block.params[0].dtype.itemsize == 2 and k not in self._masters for k, block in self._blocks.items()):
            raise BadInput("a seed log of 16-bit weights needs masters: a replay adds steps up in fp32, as they do")

    def step(self, closure: Closure | Sequence[Closure]) -> Tensor:  # type: ignore[override]
        """One step of Algorithm 1.

        Args:
            closure: computes the loss of one minibatch, a scalar, and nothing else. It is called two or three times,
                and must give the same at the same weights, whether a graph is kept or not: dropout off, or its mask
                fixed (`smoothlab.blocks.fixed_loss`). Where there are zeroth-order groups, the first step evaluates it
                twice more to see that, and later ones where the closure behaves otherwise than before, and every 128
                steps. Several of them are averaged (accumulation), one graph in memory at a time.

        Returns:
            The loss at (x, y), see `Step.loss`.

        Raises:
            BadInput: the loss is no scalar, not finite, not deterministic, another one with a graph than without,
                writes to weights or buffers, or depends on no parameter of an exact group; all weights are then as
                they were, but for what a loss has written to weights of no group, or at a later step.
        """
        closures = [closure] if callable(closure) else list(closure or ())
        if not closures:
            raise BadInput("step() got no closure: give a function that computes the loss, or several")
        with self._frozen():
            try:
                loss, norm, gradients = self._at_this_point(closures)
            except BaseException:
                self.zero_grad()
                raise
        self._note(gradients)
        for k, group in self._zeroth:
            self._move(k, group, gradients[k])
        if self._exact is not None:
            self._exact.step()
        estimates, fractions = {}, {}
        for k, group in self._zeroth:
            estimates[group["name"]] = gradients[k]
            measure = getattr(group["oracle"], "realized_fraction", None)
            fraction = measure and measure(self._blocks[k])
            if fraction is not None:
                fractions[group["name"]] = fraction
        self.last = Step(loss, estimates, norm, fractions)
        self.steps += 1
        return torch.tensor(loss, dtype=torch.float64)

    def state_dict(self, *, masters: bool = True) -> dict[str, Any]:
        """Everything that the next steps depend on beside the parameters; without `masters` if a log rebuilds them.

        The log, which a checkpoint needs as much, is brought to disk.
        """
        if self.log is not None:
            self.log.force()
        groups = [{k: v for k, v in group.items() if k not in ("params", "oracle")} for group in self.param_groups]
        state: dict[str, Any] = {"steps": self.steps, "seed": self.seed, "groups": groups, "apart": self._apart}
        state["exact"] = None if self._exact is None else self._exact.state_dict()
        wide = {str(k): [p.clone() for p in block.params] for k, block in self._masters.items()} if masters else None
        state["masters"] = wide
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, to the bit, from where `state_dict` was called on an optimizer of the same groups.

        Masters stay as they are where the state is without them: `replay` was called before.

        Raises:
            BadInput: it is of other groups, or the seed log ends before.
        """
        names = [group["name"] for group in self.param_groups]
        if [group.get("name") for group in state_dict["groups"]] != names:
            raise BadInput(f"the optimizer's state is of other groups than {', '.join(names)}: make it with the same")
        exact, kept = state_dict["exact"] is not None, state_dict["masters"]
        if exact != (self._exact is not None) or (kept is not None and set(map(int, kept)) != set(self._masters)):
            raise BadInput("the optimizer's state is of other oracles or masters: make it with the same")
        self.steps, self.seed = state_dict["steps"], state_dict["seed"]
        self._apart = state_dict.get("apart")  # a state of before has none
        self._check_log()
        if self._exact is not None:
            mine = self._exact.param_groups
            self._exact.load_state_dict(state_dict["exact"])
            self._exact.param_groups = mine
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
        for k, block in self._masters.items() if kept is not None else ():
            for p, saved in zip(block.params, kept[str(k)], strict=True):
                p.copy_(saved)
        if self.log is not None:
            self.log.cut(self.steps)

    def replay(self, log: Path, until: int | None = None) -> int:
        """Move the zeroth-order groups, which stand at theta_0, and their masters along a log; see `seedlog.replay`."""
        distributions = {k: group["oracle"].distribution for k, group in self._zeroth}
        return replay(log, self._blocks, distributions, until, self._masters)

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

    def _at_this_point(self, closures: Sequence[Closure]) -> tuple[float, float | None, dict[int, Directional]]:
        """The loss, the norm of the exact gradient, which is left in the parameters, and the estimates."""
        if not self._zeroth:
            return *self._differentiate(closures), {}
        values: list[float] = []

        def mean() -> Tensor:
            with watch.call():
                loss = self._mean(closures)
            values.append(float(loss.detach()))
            return loss

        watch, plain = (self._watch, None) if self._watch is not None else self._begun(closures)
        sides = {group["oracle"].sides for _, group in self._zeroth}
        with watch.step():
            graph = norm = loss = None
            if self._exact is not None:
                with watch.call():
                    graph, norm = self._differentiate(closures)
            if plain is not None and graph is not None and not self._same(graph, plain) and self._apart is None:
                self._apart = True
            if (graph is None and sides != {2}) or (self._apart and 1 in sides):
                loss = evaluate(mean, self._first_block())  # as f(x + mu z) is evaluated, without a graph
            center = graph if loss is None else loss
            gradients = {k: self._estimate(k, group, mean, center) for k, group in self._zeroth}
            if center is None:
                center = sum(values[-2:]) / 2  # of the last direction, both sides
            if self.last is None:
                for k, gradient in gradients.items():
                    check_depends(mean, self._blocks[k], gradient)
            if plain is not None:
                watch.looked()
            else:
                self._look_again(watch, closures, graph, loss)
        self._watch, self._apart = watch, bool(self._apart)
        return center if graph is None else graph, norm, gradients

    def _begun(self, closures: Sequence[Closure]) -> tuple[Watch, float]:
        """Look closely at the closures, standing at copies of the weights, to which they might write; also f(x, y)."""
        watch, names = Watch([p for group in self.param_groups for p in group["params"]]), self._first_block()
        with ExitStack() as stack:
            for group in self.param_groups:
                if getattr(group["oracle"], "layers", None) is None:  # else there may be no room for a copy
                    block = Block(group["name"], tuple(group["params"]))
                    stack.enter_context(standing_at(block, [p.detach().clone() for p in block.params]))
            versions = [p._version for p in watch.params]
            with watch.meeting():
                first, second = (evaluate(lambda: self._mean(closures), names) for _ in range(2))
        check_written(watch.params[: len(versions)], versions)
        check_same(first, second, f"block '{names.name}'")
        return watch, second

    def _look_again(self, watch: Watch, closures: Sequence[Closure], graph: float | None, plain: float | None) -> None:
        """Evaluate f(x, y) again, where the closures show a sign of a change or it is time to."""
        due = self.steps % AGAIN == 0
        sign = torch.tensor([float(watch.changed())], dtype=torch.float64)
        if self.peers is not None:
            self.peers.sum([sign])
        if not due and not float(sign):
            return
        names = self._first_block()
        with watch.keeping_buffers():
            again = evaluate(lambda: self._mean(closures), names)
            if plain is None and again != graph:
                plain = evaluate(lambda: self._mean(closures), names)
        if plain is not None:
            check_same(plain, again, f"block '{names.name}'")
        if graph is not None and not self._same(graph, again) and due:
            self._apart = True
        watch.looked()

    def _same(self, graph: float, plain: float) -> bool:
        dtypes = {self._rounded, *(group["params"][0].dtype for group in self.param_groups)}
        return same_function(graph, plain, max(torch.finfo(dtype).eps for dtype in dtypes))

    def _mean(self, closures: Sequence[Closure]) -> Tensor:
        """The mean loss of all parts of the minibatch."""
        return self._mean_of([scalar(part(), self._first_block()) for part in closures])

    def _mean_of(self, losses: Sequence[Tensor]) -> Tensor:
        self._rounded = losses[0].dtype
        if self._parts(losses) == 1:
            return losses[0]
        total = in_order(loss.double() for loss in losses)
        if self.peers is not None:
            total = total.detach().clone()
            self.peers.sum([total])
        return total / self._parts(losses)

    def _parts(self, here: Sequence[object]) -> int:
        """Parts of the minibatch in all processes."""
        return len(here) * (1 if self.peers is None else self.peers.count)

    def _differentiate(self, closures: Sequence[Closure]) -> tuple[float, float]:
        """The mean loss, and the norm of its exact gradient, which is left in the parameters."""
        assert self._exact is not None
        self._exact.zero_grad()
        losses, params = [], [p for group in self._exact.param_groups for p in group["params"]]
        tree, parts, waiting = Tree(), self._parts(closures), 0
        narrow = any(p.dtype.itemsize == 2 for p in params)  # these are added in fp32
        for number, closure in enumerate(closures):
            with torch.enable_grad():
                loss = scalar(closure(), self._first_block())
            if self.peers is None:  # else all hear of it together
                finite(float(loss.detach()), self._first_block())
            losses.append(loss.detach())
            if loss.requires_grad:
                (loss / parts).backward(inputs=params)  # what is in no group is frozen, whatever its flag says
            waiting += 1
            if parts > 1 and (waiting == 2 or narrow or number + 1 == len(closures)):
                tree.push(widened([p.grad for p in params]), waiting)  # autograd has added two by itself
                self._exact.zero_grad()
                waiting = 0
        value = finite(float(self._mean_of(losses)), self._first_block())
        if parts > 1:
            total: Terms = tree.total()
            total = total if self.peers is None else over_all(total, params, self.peers)
            for p, gradient in zip(params, total, strict=True):
                p.grad = None if gradient is None else gradient.to(p.dtype)
        if all(p.grad is None for p in params):
            raise BadInput("the loss depends on no parameter of an exact group: look at what is in the groups")
        norm = float(torch.nn.utils.clip_grad_norm_(params, self.clip if self.clip is not None else float("inf")))
        if not norm < float("inf"):
            raise BadInput(f"the exact gradient's norm is {norm} at step {self.steps}: lower the learning rates")
        return value, norm

    def _first_block(self) -> Block:
        """A block for what is said of the loss."""
        group = self.param_groups[0] if self._exact is None else self._exact.param_groups[0]
        return Block(group["name"], (group["params"][0],))

    def _estimate(self, k: int, group: Group, mean: Closure, loss: float | None) -> Directional:
        oracle, block, seed = group["oracle"], self._blocks[k], (self.seed, self.steps, k)
        options = {"value": loss} if oracle.sides == 1 else {}
        gradient = oracle(mean, block, seed, **options)
        if not isinstance(gradient, Directional):
            raise BadInput(
                f"the oracle of group '{block.name}' returned a {type(gradient).__name__}: return a "
                "smoothlab.zeroth.estimators.Directional"
            )
        return gradient

    def _note(self, gradients: Mapping[int, Directional]) -> None:
        """Write the step to the log, all of it or nothing, before any weight moves."""
        if self.log is None:
            return
        try:
            for k, group in self._zeroth:
                self.log.append(self.steps, k, gradients[k], group["lr"], group["weight_decay"])
        except BadInput:
            if self.log.steps == self.steps:
                self.log.cut(self.steps)
            raise

    @torch.no_grad()
    def _move(self, k: int, group: Group, gradient: Directional) -> None:
        block, lr, decay = self._blocks[k], group["lr"], group["weight_decay"]
        target = self._masters.get(k, block)
        descend(target, gradient, lr, decay)
        if target is not block:
            for p, master in zip(block.params, target.params, strict=True):
                p.copy_(master)
