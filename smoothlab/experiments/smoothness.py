"""Figure 1: per-block Hessian norms of a text classifier along its fine-tuning."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from smoothlab.errors import BadInput
from smoothlab.experiments.options import check, rates

if TYPE_CHECKING:
    from smoothlab.blocks import Block
    from smoothlab.llm.train import FineTuning

Row = dict[str, Any]
KEY = ("protocol", "block", "wrt", "quantity")
"""Fields that tell the rows of a measuring point apart."""


@dataclass(frozen=True)
class Smoothness:
    """Measure the Hessian norms of each block of a classifier along SGD, with 95 % intervals (Fig. 1).

    Attributes:
        model: hub name, local directory, "micro" (in the package), or "random:opt-125m" (that shape, random weights).
        data: task (sst2, builtin) or a JSON Lines file (.gz too) with the fields sentence and label.
        data_dir: folder with the task's files; without it a task is read from the hub.
        peft: PEFT method trained jointly with the base model (lora, prompt, prefix, ...), or "none".
        blocks: how parameters are grouped: "part" (base, peft, head), "layer", "module" (attention, mlp, embedding,
            norm), or patterns "name=regex,name=regex".
        measure: blocks to measure; all of them by default.
        cross: pairs of blocks "a:b" whose cross block H_ab is measured too; "auto" is base:peft where both exist.
        steps: SGD steps.
        batch: sentences in a minibatch.
        lr: learning rate of every block.
        lr_block: learning rates of single blocks, "name=rate" (eta_x is base=..., eta_y is peft=...).
        points: measuring points from step 0 to the last, both included.
        schedule: spacing of the points over the steps.
        minibatch: measure on the minibatch of the step, as the paper does, or on one fixed minibatch at all points.
        protocol: "estimated" (exact products, intervals), "paper" (Appendix D.4 as printed), or both at the same
            points.
        product: Hessian-vector products of the estimated protocol: exact, or finite differences (central, forward).
        precision: relative half-width of the Frobenius norms' intervals at which probing stops.
        probes: unit vectors per block in the paper's protocol.
        path: measure the path-based smoothness ||g(k+1) - g(k)|| / ||w(k+1) - w(k)|| at the points too.
        dropout: train and measure in train mode (masks fixed by the seed) instead of eval mode.
        dtype: precision of the weights; float64 is the slow reference.
        device: "cpu" or "cuda".
        keep_weights: folder to keep the weights of every measuring point in; a stopped run then continues from them.
        from_weights: folder with such weights: measure them, without training.
        seed: seed of the head, the PEFT module, the minibatches and the probes.
    """

    name: ClassVar[str] = "smoothness"
    unit: ClassVar[str] = "step"
    model: str = "micro"
    data: str = "builtin"
    data_dir: Path | None = None
    peft: str = "lora"
    blocks: str = "part"
    measure: tuple[str, ...] = ()
    cross: tuple[str, ...] = ("auto",)
    steps: int = 5000
    batch: int = 8
    lr: float = 5e-5
    lr_block: tuple[str, ...] = ()
    points: int = 20
    schedule: Literal["linear", "log"] = "linear"
    minibatch: Literal["step", "fixed"] = "step"
    protocol: Literal["estimated", "paper", "both"] = "estimated"
    product: Literal["exact", "central", "forward"] = "exact"
    precision: float = 0.05
    probes: int = 100
    path: bool = True
    dropout: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    keep_weights: Path | None = None
    from_weights: Path | None = None
    seed: int = 0

    def place(self, row: Row) -> int:
        """The step of the measuring point."""
        return int(row["step"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of whole measuring points stand: each has one row for every protocol, block and quantity."""
        from smoothlab.records import whole

        return whole(rows, self.place, lambda row: tuple(str(row.get(field)) for field in KEY))

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Train to each point that is not done, measure there, yield its rows."""
        from smoothlab.hessian.trajectory import has_kinks

        check(self)
        points = self._points()
        tuning = self.tuning()
        blocks = self._measured(tuning)
        self._pairs(blocks)
        rough = any(has_kinks(tuning.loss(0), block) for block in blocks if block.name != "head")
        if rough:
            _say("the gradient has kinks (ReLU): exact products ignore them, finite differences have no right step")
        behind = {row["step"] for row in done}
        ahead = [step for step in points if step not in behind]
        if behind and self.keep_weights is not None and ahead:
            self._fast_forward(tuning, ahead[0])
        progress = _progress(points, len(points) - len(ahead))
        for step in ahead:
            self._go_to(tuning, step, progress)
            yield from self._point(tuning, blocks, rough)
            progress.update()
        progress.close()

    def tuning(self) -> "FineTuning":
        """Model, blocks and data as configured, before step 0."""
        import torch

        from smoothlab.blocks import fixed_loss
        from smoothlab.llm.adapters import attach, check_derivatives, virtual_tokens
        from smoothlab.llm.models import check_lengths, check_loss, encode, load_classifier
        from smoothlab.llm.padding import check_texts
        from smoothlab.llm.partition import partition
        from smoothlab.llm.tasks import load_task
        from smoothlab.llm.train import FineTuning, cross_entropy

        examples = load_task(self.data, "train", self.data_dir)
        loaded = load_classifier(
            self.model, examples.classes, seed=self.seed, dtype=getattr(torch, self.dtype), device=self.device
        )
        model = attach(loaded.model, self.peft, seed=self.seed)
        loaded.max_length -= virtual_tokens(model)
        check_lengths(loaded, examples.texts)
        blocks = partition(model, self.blocks)
        given = dict.fromkeys(blocks, self.lr) | rates(self.lr_block)
        if loaded.notes:
            _say("; ".join(loaded.notes))

        def minibatch(numbers: list[int]) -> Any:
            texts, labels = [examples.texts[i] for i in numbers], [examples.labels[i] for i in numbers]
            return encode(loaded, texts, labels, self.device)

        check_loss(loaded, model, minibatch([0]))
        check_texts(loaded, model, examples.texts, self.peft, self.batch)
        few = minibatch(list(range(min(2, len(examples.texts)))))
        check_derivatives(fixed_loss(lambda: cross_entropy(model, few), model), partition(model), self.peft)
        return FineTuning(
            model, blocks, minibatch, len(examples.texts), self.batch, given, seed=self.seed, dropout=self.dropout
        )

    def _measured(self, tuning: "FineTuning") -> list["Block"]:
        for name in self.measure:
            if name not in tuning.blocks:
                raise BadInput(f"--measure {name}: no such block, use some of {', '.join(tuning.blocks)}")
        return [block for name, block in tuning.blocks.items() if not self.measure or name in self.measure]

    def _pairs(self, blocks: Sequence["Block"]) -> list[tuple[str, str]]:
        names = [block.name for block in blocks]
        pairs = []
        for text in self.cross:
            if text == "auto":
                pairs += [("base", "peft")] if {"base", "peft"} <= set(names) else []
                continue
            first, _, second = text.partition(":")
            if first not in names or second not in names or first == second:
                raise BadInput(f"--cross {text}: write two different measured blocks as a:b, of {', '.join(names)}")
            pairs.append((first, second))
        return pairs

    def _points(self) -> list[int]:
        from smoothlab.hessian.trajectory import schedule
        from smoothlab.llm.train import saved_steps

        if self.from_weights is None:
            points = schedule(self.steps, self.points, self.schedule)
            if len(points) < self.points and self.steps:
                _say(f"{len(points)} points, not {self.points}: {self.steps} steps have no more distinct ones")
            return points
        if not (found := saved_steps(self.from_weights)):
            raise BadInput(
                f"--from-weights {self.from_weights}: no step-*.safetensors there; make them with --keep-weights"
            )
        return found

    def _fast_forward(self, tuning: "FineTuning", step: int) -> None:
        """Take up the latest kept weights at or before `step`, if there are any."""
        from smoothlab.llm.train import saved_steps, weights_path

        assert self.keep_weights is not None
        kept = [s for s in saved_steps(self.keep_weights) if s <= step]
        if kept:
            tuning.load(weights_path(self.keep_weights, kept[-1]), self._training())

    def _training(self) -> str:
        """What the weights along the run depend on, in one line."""
        fields = ("model", "data", "data_dir", "peft", "batch", "lr", "lr_block", "dropout", "dtype", "seed")
        return ", ".join(f"{field}={getattr(self, field)}" for field in fields)

    def _go_to(self, tuning: "FineTuning", step: int, progress: Any) -> None:
        if self.from_weights is not None:
            from smoothlab.llm.train import weights_path

            tuning.load(weights_path(self.from_weights, step))
            return
        while tuning.step < step:
            value = tuning.update()
            if tuning.step % 10 == 0:
                progress.set_postfix_str(f"step {tuning.step}, loss {value:.3f}")
        if self.keep_weights is not None:
            tuning.save(self.keep_weights, self._training())

    def _point(self, tuning: "FineTuning", blocks: Sequence["Block"], rough: bool) -> Iterator[Row]:
        """Rows of the point where the model stands; the update of this step is made on the way if `path` asks."""
        from smoothlab.hessian.penalties import penalty
        from smoothlab.hessian.trajectory import PathSmoothness, estimated, paper

        step = tuning.step
        loss = tuning.loss(step if self.minibatch == "step" else 0)
        seed = (self.seed, step)
        adds = penalty(loss, tuning.model)
        if self.protocol in ("estimated", "both"):
            found = estimated(
                loss, blocks, cross=self._pairs(blocks), product=self.product, precision=self.precision, seed=seed,
                kinks=rough,
            )  # fmt: skip
            yield from ({"step": step, **row, **adds} for row in found)
        if self.protocol in ("paper", "both"):
            found = paper(loss, blocks, batch=self.batch, probes=self.probes, seed=seed)
            yield from ({"step": step, **row, **adds} for row in found)
        if self.path:
            quotient = PathSmoothness(loss, blocks)
            tuning.update()
            yield from ({"step": step, **row, **adds} for row in quotient.rows())

    def plan(self) -> str:
        """What a run would measure and cost: blocks, points, gradients, minutes and memory, from one timed gradient."""
        from smoothlab.hessian.gradients import gradient

        check(self)
        points = self._points()
        tuning = self.tuning()
        blocks = self._measured(tuning)
        loss = tuning.loss(0)
        gradient(loss, tuning.blocks)
        begun = time.perf_counter()
        gradient(loss, tuning.blocks)
        seconds = time.perf_counter() - begun
        return "\n".join(_plan(self, tuning, blocks, points, seconds))


def _plan(
    run: Smoothness, tuning: "FineTuning", blocks: Sequence["Block"], points: Sequence[int], seconds: float
) -> list[str]:
    """Lines of `Smoothness.plan`; the usual products per block are 20, and twice that where a spectrum is awkward."""
    unit = {"exact": 2.2, "central": 2.1, "forward": 1.2}[run.product]
    estimated = (2 + 20 * unit * len(blocks)) if run.protocol != "paper" else 0.0
    paper = (run.probes * 1.2 + 3) * len(blocks) if run.protocol != "estimated" else 0.0
    path = (3 + 3 * len(blocks)) if run.path else 0
    training = 0 if run.from_weights is not None else run.steps
    total = training + len(points) * (estimated + paper + path)
    width = 8 if run.dtype == "float64" else 4
    largest = max(b.dim for b in blocks)
    every = sum(b.dim for b in tuning.blocks.values())
    basis = (12 + 8) * largest * width if run.protocol != "paper" else 2 * largest * width
    memory = (4 * every * width + basis) / 2**30
    lines = [f"{run.model} on {run.data}, {run.peft} + base trained jointly, {run.dtype} on {run.device}"]
    lines += [f"  block {b.name:12s} {b.dim:12,d} parameters, learning rate {tuning.rates[b.name]:g}" for b in blocks]
    lines += [f"  cross block {a} x {b}" for a, b in run._pairs(blocks)]
    lines += [
        f"  {len(points)} points at steps {', '.join(map(str, points))}",
        f"  protocol {run.protocol}: about {estimated + paper + path:.0f} gradients a point "
        "(a block with an awkward spectrum takes up to twice its share)",
        f"  training: {training} gradients; altogether about {total:,.0f} gradients",
        f"  one gradient takes {seconds:.3f} s here: about {total * seconds / 60:.0f} minutes",
        f"  memory: about {memory:.2f} GiB for weights, gradients and probes, and 2 to 3 times its activations",
    ]
    return lines


def _say(text: str) -> None:
    print(f"smoothlab: {text}", file=sys.stderr)


def _progress(points: Sequence[int], done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=len(points), initial=done, desc="points", unit="point", disable=not sys.stderr.isatty())
