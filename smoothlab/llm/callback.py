"""Measuring along other people's training: a callback for `transformers.Trainer`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import TrainerCallback

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.gauss_newton import Outputs
from smoothlab.hessian.hook import SmoothnessHook
from smoothlab.hessian.trajectory import Product, Row
from smoothlab.llm.outputs import called_outputs
from smoothlab.llm.partition import partition
from smoothlab.llm.trainer_loss import LossWatch, MinibatchLoss, running_trainer


class SmoothnessCallback(TrainerCallback):  # type: ignore[misc]
    """Measures Hessian norms at chosen steps of a `transformers.Trainer`, on the minibatch of the step.

    What is measured is the mean loss of one minibatch as the Trainer itself computes it: the model's own loss, that of
    `compute_loss_func`, with label smoothing, or of a subclass that overrides `compute_loss`. The minibatch is the last
    one of the step's k = gradient_accumulation_steps, on the first process, and its loss is the one that the Trainer
    would take of it if k were 1 and the process the only one.

    Measures before the optimizer's step, after the backward pass, in eval mode; parameters, gradients, buffers, RNG and
    the Trainer's own attributes are left as they are: training with it is bit-identical to training without it.

    >>> from smoothlab import SmoothnessCallback
    >>> callback = SmoothnessCallback(at=[0, 100], out=None)   # Trainer(..., callbacks=[callback])
    >>> callback.rows
    []

    Args:
        at: optimizer steps to measure at, from 0; see `smoothlab.hessian.trajectory.schedule`.
        out: record file, written as the run goes; None keeps the rows in `.rows` only.
        by: how the model is grouped into blocks ("part", "layer", "module"); see `smoothlab.llm.partition.partition`.
        blocks: names of the blocks to measure; all by default, those that the Trainer keeps frozen too.
        cross: pairs of block names whose cross block is measured too.
        product: "exact", "central" or "forward" Hessian-vector products.
        precision: relative half-width of the Frobenius norms' intervals at which probing stops.
        trace: relative half-width of the traces' intervals to which probing goes on where it can be reached.
        block_rows: "layer" or "module": the parts into which the measured blocks are split, whose row norms and traces
            are measured from the products of their block; "none" leaves them out.
        diagonal: products a point that the norms of these parts' diagonal blocks share; 0 leaves them out.
        gauss_newton: measure the trace of the Gauss-Newton matrix of each block and part, too. The Trainer's loss must
            be the mean cross-entropy of its model's logits at the labels.
        outputs_precision: relative half-width of that trace's interval.
        minibatch: what the Trainer's collator would return, to measure on at every point instead of the step's own
            minibatch.
        seed: seed of the probes.
        train: measure in train mode, with a fixed dropout mask, instead of eval mode. A Trainer's own loss may be
            another one in eval mode: this is how its loss of training is measured.
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
        train: bool = False,
        overwrite: bool = False,
        trace: float | None = None,
        block_rows: Literal["none", "layer", "module"] = "none",
        diagonal: int = 0,
        gauss_newton: bool = False,
        outputs_precision: float = 0.05,
    ) -> None:
        if block_rows == by:
            raise BadInput(f"block_rows '{block_rows}' with by '{by}': its blocks are not split, leave one out")
        self.rows: list[Row] = []
        self._at, self._by, self._names, self._minibatch = set(at), by, tuple(blocks), minibatch
        self._options: dict[str, Any] = {
            "at": sorted(self._at), "out": out, "cross": cross, "product": product, "precision": precision,
            "seed": seed, "train": train, "overwrite": overwrite, "trace": trace, "diagonal": diagonal,
            "outputs_precision": outputs_precision,
        }  # fmt: skip
        self._block_rows, self._gauss_newton = block_rows, gauss_newton
        # Made when training begins: only then is there a model, on its device and wrapped.
        self._hook: SmoothnessHook | None = None
        self._watch: LossWatch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Group the model's parameters and watch the Trainer's loss.

        Raises:
            BadInput: no Trainer is calling, its parameters are cut into shards, train mode is asked for beside gradient
                checkpointing, or a block is unknown.
        """
        assert model is not None
        trainer = running_trainer()
        if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
            raise BadInput(
                "FSDP and DeepSpeed cut parameters into shards, which no block can hold: measure without them"
            )
        if self._options["train"] and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
            raise BadInput(
                "gradient checkpointing computes the model again in its backward pass, which products cannot follow: "
                "leave SmoothnessCallback(train=True) out, as eval mode does without it, or train without it"
            )
        if not state.is_world_process_zero:  # the record file has one writer
            return
        all_blocks = partition(model, self._by)
        for name in self._names:
            if name not in all_blocks:
                raise BadInput(f"block '{name}' is unknown: use some of {', '.join(all_blocks)}")
        blocks: list[Block] = [b for name, b in all_blocks.items() if not self._names or name in self._names]
        if self._hook is None or self._hook.model is not model:  # else the Trainer starts anew with smaller batches
            layers = [] if self._block_rows == "none" else list(partition(model, self._block_rows).values())
            self._hook = SmoothnessHook(model, blocks, layers=layers, **self._options)
            self.rows = self._hook.rows
        self._watch = LossWatch.of(trainer)
        self._watch.steps |= self._at
        self._watch.forget()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the minibatch: another one of the same step follows, or the step is over."""
        if self._watch is not None:
            self._watch.forget()

    on_step_end = on_substep_end

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure if this step is one of the points.

        Raises:
            BadInput: the Trainer's loss is not what one call of `compute_loss` returns, has no second derivatives, or
                cannot be computed on the minibatch that was asked for.
        """
        if self._hook is None or self._watch is None or state.global_step not in self._at:
            return
        calls = len(self._watch.calls)
        if calls != 1:
            raise BadInput(
                f"the Trainer calls compute_loss {calls} times a minibatch, so that no single loss is trained by: "
                "measure your own with SmoothnessHook"
            )
        loss = self._watch.calls[0]
        outputs = None
        if self._gauss_newton:
            outputs = partial(self._outputs, self._hook.model, loss)
        # At this event gradients are complete and weights still those that they belong to.
        try:
            self._hook(state.global_step, lambda: self._computed(loss), outputs)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            # Finite differences need one derivative alone, so that their failure is not for want of a second one.
            if self._options["product"] != "exact" or "out of memory" in reason or "allocate" in reason:
                raise
            raise BadInput(
                f"exact products fail on this Trainer's loss ({reason}), which has no second derivatives where its "
                "backward pass is written by hand: use SmoothnessCallback(product='central')"
            ) from error

    def _computed(self, loss: MinibatchLoss) -> Tensor:
        seed = self._options["seed"]
        if self._minibatch is None:
            return loss(seed=seed)
        try:
            return loss(self._minibatch, seed)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise BadInput(
                f"the Trainer's loss fails on SmoothnessCallback(minibatch=...) ({type(error).__name__}: {reason}): "
                "pass what its collator returns, labels too"
            ) from error

    def _outputs(self, model: nn.Module, loss: MinibatchLoss) -> Outputs:
        return called_outputs(model, lambda: self._computed(loss))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the record file."""
        if self._hook is not None and self._watch is not None:
            self._watch.remove()
            self._hook.close()
            self._hook = self._watch = None
