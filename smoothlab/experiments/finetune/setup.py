"""A training run as configured, before step 0: its model, blocks, data, and Algorithm 1's optimizer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from smoothlab.blocks import Block, fixed_loss, only_differentiable
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import FinetuneOptions, Rates, Training
from smoothlab.experiments.finetune.footprint import copies, factor_notes
from smoothlab.experiments.finetune.items import Judge, judge, tokenized
from smoothlab.experiments.finetune.options import block_rates, precisions
from smoothlab.hessian.dataset import DatasetHessian
from smoothlab.hessian.diagonal import check_budget, split_blocks
from smoothlab.hessian.gauss_newton import Outputs
from smoothlab.hessian.points import Points
from smoothlab.llm import allocators, calibration, distributed, encoding, heads, padding
from smoothlab.llm.adapters import check_derivatives
from smoothlab.llm.answers import CompletionScores
from smoothlab.llm.calibration import ContentFree, calibrated
from smoothlab.llm.compute import check_widened, compute_in_float32
from smoothlab.llm.encoding import MULTIPLE, Encoded, batch
from smoothlab.llm.evaluate import Accuracy, choice_loss, repeated_choice_loss
from smoothlab.llm.export import save
from smoothlab.llm.models import LoadedModel
from smoothlab.llm.outputs import loss_outputs
from smoothlab.llm.partition import partition
from smoothlab.llm.tasks import Splits, load_choices
from smoothlab.llm.tasks.jsonlines import TEMPLATE
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.masters import Masters
from smoothlab.optim.seedlog import SeedLog
from smoothlab.trainer import Trainer, reshuffled
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import Estimator, Perturb, ZerothOrder
from smoothlab.zeroth.variant import Variant
from smoothlab.zeroth.variants import variant_named

Row = dict[str, Any]
OPTIMIZERS: dict[str, Any] = {"sgd": None, "adam": partial(torch.optim.AdamW, weight_decay=0.0)}
"""What makes the optimizer of the exact groups, by name; None is HybridSGD's own SGD."""


@dataclass
class Setup:
    """A run as configured, before step 0."""

    run: Training
    model: nn.Module  # with its PEFT module, in eval mode
    blocks: Mapping[str, Block]  # blocks that are trained
    measured: Sequence[Block]  # blocks whose curvature is measured, some of which training may keep frozen
    batches: Callable[[int], Sequence[Any]]  # parts of the minibatch of a step
    minibatch: Callable[[Sequence[int]], Any]  # of the training items with these numbers
    steps_per_epoch: int
    loss: Callable[[nn.Module, Any], Tensor]  # mean loss of a part
    judge: Judge  # how well the model as it stands does on items
    dev: Encoded
    test: Encoded
    served: str  # which files the items came from
    notes: list[str]  # what a reader should know
    save: Callable[[Path, str], None]  # writes the model as it stands to a folder, with the text of its model cards
    calibration: ContentFree | None = None  # content-free prompts of the test items, if these are calibrated
    layers: Sequence[Block] = ()  # into which --block-rows splits the measured blocks
    outputs: Callable[[nn.Module, Any], Outputs] = loss_outputs  # of a part, of which its loss is a cross-entropy
    repeated_loss: Callable[[nn.Module, Any, int], Tensor] | None = None  # of repetitions of a part
    start: dict[str, Tensor] | None = field(default=None, init=False)  # trained weights at step 0, see `remember_start`

    def remember_start(self) -> None:
        """Keep a copy of the trained weights, so that `trainer` can be called again after steps."""
        self.start, unwritten = {}, set()
        if self.run.keeps_factors:
            unwritten = {id(p) for p in self.blocks["base"].params}
        for name, p in self.model.named_parameters():
            if p.requires_grad and id(p) not in unwritten:
                self.start[name] = p.detach().to("cpu", copy=True)

    def trainer(
        self, rates: Rates | None = None, *, at: Sequence[int] = (), log: Path | None = None, log_steps: int = 0,
        dropout: bool = False,
    ) -> Trainer:  # fmt: skip
        """A trainer before step 0, at the weights that the model was loaded with.

        Args:
            rates: learning rates and mu; as configured by default.
            at: steps to measure curvature at.
            log: seed log that the base model's steps are written to.
            log_steps: steps of the log that stand; later ones are cut off.
            dropout: train and measure in train mode, with fixed masks.
        """
        run = self.run
        if self.start is not None:
            with torch.no_grad():
                for name, p in self.model.named_parameters():
                    if name in self.start:
                        p.copy_(self.start[name])
            allocators.restore(self.model, {})
        own_log = None
        if distributed.rank() == 0:  # all processes take the same steps: one log holds them
            own_log = log
        hybrid = optimizer(run, self.blocks, rates or run.rates, own_log, log_steps, self.model)
        for group in hybrid.param_groups:
            # torch's in-place update would raise an error about overflow that names no option.
            largest = torch.finfo(group["params"][0].dtype).max
            if group["lr"] > largest:
                raise BadInput(f"learning rate {group['lr']:g} of block '{group['name']}': use at most {largest:g}")
        if distributed.world_size() > 1:
            hybrid.peers = distributed.Peers()
        points = None
        if at:
            precision_of, outputs = precisions(run), None
            if run.gauss_newton:
                outputs = self.outputs
            points = Points(
                at, self.measured, pairs(run, self.measured), protocol=run.protocol, product=run.product,
                precision=precision_of["frobenius"], probes=run.probes, path=run.path, minibatch=run.minibatch,
                batch=run.batch, seed=run.seed, dataset=self._dataset(dropout), trace=precision_of.get("trace"),
                layers=self.layers, diagonal=run.diagonal, outputs=outputs,
                outputs_precision=precision_of.get("gauss_newton_trace", precision_of["frobenius"]),
            )  # fmt: skip
        return Trainer(
            self.model, self.blocks, self.batches, self.loss, hybrid, points, steps=run.steps, schedule=run.schedule,
            seed=run.seed, dropout=dropout, allocator=allocators, start=self.start, log=log,
            repeated_loss=self.repeated_loss,
        )  # fmt: skip

    def _dataset(self, dropout: bool) -> Callable[[Sequence[int]], DatasetHessian] | None:
        """Makes the Hessian of the mean loss of --over items from a seed; None where it is not asked for."""
        if not self.run.over:
            return None

        def loss(minibatch: Any) -> Tensor:
            compute = partial(self.loss, self.model, minibatch)
            return fixed_loss(compute, self.model, train=dropout, seed=self.run.seed)()

        numbers: Any = range(self.run.over)
        loader: DataLoader[int] = DataLoader(numbers, batch_size=self.run.batch, collate_fn=self.minibatch)
        return lambda seed: DatasetHessian(loss, loader, self.measured, seed=seed)

    def test_row(self) -> Row:
        """Test results of the model with its present weights, those of guessing, and each answer: right 1, wrong 0."""
        result, labels = self.judge(self.test), self.test.labels
        if isinstance(result, CompletionScores):
            return {**result.row(), "head": "lm", "served": self.served}
        head, chance, right = "lm", 0.0, ""
        if self.test.kind == "classifier":
            head = "classifier"
        for candidates, prediction, label in zip(self.test.options, result.predictions, labels, strict=True):
            chance += 1 / len(candidates)
            right += str(int(prediction == label))  # by item: two runs are compared on the items where they differ
        beside: Row = {}
        if self.calibration is not None:
            prior = self.judge(self.calibration.encoded)
            assert isinstance(prior, Accuracy)
            shifted = calibrated(result, [prior.scores[number] for number in self.calibration.number], labels)
            beside = calibration.row(shifted, labels)
        return {
            **result.row(), **beside, "head": head, "chance": chance / len(labels),
            "majority": max(Counter(labels).values()) / len(labels), "served": self.served, "right": right,
        }  # fmt: skip


def setup(run: Training) -> Setup:
    """Model, blocks and data of a run."""
    reason, class_words = heads.classifier_reason(run.head, run.model), None
    if reason is None:
        class_words = run.verbalizers
    splits = load_choices(run.data, run.data_dir, run.seed, run.sizes, template=run.template, verbalizers=class_words)
    loaded = _loaded(run, splits, reason)
    kind: encoding.Loss = "classifier"
    if reason is None:
        kind = splits.kind
    items = tokenized(run, splits, loaded, kind)
    _check_batch(run, len(items.train))
    device, multiple = distributed.local_device(run.device), MULTIPLE
    if run.batch == 1:  # Single rows are not padded, whatever the model makes of padding.
        multiple = 1
    minibatch = partial(batch, items.train, device=device, multiple=multiple)
    # The first part of the first minibatch, the same in all processes, and no larger than what one of them computes.
    first = reshuffled(len(items.train), run.batch, run.seed, 0)[: max(1, run.batch // run.parts_of_batch)]
    model = heads.attached(
        loaded, run.module, seed=run.seed, measured=run.differentiates_twice, rank=run.rank,
        loss=lambda model: choice_loss(model, minibatch(first)),
    )  # fmt: skip
    mixed = padding.check_items(model, items.splits, run.model, run.module, size=run.batch)
    measured, layers = _measured_and_layers(run, model)
    blocks = trained_blocks(run, model)
    # The trainer refuses parameters that require a gradient and are in no block.
    model.requires_grad_(False)
    for block in blocks.values():
        for p in block.params:
            p.requires_grad_(True)
    _check_model(run, model, minibatch(range(min(2, len(items.train)))))

    def batches(step: int) -> list[dict[str, Tensor]]:
        numbers = reshuffled(len(items.train), run.batch, run.seed, step)
        return [minibatch(part) for part in distributed.parts(numbers, device, run.parts_of_batch)]

    origins = [f"train: {splits.trained_on}"]
    if isinstance(run, FinetuneOptions):  # other runs select and test nothing
        origins = [f"train and dev: {splits.trained_on}", f"test: {splits.tested_on}"]
    notes = [*loaded.notes, *origins, *factor_notes(run, blocks)]
    if reason is not None and (run.template, run.verbalizers) != (TEMPLATE, ()):
        notes.append("a classifier reads sentences alone: --template and --verbalizers are not used")
    if not mixed:
        notes.append("padding moves this model's scores: rows are trained singly, and evaluated beside rows as long")
    judges, generated = judge(run, items, model, loaded.tokenizer, mixed)
    return Setup(
        run, model, blocks, measured, batches, minibatch, len(items.train) // run.batch, choice_loss,
        judges, items.dev, items.test, splits.served, notes + encoding.notes(items.splits) + generated,
        lambda folder, story: save(model, loaded.tokenizer, folder, base=bool(run.recipe.base), story=story),
        items.content_free, layers, repeated_loss=repeated_choice_loss,
    )  # fmt: skip


def _loaded(run: Training, splits: Splits, reason: str | None) -> LoadedModel:
    """The model that --model names, with a classifier's head where there is a `reason` for one."""
    loaded = heads.load(
        run.model, splits, reason, seed=run.seed, dtype=getattr(torch, run.dtype),
        device=distributed.local_device(run.device), measured=run.differentiates_twice, copies=copies(run),
    )  # fmt: skip
    if run.widens:
        compute_in_float32(loaded.model)
    return loaded


def _measured_and_layers(run: Training, model: nn.Module) -> tuple[list[Block], list[Block]]:
    """Blocks that are measured, and those that --block-rows splits them into."""
    if not run.measure:
        return [], []
    measured = measured_blocks(run, partition(model, run.blocks))
    layers: list[Block] = []
    if run.block_rows != "none":
        layers = list(partition(model, run.block_rows).values())
        # Refuses blocks that are not split, and a budget that is too small, before anything is trained.
        check_budget(split_blocks(measured, layers), run.diagonal)
    return measured, layers


def _check_model(run: Training, model: nn.Module, sample: dict[str, Tensor]) -> None:
    """Refuse a model whose layers do not compute as asked, or whose derivatives are not its loss's, on some rows."""
    loss = fixed_loss(partial(choice_loss, model, sample), model)
    if run.widens:
        check_widened(model, loss)
    if run.differentiates_twice:
        # All parts, whichever are measured: a wrong gradient of one shows in the others' products. Gradients of 16 bits
        # are no more than that.
        parts = {name: block for name, block in partition(model).items() if block.params[0].dtype.itemsize > 2}
        with only_differentiable(parts.values(), partition(model).values()):
            check_derivatives(loss, parts, run.module)


def trained_blocks(run: Training, model: nn.Module) -> dict[str, Block]:
    """Blocks that the method trains; the base model as one, or cut into the blocks that --eta may name."""
    trained = heads.blocks(model, base=bool(run.recipe.base), module=run.recipe.module)
    rates = block_rates(run)
    if not rates:
        return trained
    if run.recipe.base == "exact":
        # The base model's parts have groups of their own; what is trained beside it stays as it is.
        base = set(map(id, trained.pop("base").params))
        cut = {}
        for name, block in partition(model, run.blocks).items():
            params = tuple(p for p in block.params if id(p) in base)
            if params:
                cut[name] = Block(name, params)
        trained = cut | trained
    for name in rates:
        if name not in trained:
            raise BadInput(f"--eta {name}={rates[name]:g}: no such block of exact gradients, use {', '.join(trained)}")
    return trained


def measured_blocks(run: Training, blocks: Mapping[str, Block]) -> list[Block]:
    """Blocks that --measure names."""
    for name in run.measure:
        if name not in blocks and run.measure != ("all",):
            raise BadInput(f"--measure {name}: no such block, use all or some of {', '.join(blocks)}")
    measured = [block for name, block in blocks.items() if name in run.measure or run.measure == ("all",)]
    for block in measured:
        if block.params[0].dtype.itemsize == 2:
            raise BadInput(
                f"--measure {' '.join(run.measure)} with --dtype {run.dtype}: block '{block.name}' is held in 16 bits, "
                "whose rounding hides its curvature: use --measure peft, or --dtype float32"
            )
    return measured


def pairs(run: Training, blocks: Sequence[Block]) -> list[tuple[str, str]]:
    """Pairs of measured blocks that --cross names."""
    names = [block.name for block in blocks]
    chosen = []
    for text in run.cross:
        first, _, second = text.partition(":")
        if text == "auto":
            if "base" in names and "peft" in names:
                chosen.append(("base", "peft"))
        elif first not in names or second not in names or first == second:
            raise BadInput(f"--cross {text}: write two different measured blocks as a:b, of {', '.join(names)}")
        else:
            chosen.append((first, second))
    return chosen


def optimizer(
    run: Training, blocks: Mapping[str, Block], rates: Rates, log: Path | None = None, steps: int = 0,
    model: nn.Module | None = None,
) -> HybridSGD:  # fmt: skip
    """Algorithm 1's optimizer: x by the estimator of Eq. (2) where the method says so, all else by exact gradients.

    With --compute float32 the layers of `model` are moved one at a time, in float32, which 16-bit weights cannot hold.
    """
    oracle: Estimator | None = None
    variant: Variant | None = None
    if run.recipe.base == "zeroth":
        oracle, variant = _estimator(run, rates, model)
    # A classifier's head learns at the rate of the module beside it, and without a module at the base model's.
    defaults = dict.fromkeys(blocks, rates.eta_x) | {"peft": rates.eta_y}
    if run.recipe.module:
        defaults["head"] = rates.eta_y
    learning_rates = defaults | block_rates(run)
    groups = []
    for name, block in blocks.items():
        group = {"params": list(block.params), "name": name, "lr": learning_rates[name], "oracle": None}
        if name == "base":
            group |= {"oracle": oracle, "variant": variant}
        groups.append(group)
    seed_log = None
    if log is not None and oracle is not None and variant is not None:
        seed_log = SeedLog(
            log, run.seed, {0: blocks["base"]}, {0: oracle.distribution}, keep=steps, variants={0: variant}
        )
    masters: Masters = True
    if run.keeps_factors:
        masters = "factors"
    return HybridSGD(groups, seed=run.seed, exact=OPTIMIZERS[run.optimizer], masters=masters, log=seed_log)


def _estimator(run: Training, rates: Rates, model: nn.Module | None) -> tuple[Estimator, Variant]:
    """The estimator of Eq. (2), and what is done with its estimates."""
    perturb: Perturb = "weights"
    if run.moves_in_forward:
        perturb = "forward"
    dtype = layers = None
    if run.widens:
        dtype = torch.float32  # of what is moved, where 16 bits would round the move away
        if perturb == "weights":
            layers = model
    distribution, variant = named(run.distribution, generator=run.generator), variant_named(run.variant)
    plain = ZerothOrder(
        rates.mu, run.sides, distribution, run.q, perturb=perturb, parallel=run.parallel, layers=layers, dtype=dtype
    )
    return variant.oracle(plain), variant


def _check_batch(run: Training, count: int) -> None:
    processes = distributed.world_size()
    if not 1 <= run.batch <= count:
        raise BadInput(f"--batch {run.batch} with {count} training examples: use 1 to {count}")
    if run.over and not run.batch <= run.over <= count:
        raise BadInput(f"--over {run.over} with {count} training examples: use {run.batch} (--batch) to {count}")
    if run.batch % processes:
        raise BadInput(f"--batch {run.batch} with {processes} processes: use a multiple of {processes}")
