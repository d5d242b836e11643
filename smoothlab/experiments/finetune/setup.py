"""A fine-tuning run as configured, before step 0: its model, blocks, data, and Algorithm 1's optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smoothlab.blocks import Block
from smoothlab.experiments.finetune.options import ZEROTH
from smoothlab.experiments.finetune.selection import Score
from smoothlab.llm import distributed, encoding, heads, padding
from smoothlab.llm.adapters import virtual_tokens
from smoothlab.llm.evaluate import MULTIPLE, Accuracy, Encoded, accuracy, batch, choice_loss, encode
from smoothlab.llm.export import save
from smoothlab.llm.tasks import load_choices
from smoothlab.llm.tasks.jsonlines import TEMPLATE
from smoothlab.llm.tuning import Rates, Tuning
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import ZerothOrder

if TYPE_CHECKING:
    from smoothlab.experiments.finetune.experiment import Finetune

Row = dict[str, Any]


@dataclass
class Setup:
    """A run as configured, before step 0.

    Attributes:
        tuning: model, blocks and training data.
        judge: finds the accuracy of the model as it stands on a split.
        dev: items to select by.
        test: items to be looked at once.
        served: which files these came from.
        notes: what a reader should know.
        save: writes the model as it stands to a folder, with what its model cards tell.
    """

    tuning: Tuning
    judge: Callable[[Encoded], Accuracy]
    dev: Encoded
    test: Encoded
    served: str
    notes: list[str]
    save: Callable[[Path, str], None]

    def score_dev(self) -> Score:
        """The model as it stands, on dev."""
        return Score.of(self.judge(self.dev), self.dev)

    def test_row(self) -> Row:
        """How the model as it stands does on test, how guesses would, and each answer: right 1, wrong 0."""
        found, labels, options = self.judge(self.test), self.test.labels, self.test.options
        head = "classifier" if self.test.kind == "classifier" else "lm"
        return {
            **Score.of(found, self.test).row(), "head": head,
            "chance": sum(1 / len(each) for each in options) / len(options),
            "majority": max(map(labels.count, labels)) / len(labels), "served": self.served,
            "right": "".join("01"[p == label] for p, label in zip(found.predictions, labels, strict=True)),
        }  # fmt: skip


def setup(run: "Finetune") -> Setup:
    """Model, blocks and data of a run.

    Raises:
        BadInput: they cannot be had, or do not fit each other; one line that names the fix.
    """
    reason = heads.classifier_reason(run.head, run.model)
    sizes, words = (run.train, run.dev, run.test), run.verbalizers if reason is None else None
    splits = load_choices(run.data, run.data_dir, run.seed, sizes, template=run.template, verbalizers=words)
    device = distributed.local_device(run.device)
    loaded = heads.load(run.model, splits, reason, seed=run.seed, dtype=getattr(torch, run.dtype), device=device)
    model = heads.attached(loaded, run.module, seed=run.seed)
    longest = loaded.max_length - virtual_tokens(model)
    kind = splits.kind if reason is None else "classifier"
    train, dev, test = (
        encode(loaded.tokenizer, items, longest, kind) for items in (splits.train, splits.dev, splits.test)
    )
    mixed = padding.check_items(model, (train, dev, test), run.model, run.module, size=run.batch)
    base = run.method != "fo-peft"
    trained = heads.blocks(model, base=base, module=run.module != "none")
    mine = {id(p) for block in trained.values() for p in block.params}
    for p in model.parameters():
        p.requires_grad_(id(p) in mine)
    multiple = 1 if run.batch == 1 else MULTIPLE  # single rows are not padded, whatever the model makes of padding
    tuning = Tuning(
        model, trained, lambda numbers: batch(train, numbers, device, multiple=multiple), choice_loss,
        partial(optimizer, run), len(train), run.batch, run.steps, run.evaluations, run.schedule, run.seed, run.logged,
        run.parts,
    )  # fmt: skip
    notes = [*loaded.notes, splits.served]
    if reason is not None and (run.template, run.verbalizers) != (TEMPLATE, ()):
        notes.append("a classifier reads sentences alone: --template and --verbalizers are not used")
    if not mixed:
        notes.append("padding moves this model's scores: rows are trained singly, and evaluated beside rows as long")
    notes += encoding.notes((train, dev, test))
    return Setup(
        tuning, partial(accuracy, model, mixed=mixed), dev, test, splits.served, notes,
        lambda folder, story: save(model, loaded.tokenizer, folder, base=base, story=story),
    )  # fmt: skip


def optimizer(
    run: "Finetune", blocks: Mapping[str, Block], rates: Rates, log: Path | None = None, steps: int = 0
) -> HybridSGD:
    """Algorithm 1's optimizer: x by the estimator of Eq. (2) where the method says so, y by exact gradients."""
    oracle = None
    if run.method in ZEROTH:
        oracle = ZerothOrder(mu=rates.mu, sides=run.sides, distribution=named(run.distribution), q=run.q)
    x, y = {"lr": rates.eta_x, "oracle": oracle}, {"lr": rates.eta_y, "oracle": None}
    groups = [
        {"params": list(block.params), "name": name, **(x if name == "base" else y)} for name, block in blocks.items()
    ]
    exact = partial(torch.optim.AdamW, weight_decay=0.0) if run.rule == "adam" else None
    written = None
    if log is not None and oracle is not None:
        written = SeedLog(log, run.seed, {0: blocks["base"]}, {0: oracle.distribution}, keep=steps)
    return HybridSGD(groups, seed=run.seed, exact=exact, log=written)
