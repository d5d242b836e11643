"""The loss at x + h z, z of low rank, with the move inside the forward pass: weights are neither written nor copied.

Products with the block's matrices are those of `smoothlab.zeroth.products`. All other tensors of the block (norms,
biases, convolutions) stand at fl(theta + h z), in memory of their own.

Parameters that FSDP2 shards stand so while they are gathered (`smoothlab.zeroth.gathered`).

Where a minibatch is repeated, each repetition's rows meet the weights at a point of their own (`at_points`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.shards import any_sharded, is_sharded
from smoothlab.zeroth.closures import module_calls
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.factors import with_factors_of, with_steps
from smoothlab.zeroth.gathered import Stand
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.perturbation import LEAST_FRACTION, Perturbation, shifted
from smoothlab.zeroth.products import OTHER, Move, moved
from smoothlab.zeroth.repetition import check_same_loss, repeated, separating_sets
from smoothlab.zeroth.rng import Seed, Terms
from smoothlab.zeroth.vectors import moved_vectors


class ForwardPerturbation(Perturbation):
    """Lets a loss be one at x + h z with the matrices of the block where they are.

    Args:
        block: the block.
        distribution: distribution of its directions.
        dtype: number format of moved tensors that are no matrices, that of the block by default.
        module: the module that the loss runs; needed for sharded parameters alone.

    Raises:
        BadInput: the rank of the directions is above that of a matrix, or a matrix is of a class of its own.
    """

    def __init__(
        self, block: Block, distribution: LowRank, *, dtype: torch.dtype | None = None, module: nn.Module | None = None
    ) -> None:
        super().__init__(block, layers=module if any_sharded(block.params) else None, dtype=dtype)
        self._distribution = distribution
        self._matrices, self._vectors = [], []  # numbers of parameters; what is no matrix is a vector here
        for i, p in enumerate(block.params):
            if p.dim() == 2 and p.numel():
                self._matrices.append(i)
            else:
                self._vectors.append(i)
        self._names: dict[int, str] = {}  # of parameters by id, once the loss was run
        self._labels = [partial(self._label, i) for i in range(len(block.params))]
        self._drawn: dict[Seed, tuple[dict[int, tuple[Tensor, Tensor]], dict[int, Tensor]]] = {}
        for i in self._matrices:
            p = block.params[i]
            if distribution.rank > min(p.shape):
                raise BadInput(
                    f"rank {distribution.rank} of low-rank directions is above that of a matrix of shape "
                    f"{tuple(p.shape)} of block '{block.name}': use a rank of at most {min(p.shape)}, or {OTHER}"
                )
            if type(p) not in (Tensor, nn.Parameter) and not is_sharded(p):
                raise BadInput(
                    f"{self._label(i)} is a {type(p).__name__}, which computes in a way of its own: use {OTHER}"
                )
        if self._gathered is not None:
            self._names.update(self._gathered.names)

    def forget(self) -> None:
        """Forget the directions of the last step; whoever holds its streams keeps them."""
        super().forget()
        self._drawn, self.streams = {}, {}

    def release(self) -> None:
        """Free all memory."""
        super().release()
        self._drawn, self.streams = {}, {}

    @contextmanager
    def along(self, distribution: Distribution, direction: Terms, h: float) -> Iterator[None]:
        """Inside the context a loss is one at x + h z."""
        ((seed, weight),) = direction
        with self._standing(partial(self._moved_along, seed=seed, h=h * weight)):
            yield

    @contextmanager
    def _standing(self, stand: Stand) -> Iterator[None]:
        """Inside the context the parameters stand as `stand` has it: all of them, or those that are gathered."""
        if self._gathered is not None:
            with self._gathered.inside(stand):
                yield
            return
        with stand(dict(enumerate(self.block.params))):
            yield

    @contextmanager
    def _moved_along(self, params: Mapping[int, Tensor], seed: Seed, h: float) -> Iterator[None]:
        """Inside the context these parameters, by number, stand at x + h z."""
        factors, numbers = self._direction(seed)
        scale, moves = h * self._distribution.rank**-0.5, []
        matrices = [i for i in self._matrices if i in params]
        vectors = [i for i in self._vectors if i in params]
        for i in matrices:
            moves.append(Move(_home(params[i]), *factors[i], scale, self._labels[i]))
        ends = self._moved_vectors([params[i] for i in vectors], [numbers[i] for i in vectors], h)
        with _at([params[i] for i in vectors], ends), moved([params[i] for i in matrices], moves):
            yield

    @contextmanager
    def against(self, distribution: Distribution, direction: Terms, h: float) -> Iterator[None]:
        """Inside the context a loss is one at x - h z."""
        with self.along(distribution, direction, -h):
            yield

    @contextmanager
    def at_points(self, points: Sequence[tuple[Terms, float]]) -> Iterator[None]:
        """Inside the context repetition i of a minibatch is evaluated at x + h_i z_i.

        Args:
            points: direction z_i and step h_i of each repetition.

        Raises:
            BadInput: a parameter is neither a matrix nor a plain vector.
        """
        lefts: list[list[Tensor]] = []  # by points, then by matrices
        rights: list[list[Tensor]] = []
        vectors: list[list[Tensor]] = []
        for direction, h in points:
            ((seed, weight),) = direction
            factors, numbers = self._direction(seed)
            lefts.append([u * (h * weight * self._distribution.rank**-0.5) for u, _ in factors.values()])
            rights.append([w for _, w in factors.values()])
            vectors.append(self._moved_vectors(self._params(self._vectors), list(numbers.values()), h * weight))
        moves = []
        for i, u, w in zip(self._matrices, zip(*lefts, strict=True), zip(*rights, strict=True), strict=True):
            moves.append(Move(_home(self.block.params[i]), torch.stack(u), torch.stack(w), 1.0, self._labels[i]))
        values = [torch.stack(several) for several in zip(*vectors, strict=True)]
        params, labels = self._params(self._vectors), [self._labels[i] for i in self._vectors]
        for p, label in zip(params, labels, strict=True):
            if p.dim() != 1 or type(p) not in (Tensor, nn.Parameter):
                raise BadInput(
                    f"{label()} is neither a matrix nor a plain vector, which parallel evaluations do not know: use "
                    "parallel = 1"
                )
        with moved_vectors(params, values, labels), moved(self._params(self._matrices), moves):
            yield

    def check_repetitions(self, loss: Loss, plain: float, points: Sequence[tuple[Terms, float]]) -> None:
        """Refuse a loss of which repetitions are not evaluated each at its own point; 2 log2 k + 1 evaluations of k.

        Where NaN stands in the place of some points, exactly the losses of these must be NaN: then no loss depends on
        another one's point, and each depends on its own.

        Args:
            loss: the loss.
            plain: its value f(x).
            points: direction and step of each of k repetitions.

        Raises:
            BadInput: repetitions have other losses than `plain` at x, or depend on points of others.
        """
        with self.at_points([(direction, 0.0) for direction, _ in points]):
            check_same_loss(loss, plain, len(points), self.block)
        for chosen in separating_sets(len(points)):
            with self.at_points([(d, math.nan if i in chosen else h) for i, (d, h) in enumerate(points)]):
                missing = repeated(loss, len(points), self.block).isnan().nonzero().flatten().tolist()
            if set(missing) != chosen:
                raise BadInput(
                    f"the loss on block '{self.block.name}' of one repetition of its minibatch depends on rows of "
                    "another (experts, statistics over rows): use parallel = 1"
                )

    def check_layers(self, loss: Loss) -> None:
        """One evaluation with NaN in place of the matrices, except for functions that ask their class.

        Raises:
            BadInput: the loss reads a matrix of the block in a way that `smoothlab.zeroth.products` does not see.
        """

        def note_names(module: nn.Module) -> None:
            for name, p in module.named_parameters():
                self._names.setdefault(id(p), name)  # the outermost module comes first, and knows the whole name

        try:
            with ExitStack() as stack:
                stack.enter_context(module_calls(note_names))
                if self._gathered is not None:
                    stack.enter_context(self._gathered.only_inside())
                survives = self._survives(loss, self._matrices)
        except RuntimeError as error:
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            raise BadInput(
                f"the loss on block '{self.block.name}' is compiled, which perturb 'forward' does not reach: leave "
                f"torch.compile out, or use {OTHER}"
            ) from None
        if survives:
            return
        number = next((i for i in self._matrices if not self._survives(loss, [i])), self._matrices[0])
        raise BadInput(
            f"{self._label(number)} is read by code that torch's functions do not see (compiled or scripted), so that "
            f"perturb 'forward' does not reach it: use {OTHER}"
        )

    def _survives(self, loss: Loss, numbers: Sequence[int]) -> bool:
        """Whether the loss is finite although these matrices are NaN for functions that do not ask their class."""
        with torch.no_grad(), self._standing(partial(self._blank, numbers=numbers)):
            return bool(torch.isfinite(loss()))

    @contextmanager
    def _blank(self, params: Mapping[int, Tensor], numbers: Sequence[int]) -> Iterator[None]:
        """Inside the context the parameters with these numbers are NaN for functions that do not ask their class."""
        moves, empty, chosen = [], torch.empty(0), [i for i in numbers if i in params]
        for i in chosen:
            moves.append(Move(_home(params[i]), empty, empty, 0.0, self._labels[i]))
        matrices = [params[i] for i in chosen]
        # One NaN seen through strides of 0: a matrix of any shape that takes no memory.
        blanks = [torch.full((), torch.nan, dtype=p.dtype, device=p.device).expand(p.shape) for p in matrices]
        with _at(matrices, blanks), moved(matrices, moves):
            yield

    def measure_realized_fraction(self, distribution: Distribution, direction: Terms, h: float) -> None:
        """Set `realized_fraction`: matrices are not rounded, so that it tells what the other tensors lose.

        Raises:
            BadInput: less than half of the step survives rounding.
        """
        ((seed, weight),) = direction
        factors, numbers = self._direction(seed)
        squared = 0.0
        for u, w in factors.values():  # ||U W'||^2 = tr (U'U)(W'W)
            squared += float((u.double() @ u.double().T * (w.double() @ w.double().T)).sum()) / self._distribution.rank
        realized = squared
        for i in self._vectors:
            p, z = self.block.params[i], numbers[i]
            if is_sharded(p):
                p = p.full_tensor()  # type: ignore[attr-defined]
            (end,) = self._moved_vectors([p], [z], h * weight)
            realized += float(((end.double() - with_steps(p).double()) * z.double()).sum()) / (h * weight)
            squared += float(z.double().square().sum())
        self.realized_fraction = realized / squared
        if self.realized_fraction < LEAST_FRACTION:
            dtype = str(self.dtype).removeprefix("torch.")
            raise BadInput(
                f"mu = {h:g} on block '{self.block.name}' in {dtype}: rounding lets {100 * self.realized_fraction:.0f} "
                "% of the step through; use a longer mu, or keep the weights in a wider type"
            )

    def _params(self, numbers: Sequence[int]) -> list[Tensor]:
        return [self.block.params[i] for i in numbers]

    def _direction(self, seed: Seed) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[int, Tensor]]:
        """U' [r, m] and W' [r, n] of each matrix, and z of each other tensor, by number; drawn once a step."""
        if seed not in self._drawn:
            stream = self.streams[seed] = self._distribution.kept_stream(self.block, seed)
            factors = {}
            for i in self._matrices:
                u, w = self._distribution.factors(stream, i)
                factors[i] = u.T.contiguous(), w.T.contiguous()
            numbers = {i: self._distribution.numbers(stream, i) for i in self._vectors}
            self._drawn[seed] = factors, numbers
        return self._drawn[seed]

    def _moved_vectors(self, params: Sequence[Tensor], numbers: Sequence[Tensor], h: float) -> list[Tensor]:
        """fl(theta + h z) of tensors that are no matrices, and their numbers z."""
        homes = [with_steps(p) for p in params]
        if homes and homes[0].dtype == numbers[0].dtype == self.dtype:
            return list(torch._foreach_add(homes, list(numbers), alpha=h))  # one call for dozens of small tensors
        ends = []
        for home, z in zip(homes, numbers, strict=True):
            ends.append(self._like(home))
            shifted(home, z, h, ends[-1])
        return ends

    def _label(self, number: int) -> str:
        p = self.block.params[number]
        name = self._names.get(id(p), f"number {number}")
        return f"block '{self.block.name}': its parameter {name} of shape {tuple(p.shape)}"


def _home(p: Tensor) -> Tensor:
    """The memory of a matrix, with the factors of its steps."""
    return with_factors_of(p, p.data)


@contextmanager
def _at(params: Sequence[Tensor], tensors: Sequence[Tensor]) -> Iterator[None]:
    """`standing_at`, also where there are no parameters."""
    if not params:
        yield
        return
    with standing_at(Block("part", tuple(params)), tensors):
        yield
