"""A hook that measures curvature in anybody's training loop."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.blocks import Block, Loss, differentiable, fixed_loss
from smoothlab.errors import BadInput
from smoothlab.hessian import padding
from smoothlab.hessian.diagonal import check_budget, split_blocks
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.penalties import penalty
from smoothlab.hessian.trajectory import Product, Row, estimated, gauss_newton

_SETTINGS = (
    "at", "cross", "product", "precision", "seed", "train", "trace", "diagonal", "outputs_precision",
)  # fmt: skip
"""Fields of a hook that its record file's header holds."""


@dataclass
class SmoothnessHook:
    """Measures Hessian norms along a training loop of your own, which stays the same to the bit.

    What is measured is the loss of the step's minibatch, at the weights before the update.

    hook = SmoothnessHook(model, blocks, at=schedule(1000, 10), out="run.jsonl")
    for step, batch in enumerate(loader):
        hook(step, lambda: model(**batch).loss)     # before the update of this step
        ...
    hook.close()

    >>> import torch
    >>> from smoothlab import Block, SmoothnessHook
    >>> model = torch.nn.Linear(2, 1).double()
    >>> hook = SmoothnessHook(model, [Block("all", tuple(model.parameters()))], at=[0])
    >>> hook(0, lambda: model(torch.ones(1, 2).double()).square().mean())
    >>> [row["quantity"] for row in hook.rows]
    ['frobenius', 'spectral', 'trace']

    Attributes:
        model: the module whose parameters the blocks hold; its train/eval flags, buffers and RNG are left as they are.
        blocks: blocks to measure, by name or in order.
        at: steps to measure at.
        out: record file, written as the run goes; None keeps the rows in `rows` only.
        cross: pairs of block names whose cross block is measured too.
        product: "exact", "central" or "forward" Hessian-vector products.
        precision: relative half-width of the Frobenius norms' intervals at which probing stops.
        trace: relative half-width of the traces' intervals to which probing goes on where it can be reached.
        layers: layers whose row norms and traces are measured from the products of their block.
        diagonal: products a point that the layers' own norms ||H_ll||_F share; 0 leaves them out.
        outputs_precision: relative half-width of the interval of the Gauss-Newton trace, which is measured where the
            hook is called with `outputs`.
        seed: seed of the probes.
        train: measure in train mode, with a fixed dropout mask, instead of eval mode.
        overwrite: replace a record file that exists.
    """

    model: nn.Module = field(repr=False)
    blocks: Mapping[str, Block] | Sequence[Block] = field(repr=False)
    at: Sequence[int]
    out: str | Path | None = None
    cross: Sequence[tuple[str, str]] = ()
    product: Product = "exact"
    precision: float = 0.05
    seed: int = 0
    train: bool = False
    overwrite: bool = False
    trace: float | None = None
    layers: Mapping[str, Block] | Sequence[Block] = field(default=(), repr=False)
    diagonal: int = 0
    outputs_precision: float = 0.05
    rows: list[Row] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._blocks, self._layers = _listed(self.blocks), _listed(self.layers)
        self._at, self._file = set(self.at), None
        self._noise: dict[str, float] = {}  # of products, relative to them: measured at the first point
        dims = {block.name: block.dim for block in self._blocks}
        for name in itertools.chain.from_iterable(self.cross):
            if name not in dims:
                raise BadInput(f"cross names block '{name}': use two of {', '.join(dims)}, or leave cross out")
        check_budget(split_blocks(self._blocks, self._layers), self.diagonal)
        if self.out is not None:
            config = {name: getattr(self, name) for name in _SETTINGS}
            config |= {"blocks": dims, "layers": [layer.name for layer in self._layers]}
            device = str(self._blocks[0].params[0].device)
            environment = records.environment(device=device, threads=torch.get_num_threads())
            self._file = records.Writer(Path(self.out), "hook", config, environment, overwrite=self.overwrite)

    def __call__(self, step: int, compute: Loss, outputs: Callable[[], tuple[Tensor, Tensor]] | None = None) -> None:
        """Measure if `step` is one of the points.

        Args:
            step: number of the training step.
            compute: returns the mean loss of the step's minibatch.
            outputs: returns the outputs [N, C] of the minibatch and the weights [N] of their cross-entropies in that
                loss, see `smoothlab.gauss_newton_trace`: the Gauss-Newton trace of each block and layer is measured.

        Raises:
            WrongProducts: gradients or products are not the loss's at the first point; at later ones it is a warning,
                and the point has no rows.
            BadInput: `compute` calls `model` as transformers' models are called, and padding or the other rows of the
                minibatch move a row's logits by more than rounding does (`smoothlab.hessian.padding`).
        """
        if step not in self._at:
            return
        loss = padding.checked_at_first_call(fixed_loss(compute, self.model, seed=self.seed), self.model)
        if self.train:  # padding is looked at in eval mode all the same: dropout would move every row
            loss()
            loss = fixed_loss(compute, self.model, train=True, seed=self.seed)
        penalty_field = penalty(loss, self.model)
        with differentiable(self._blocks):
            try:
                for row in self._measured(step, loss, outputs):
                    self.rows.append({"step": step, **row, **penalty_field})
                    if self._file is not None:
                        self._file.write(self.rows[-1])
            except WrongProducts as error:
                if not self.rows:
                    raise
                # No reason to end a training.
                warnings.warn(f"step {step} is not measured: {error}", stacklevel=2)

    def _measured(self, step: int, loss: Loss, outputs: Callable[[], tuple[Tensor, Tensor]] | None) -> Iterator[Row]:
        """Rows of one point."""
        seed = (self.seed, step)
        yield from estimated(
            loss, self._blocks, cross=self.cross, product=self.product, precision=self.precision, seed=seed,
            trace=self.trace, layers=self._layers, diagonal=self.diagonal, closely=not self.rows,
            noise=self._noise,
        )  # fmt: skip
        if outputs is not None:
            outputs = fixed_loss(outputs, self.model, train=self.train, seed=self.seed)
            yield from gauss_newton(
                loss, outputs, self._blocks, precision=self.outputs_precision, seed=seed, layers=self._layers
            )

    def close(self) -> None:
        """Mark the record file as finished."""
        if self._file is not None:
            self._file.end()
            self._file = None


def _listed(blocks: Mapping[str, Block] | Sequence[Block]) -> list[Block]:
    """Blocks in order, by name or not."""
    if isinstance(blocks, Mapping):
        return list(blocks.values())
    return list(blocks)
