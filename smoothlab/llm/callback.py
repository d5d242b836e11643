"""Measuring along other people's training: a callback for `transformers.Trainer`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.llm.parts import partition
from smoothlab.trajectory import Product, Row, SmoothnessHook


class SmoothnessCallback(TrainerCallback):
    """Measures Hessian norms at chosen steps of a `transformers.Trainer`, on the minibatch of the step.

    Measures before the optimizer's step, after the backward pass, in eval mode; parameters, gradients, buffers and RNG
    are left as they are: training with it is bit-identical to training without it. The minibatch is the last one that
    the model saw (of several accumulated ones), from the arguments of its forward call, which must include the labels.

    Args:
        at: optimizer steps to measure at, from 0; see `smoothlab.trajectory.schedule`.
        out: record file, written as the run goes; None keeps the rows in `.rows` only.
        by: how the model is grouped into blocks ("part", "layer", "module"); see `smoothlab.llm.parts.partition`.
        blocks: names of the blocks to measure; all by default, those that the Trainer keeps frozen too.
        cross: pairs of block names whose cross block is measured too.
        product: "exact", "central" or "forward" Hessian-vector products.
        precision: relative half-width of the Frobenius norms' intervals.
        minibatch: keyword arguments for the model to measure on at every point, instead of the step's own minibatch.
        seed: seed of the probes.
        overwrite: replace a record file that exists.
    """

    def __init__(
        self,
        at: Sequence[int],
        out: str | Path | None = None,
        *,
        by: str = "part",
        blocks: Sequence[str] = (),
        cross: Sequence[tuple[str, str]] = (),
        product: Product = "exact",
        precision: float = 0.05,
        minibatch: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        overwrite: bool = False,
    ) -> None:
        self.rows: list[Row] = []
        self._at, self._by, self._names, self._minibatch = set(at), by, tuple(blocks), minibatch
        self._options: dict[str, Any] = {
            "at": sorted(self._at), "out": out, "cross": cross, "product": product, "precision": precision,
            "seed": seed, "overwrite": overwrite,
        }  # fmt: skip
        self._hook: SmoothnessHook | None = None
        self._seen: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Group the model's parameters and watch its inputs."""
        assert model is not None
        found = partition(model, self._by)
        for name in self._names:
            if name not in found:
                raise BadInput(f"block '{name}' is unknown: use some of {', '.join(found)}")
        blocks: list[Block] = [b for name, b in found.items() if not self._names or name in self._names]
        self._hook = SmoothnessHook(model, blocks, **self._options)
        self.rows = self._hook.rows

        def watch(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            if module.training:
                self._seen = named

        self._watcher = model.register_forward_pre_hook(watch, with_kwargs=True)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Measure if this step is one of the points."""
        assert model is not None and self._hook is not None
        if state.global_step not in self._at:
            return
        inputs = dict(self._minibatch or self._seen)
        if "labels" not in inputs:
            raise BadInput(
                "the model is called without labels: pass SmoothnessCallback(minibatch={..., 'labels': ...})"
            )
        self._hook(state.global_step, lambda: model(**inputs).loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the record file."""
        assert self._hook is not None
        self._watcher.remove()
        self._hook.close()
