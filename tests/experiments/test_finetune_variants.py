"""`smoothlab finetune --variant`: every variant stopped and continued to the bit, its log replayed, and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.options import check, unused
from smoothlab.experiments.finetune.plan import _gradients
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.names import VARIANTS
from smoothlab.zeroth.variants import Momentum
from tests.experiments.test_finetune import kept_in, run
from tests.experiments.toy_finetune import Toy

TOYS = {
    "plain": Toy(),
    "momentum": Toy(variant="momentum(0.5, 4)"),
    "adaptive": Toy(variant="adaptive(0.9)", eta_x=1e-3),
    "spread": Toy(variant="spread", q=4, sides=1, distribution="rademacher", eta_x=1e-3),
    "subspace": Toy(variant="subspace(5)", distribution="lowrank(2)"),
    "muon": Toy(variant="muon", distribution="lowrank(2)", q=2, eta_x=1e-3),
}


QUICK = [("adaptive", False), ("momentum", True), ("subspace", True)]
LONGER = [(name, logged) for name in TOYS for logged in (False, True) if (name, logged) not in QUICK]


@pytest.mark.parametrize(
    ("name", "logged"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.check) for case in LONGER)]
)
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, name: str, logged: bool) -> None:
    assert list(TOYS) == list(VARIANTS)
    toy = replace(TOYS[name], steps=12, eval_every=4)
    if logged:
        toy = replace(toy, checkpoint=Path("log:"))
    wanted = run(replace(toy, checkpoint=None), tmp_path / "whole.jsonl")
    again, out = kept_in(toy, tmp_path / "kept"), tmp_path / "stopped.jsonl"
    course, writer = again.rows([]), records.Writer(out, "toy", records._plain(again.__dict__), {})
    for _ in range(2):  # rows at steps 0 and 4
        writer.write(next(course))
    next(course)  # a step and a checkpoint further than the rows that are on record
    course.close()
    writer._stack.close()
    assert run(again, out) == wanted
    if name != "plain":
        assert wanted != run(replace(toy, checkpoint=None, variant="plain"), tmp_path / "plain.jsonl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"variant": "lion"},
            "--variant lion is unknown: use one of plain, momentum, adaptive, spread, subspace, muon",
        ),
        ({"variant": "muon"}, "variant muon with gaussian directions: it is made for low-rank ones"),
        (
            {"variant": "muon", "distribution": "lowrank", "generator": "portable"},
            "variant muon with portable directions: its decompositions are rounded otherwise",
        ),
        ({"variant": "momentum(2)"}, "--variant momentum(2): momentum's beta = 2: use a number from 0 to below 1"),
        ({"variant": "spread(3)"}, "--variant spread(3) has the parameters none: give numbers, as in momentum(0.9)"),
        ({"variant": "spread"}, "variant spread with q = 1 plain directions"),
        ({"variant": "subspace"}, "variant subspace(50) with gaussian directions: it is made for low-rank"),
        ({"variant": "adaptive", "follow": 4}, "--follow 4 with --variant adaptive: the stability limits that rates"),
    ],
)
def test_bad_variants_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as told:
        check(replace(Toy(), **change))
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_variant_is_part_of_the_run_and_plain_is_not_named() -> None:
    assert "variant" not in Toy().settings() and "variant=spread" in TOYS["spread"].settings()
    assert unused(replace(Toy(method="fo-peft"), variant="momentum")) == [
        "--variant momentum is not used by --method fo-peft"
    ]
    assert _gradients(TOYS["spread"], object()) == "zeroth-order: one-sided rademacher, q = 4, spread"


@pytest.mark.check
def test_a_log_of_a_variant_and_the_base_model_make_the_trained_one(tmp_path: Path) -> None:
    folder, model = tmp_path / "run", load_lm("micro", seed=0).model
    block, tokens, variant = partition(model)["base"], torch.arange(12).view(2, 6) + 5, Momentum(0.6, 3)
    oracle = ZerothOrder(generator="portable")
    log = SeedLog(folder / "zeroth-000.log", 3, {0: block}, {0: oracle.distribution}, variants={0: variant})
    group = {"params": block.params, "lr": 1e-5, "oracle": oracle, "name": "base", "variant": variant}
    optimizer = HybridSGD([group], seed=3, log=log)
    for _ in range(4):
        optimizer.step(lambda: model(input_ids=tokens, labels=tokens).loss)
    assert main(["replay", str(folder), "--model", "micro", "--save", str(tmp_path)]) == 0
    rebuilt = partition(load_lm(str(tmp_path / "model"), seed=0).model)["base"]
    assert all(torch.equal(p, q) for p, q in zip(rebuilt.params, block.params, strict=True))


def test_help_lists_the_variants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    words = "".join(capsys.readouterr().out.split())
    assert "|".join(VARIANTS) in words.replace("││", "")
    assert main(["advise", "--variant", "spread"]) == 2
