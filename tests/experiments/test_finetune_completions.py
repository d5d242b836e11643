"""`smoothlab finetune` on prompts with completions and on texts: rows, selection by dev loss, and what is refused."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothlab.__main__ import main
from tests.experiments.test_finetune import rows_of
from tests.llm.test_completions import CHATML, own_losses
from tests.llm.tiny import tokenizer
from tests.test_docs import misfits

OPTIONS = "--train 24 --dev 6 --test 4 --batch 4 --eval-every 2 --patience 0 --steps 4 --eta-x 1e-3 --eta-y 1e-2"
CAPITALS = {"France": "Paris", "Italy": "Rome", "Norway": "Oslo", "Peru": "Lima"}
Run = Callable[..., list[dict[str, Any]]]


def write(path: Path, kind: str, count: int = 40) -> None:
    lines = []
    for number in range(count):
        country = list(CAPITALS)[number % 4]
        prompt, completion = f"film {number}: the capital of {country} is", f" {CAPITALS[country]}"
        row = {"text": prompt + completion + "."}
        if kind == "completion":
            row = {"prompt": prompt, "completion": completion}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Rows of the command, run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for kind in ("completion", "text"):
        write(tmp_path / f"{kind}.jsonl", kind)

    def run(options: str, *, out: str = "run.jsonl", model: object = folder / "model") -> list[dict[str, Any]]:
        assert main(["finetune", "--model", str(model), "--out", out, *OPTIONS.split(), *options.split()]) == 0
        assert not misfits(Path(out))
        return rows_of(Path(out))

    return run


METHODS = {"hybrid": ("adapter", "model"), "zo": ("model",), "fo-peft": ("adapter",), "fo-full": ("model",)}
"""What --save writes."""
DEFAULT = ("hybrid-completion", "fo-full-text")
CASES = []
for pair in itertools.product(METHODS, ("completion", "text")):
    marks = () if "-".join(pair) in DEFAULT else pytest.mark.check
    CASES.append(pytest.param(*pair, id="-".join(pair), marks=marks))


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_every_method_trains_and_selects_by_dev_loss(run: Run, method: str, kind: str) -> None:
    rows = run(f"--data {kind}.jsonl --method {method} --save kept")
    dev, test = rows[:-1], rows[-1]
    assert [row["part"] for row in rows] == ["dev", "dev", "dev", "test"]
    best = min(dev, key=lambda row: row["dev_loss"])
    assert (test["step"], test["dev_loss"]) == (best["step"], best["dev_loss"])
    assert test["steps_to_best"] == best["step"]
    assert not {"accuracy", "correct", "chance"} & {name for row in rows for name in row}
    assert ("exact_match" in dev[0]) == ("f1" in test) == ("right" in test) == (kind == "completion")
    assert test["count"] == 4 and dev[0]["count"] == 6 and test["low"] < test["loss"] < test["high"]
    if method != "zo":
        assert best["dev_loss"] < dev[0]["dev_loss"]
    for path in ("adapter", "model"):
        assert Path("kept", path).is_dir() == (path in METHODS[method])
    for card in Path("kept").rglob("README.md"):
        text = card.read_text()
        assert f"| test loss | {test['loss']:.4g} nats a token, mean over the 4 items" in text
        assert ("exact match 0.0 %, F1 0.0 %" in text) == (kind == "completion")


def test_the_test_loss_is_that_of_the_saved_model(run: Run) -> None:
    from transformers import AutoModelForCausalLM

    test = run("--data completion.jsonl --method fo-full --save kept")[-1]
    model, tok = AutoModelForCausalLM.from_pretrained("kept/model").eval(), tokenizer()
    from smoothlab.llm.tasks import load_choices

    rows = []
    for item in load_choices("completion.jsonl", sizes=(24, 6, 4)).test:
        prompt = tok(item.prompt).input_ids
        whole = [*tok(item.prompt + item.candidates[0]).input_ids, tok.eos_token_id]
        rows.append((whole, [-100] * len(prompt) + whole[len(prompt) :]))
    assert test["loss"] == pytest.approx(sum(own_losses(model, rows)) / 4, abs=2e-5)
    assert test["tokens"] == sum(label != -100 for _, labels in rows for label in labels)


@pytest.mark.check
def test_search_measure_and_resume(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--data completion.jsonl --search eta_y=1e-4,1e-2 --measure peft --points 2 --probes 2 --precision 0.5"
    whole = run(f"{options} --checkpoint whole", out="whole.jsonl")
    test = whole[-1]
    dev = [row for row in whole if row["part"] == "dev"]
    assert {row["trial"] for row in dev} == {0, 1}
    assert test["dev_loss"] == min(row["dev_loss"] for row in dev) and test["trial"] == 1
    assert any(row["part"] == "curvature" and row["quantity"] == "frobenius" for row in whole)
    # Stopped behind an evaluation of the second trial, as the record file and the checkpoints show it then.
    from smoothlab.experiments.finetune.selection import Selection

    calls, method = [], Selection._evaluation

    def stop(self: Selection, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return method(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Selection, "_evaluation", stop)
        with pytest.raises((KeyboardInterrupt, AssertionError)):
            run(f"{options} --checkpoint part", out="part.jsonl")
    assert run(f"{options} --checkpoint part", out="part.jsonl") == whole
    assert "resumed at step 2 from --checkpoint part, with 17 rows" in capsys.readouterr().err


@pytest.mark.check
def test_parts_and_over_mean_over_items(run: Run) -> None:
    """A minibatch in one part or four has the same mean over items, and --over measures the mean of all items."""
    whole = run("--data text.jsonl --method fo-full --parts 1", out="one.jsonl")
    parts = run("--data text.jsonl --method fo-full --parts 4", out="four.jsonl")
    for a, b in zip(whole, parts, strict=True):
        if a["part"] == "dev":
            assert a["dev_loss"] == pytest.approx(b["dev_loss"], abs=1e-4)
    rows = run("--data text.jsonl --measure peft --over 8 --points 1 --precision 0.5", out="over.jsonl")
    assert any(row.get("protocol") == "dataset" for row in rows)


@pytest.fixture(scope="module")
def chat_model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a chat template."""
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("chat")
    AutoModelForCausalLM.from_pretrained(folder / "model").save_pretrained(place)
    tok = tokenizer()
    tok.chat_template = CHATML
    tok.save_pretrained(place)
    return place


@pytest.mark.check
def test_a_chat_template_is_used_unless_told_otherwise(run: Run, chat_model: Path, folder: Path) -> None:
    chat = run("--data completion.jsonl --method fo-peft", model=chat_model)
    plain = run("--data completion.jsonl --method fo-peft --no-chat", out="no.jsonl", model=chat_model)
    same = run("--data completion.jsonl --method fo-peft", out="same.jsonl", model=folder / "model")
    assert plain == same and chat[0]["dev_loss"] != plain[0]["dev_loss"]
    texts = run("--data text.jsonl --method fo-full --save kept", out="texts.jsonl", model=chat_model)
    assert texts == run("--data text.jsonl --method fo-full", out="plain.jsonl"), "texts are no conversations"
    assert Path("kept/model/chat_template.jinja").read_text() == CHATML


def test_cut_completions_are_counted_and_not_answered(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run("--data completion.jsonl --method fo-peft --max-length 13")
    assert "completions or texts are longer than a row and lost their end" in capsys.readouterr().err
    assert "exact_match" not in rows[-1]
    assert "exact_match" not in run("--data completion.jsonl --method fo-peft --answer-tokens 0", out="0.jsonl")[-1]
    assert "generated greedily" not in capsys.readouterr().err


GOOD = "".join(json.dumps({"prompt": f"film {i}", "completion": " fine"}) + "\n" for i in range(40))


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (GOOD.replace('39", "completion": " fine"', '39"'), "", ':40 has no text: give a non-empty string in'),
        (GOOD.replace('39", "completion": " fine"', '39", "completion": " "'), "", ':40 has no text: give a non-empty'),
        (GOOD.replace('"prompt": "film 39", ', ""), "", ':40 has no text: give a non-empty string in'),
        (GOOD + '{"prompt": "a", "candidates": ["b", "c"], "label": 0}\n', "", ":41 has candidates, and other lines"),
        ('{"text": "a film"}\n' * 30 + '{"text": 3}\n', "", ':31 has no text: give a non-empty string in'),
        ('{"text": "fine"}\n' * 30 + '{"text": "a", "label": 1}\n', "", ':1 has no label: give a whole number, from 0'),
        (GOOD, "--head classifier", " holds completions or texts, which no classifier predicts: use --head lm"),
        (GOOD, "--verbalizers a b", " --template and --verbalizers are for labelled sentences, bad.jsonl has none"),
        (GOOD, "--max-length 3", "the completion 'fine' has no token to be scored: its prompt has"),
        (GOOD, "--max-length 1", "--max-length 1 is too small: use at least 2 tokens"),
        (GOOD, "--calibrate", "--calibrate with completions: it compares candidates that a language model scores"),
        (GOOD, "--answer-tokens -1", "--answer-tokens -1 is too small: use at least 0"),
    ],
)  # fmt: skip
def test_bad_completions_end_in_one_line(
    run: Run, folder: Path, content: str, options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.jsonl").write_text(content)
    given = ["--model", str(folder / "model"), "--data", "bad.jsonl", *OPTIONS.split(), *options.split()]
    assert main(["finetune", *given, "--out", "bad-run.jsonl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("smoothlab: error: ") and told.strip() in line
    assert not Path("bad-run.jsonl").exists()
    assert torch.is_grad_enabled()
