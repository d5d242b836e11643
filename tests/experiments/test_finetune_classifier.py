"""Fine-tuning sequence classifiers: which blocks move, what is learnt, saved, continued, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.llm.evaluate import Encoded, accuracy_one_by_one, mean_loss
from tests.experiments.command import ended, forked
from tests.experiments.test_finetune import rows_of, run
from tests.experiments.test_finetune_killed import FEW, FEW_LOGGED, PLACES, written
from tests.llm.classifiers import checkpoint

WORDS = ("dull", "fair", "fine")
KINDS = ("opt", "llama", "bert", "roberta", "bart", "esm")
METHODS = ("hybrid", "fo-peft", "zo", "fo-full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every kind, and a file of sentences of three classes, told by their last word."""
    place = tmp_path_factory.mktemp("classifiers")
    for kind in (*KINDS, "bert-classifier"):
        checkpoint(place / kind, kind)
    rows = [{"sentence": f"number {i} is {WORDS[i % 3]}", "label": i % 3} for i in range(60)]
    (place / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def configured(folder: Path, kind: str, **options: Any) -> Finetune:
    given: dict[str, Any] = {"head": "classifier", "train": 40, "dev": 8, "test": 6, "batch": 8, "steps": 3}
    given |= {"eval_every": 2, "patience": 0, "eta_x": 1e-3, "mu": 1e-2}
    return Finetune(model=str(folder / kind), data=str(folder / "three.jsonl"), **given | options)


def started(run: Finetune) -> Any:
    setup = run.setup()
    return setup, setup.trainer()


def scores(model: Any, items: Encoded) -> torch.Tensor:
    return torch.tensor(accuracy_one_by_one(model, items).scores)


def parts(names: set[str]) -> set[str]:
    """What parameters are of, by peft's and transformers' names."""
    found = set()
    for name in names:
        if "lora_" in name or "prompt_encoder" in name:
            found.add("peft")
        elif "modules_to_save" in name:
            found.add("pooler" if "pooler" in name else "head")
        else:
            found.add("head" if name.startswith(("score", "classifier", "classification_head")) else "base")
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind",
    ["opt", "bert", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k not in ("opt", "bert", "bart"))],
)
def test_what_a_method_trains_moves_and_nothing_else(folder: Path, kind: str, method: str) -> None:
    """All of it moves; ESM's contact head, which a classifier does not use, moves by zeroth-order steps at most."""
    setup, trainer = started(configured(folder, kind, method=method, eta_y=0.01))
    named = dict(setup.model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    for _ in range(3):
        trainer.update()
    moved = {name for name, p in named.items() if not torch.equal(p, before[name])}
    own = {"hybrid": ("base", "peft", "head"), "fo-peft": ("peft", "head")}.get(method, ("base",))
    assert tuple(setup.blocks) == own
    wanted = {"peft", "head"} if method == "fo-peft" else {"base", "head"} | ({"peft"} if method == "hybrid" else set())
    if kind == "bert" and "peft" in own:
        wanted |= {"pooler"}  # a new one, trained with the head
    assert parts(moved) == wanted
    trained = {name for name, p in named.items() if p.requires_grad}
    unused = {name for name in trained if "contact_head" in name} if method == "fo-full" else set()
    assert moved == trained - unused and len(unused) == (2 if (kind, method) == ("esm", "fo-full") else 0)


LEARN = {
    "hybrid": {"eta_x": 1e-4, "eta_y": 0.02, "steps": 30}, "fo-peft": {"eta_y": 0.02, "steps": 30},
    "fo-full": {"eta_x": 0.01, "steps": 30}, "zo": {"eta_x": 0.01, "q": 4, "steps": 40},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("opt", "hybrid"), ("bert", "fo-peft"), ("roberta", "fo-full"),
        *(
            pytest.param(kind, method, marks=pytest.mark.slow)
            for kind in KINDS[:4]
            for method in LEARN
            if (kind, method) not in (("opt", "hybrid"), ("bert", "fo-peft"), ("roberta", "fo-full"))
        ),
    ],
)  # fmt: skip
def test_the_loss_falls_on_the_training_data(folder: Path, kind: str, method: str) -> None:
    run = configured(folder, kind, method=method, **LEARN[method])
    _, trainer = started(run)

    def loss() -> float:
        with torch.no_grad():
            epoch = [float(trainer.minibatch_loss(step)()) for step in range(run.train // run.batch)]
        return sum(epoch) / len(epoch)

    begun = loss()
    for _ in range(run.steps):
        trainer.update()
    assert 1.0 < begun < 1.5, "log 3 = 1.1 for guesses of three classes"
    assert loss() < (0.95 * begun if method == "zo" else 0.2)


SAVED = [
    *(("opt", method, "auto") for method in METHODS), ("bert", "hybrid", "auto"), ("roberta", "hybrid", "ia3"),
    ("bert", "hybrid", "prompt"), ("opt", "hybrid", "prefix"),
]  # fmt: skip
LONGER = [
    *(("bert", method, "auto") for method in METHODS if method != "hybrid"),
    *((kind, method, "auto") for kind in ("llama", "roberta", "bart") for method in METHODS[:2]),
    ("opt", "hybrid", "prompt"), ("opt", "fo-peft", "prompt"), ("bert", "fo-peft", "prompt"), ("bert", "hybrid", "ia3"),
    ("llama", "hybrid", "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "method", "peft"), [*SAVED, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONGER)]
)
def test_saved_classifiers_load_in_plain_peft_and_transformers(
    folder: Path, tmp_path: Path, kind: str, method: str, peft: str
) -> None:
    """The same scores of all classes; the trained head is in both folders."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run = configured(folder, kind, method=method, peft=peft, eta_y=0.05)
    setup, trainer = started(run)
    start = setup.judge(setup.test).scores
    for _ in range(3):
        trainer.update()
    trained = scores(setup.model, setup.test)
    setup.save(tmp_path, "Three classes.")
    base = tmp_path / "model" if method != "fo-peft" else folder / kind
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    if method in ("hybrid", "fo-peft"):
        model = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    else:
        assert not (tmp_path / "adapter").exists()
    torch.testing.assert_close(scores(model, setup.test), trained, rtol=0, atol=1e-6)
    assert float((trained - torch.tensor(start)).abs().max()) > 1e-4
    if method != "fo-peft":
        alone, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
        assert alone.config.id2label == {0: "0", 1: "1", 2: "2"} and not any(report.values())
        again = replace(run, model=str(tmp_path / "model"), head="auto", method="zo", peft="auto").setup()
        assert any("it was saved as" in note for note in again.notes)
        assert any("the head is that of" in note for note in again.notes)
        if method in ("zo", "fo-full"):
            torch.testing.assert_close(scores(again.model, again.test), trained, rtol=0, atol=1e-6)


def test_a_run_scores_by_cross_entropy_over_classes(folder: Path, tmp_path: Path) -> None:
    """Rows of dev and test are those of the slow truth at the weights of step 0."""
    run_ = configured(folder, "bert-classifier", method="fo-peft", steps=0)
    rows = run(run_, tmp_path / "run.jsonl")
    setup = run_.setup()
    slow = accuracy_one_by_one(setup.model, setup.dev)
    slow_loss = mean_loss(slow, setup.dev)
    probabilities = scores(setup.model, setup.dev)
    loss = torch.nn.functional.nll_loss(probabilities, torch.tensor(setup.dev.labels))
    assert slow_loss == pytest.approx(float(loss), rel=1e-6)
    assert rows[0]["dev_loss"] == pytest.approx(slow_loss, rel=1e-5) and rows[0]["correct"] == slow.correct
    assert rows[-1]["head"] == "classifier" and rows[-1]["chance"] == pytest.approx(1 / 3)


KILLED = {
    "bert": ("--model bert --head auto --eta-y 0.01 --schedule cosine", "log:", FEW_LOGGED),
    "opt": ("--model opt --search eta_y=0.01,0.1 --optimizer sgd --sides 1 --peft prompt --dtype bfloat16", "", FEW),
    "zo": ("--model roberta --method zo --eta-x 1e-3", "log:", FEW_LOGGED),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bert", *(pytest.param(n, marks=pytest.mark.check) for n in KILLED if n != "bert")])
def test_killed_and_started_again_it_goes_on_to_the_bit(folder: Path, tmp_path: Path, name: str) -> None:
    given, log, places = KILLED[name]
    kind = given.split()[1]

    def command(place: Path) -> list[str]:
        place.mkdir(exist_ok=True)
        own = given.replace(f"--model {kind}", f"--model {folder / kind}").split()
        paths = ["--data", folder / "three.jsonl", "--out", place / "run.jsonl", "--save", place / "saved"]
        sizes = "--head classifier --train 24 --dev 8 --test 6 --batch 4 --steps 8 --eval-every 4 --mu 0.03".split()
        return ["finetune", *sizes, *own, *map(str, paths), "--checkpoint", f"{log}{place / 'kept'}"]

    whole, again = tmp_path / "whole", tmp_path / "again"
    assert ended(forked(command(whole), whole / "said")) == 0, (whole / "said").read_text()
    for where in places:
        assert ended(forked(command(again), again / "said", PLACES[where])) == -9, (again / "said").read_text()
    assert ended(forked(command(again), again / "said")) == 0, (again / "said").read_text()
    wanted, found = written(whole), written(again)
    assert found == wanted and len({row["dev_loss"] for row in wanted["rows"]}) > 2
    held = [key for key in wanted if key.startswith("kept/after-")]
    assert any("classifier" in key or "score" in key for key in held) == (name != "zo")
    assert any("embed" in key and "weights/" in key for key in held) == (name == "opt")


@pytest.mark.check  # two processes make the steps of one in test_finetune, without a classifier's head
def test_two_processes_train_a_classifier_as_one(folder: Path, tmp_path: Path) -> None:
    """Head, module and base model from shared scalars and summed gradients: equal up to the order of summation."""
    from tests.experiments.test_finetune_processes import two

    given = ["--model", folder / "bert", "--data", folder / "three.jsonl"]
    sizes = "--train 24 --dev 8 --test 6 --batch 4 --steps 8 --eval-every 4 --mu 0.01 --dtype float64".split()
    command = ["finetune", *map(str, given), *sizes]
    assert ended(forked([*command, "--out", str(tmp_path / "one.jsonl")], tmp_path / "said")) == 0
    for status, said in two([*command, "--out", str(tmp_path / "two.jsonl")], tmp_path):
        assert status == 0, said
    for one, other in zip(rows_of(tmp_path / "one.jsonl"), rows_of(tmp_path / "two.jsonl"), strict=True):
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


@pytest.mark.check  # the same command trains tiny classifiers above, and micro without a head in test_finetune
def test_the_command_line_trains_micro_as_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from smoothlab.__main__ import main

    out = tmp_path / "run.jsonl"
    command = "finetune --head classifier --train 24 --dev 8 --test 8 --batch 4 --steps 2 --eval-every 2 --out".split()
    assert main([*command, str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "micro (classifier) on builtin" in said
        and "trains head                   384 parameters, first-order, learning rate 0.005" in said
    )
    assert main([*command, str(out)]) == 0
    assert "Hybrid-LoRA classifier (eta_x 1e-4, eta_y 0.005)" in capsys.readouterr().out
    assert main(["plot", str(out), "--kind", "finetune", "--out", str(tmp_path / "curves.png")]) == 0


def test_head_auto_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = replace(configured(folder, "bert"), head="auto", steps=0)
    run(one, tmp_path / "run.jsonl")
    assert f"{one.model} is trained as a classifier of 3 classes: models of type bert generate no" in (
        capsys.readouterr().err
    )
    other = replace(configured(folder, "opt"), head="auto", verbalizers=WORDS, steps=0)
    run(other, tmp_path / "lm.jsonl")
    assert "as a classifier" not in capsys.readouterr().err and rows_of(tmp_path / "lm.jsonl")[-1]["head"] == "lm"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta_y": 1e6, "steps": 30}, "lower --eta-y (1e+06)"),
        ({"eta_x": 1e6, "steps": 30, "method": "zo"}, "lower --eta-x (1e+06)"),
        ({"head": "bert"}, "--head bert is unknown: use one of auto, lm, classifier"),
        ({"head": "lm"}, "is of type bert, which generates no text from left to right: use micro, or a causal"),
        ({"peft": "adaption_prompt"}, "--peft adaption_prompt does not fit this model"),
        ({"kind": "llama", "peft": "adaption_prompt"}, "adaption_prompt saves no classifier's head with its module"),
        ({"kind": "bart", "peft": "prompt"}, "of type bart with --peft prompt cannot be run on a row by itself"),
        ({"kind": "esm", "peft": "prefix"}, "use another PEFT method or model"),
    ],
)
def test_what_goes_wrong_is_one_line(folder: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    kind = options.get("kind", "bert")
    given = {name: value for name, value in options.items() if name != "kind"}
    with pytest.raises(BadInput) as told:
        run(configured(folder, kind, **{"optimizer": "sgd", "verbalizers": WORDS} | given), tmp_path / "run.jsonl")
    assert words in str(told.value) and "\n" not in str(told.value)
