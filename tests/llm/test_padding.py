"""Every model in `finetune` and `smoothness` scores rows as by themselves, or is refused in one line that names it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import fixed_loss
from smoothlab.errors import BadInput
from smoothlab.hessian import padding
from smoothlab.llm.adapters import attach
from smoothlab.llm.encoding import Encoded, batch
from smoothlab.llm.evaluate import accuracy, accuracy_one_by_one, choice_loss, scores
from smoothlab.llm.models import LoadedModel
from smoothlab.llm.padding import check_items, precise
from smoothlab.llm.peft_methods import MEASURABLE
from smoothlab.llm.tasks import Kind
from tests.cases import started
from tests.llm import architectures
from tests.llm.tiny import tokenizer

EPS = torch.finfo(torch.float32).eps


KINDS: tuple[Kind, ...] = ("verbalizer", "multiple choice")
ITEMS = {kind: architectures.rows(kind) for kind in (*KINDS, "classifier")}
SHORT = replace(ITEMS["verbalizer"], contexts=tuple(row[:10] for row in ITEMS["verbalizer"].contexts))


def refused(model: nn.Module, items: Encoded, method: str = "none", size: int = 8) -> str:
    with pytest.raises(BadInput) as caught:
        check_items(model, [items], "some/model", method, size=size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def scored_alike(model: nn.Module, items: Encoded) -> None:
    """Checked, and the check is right: training and evaluation score all items as single candidates are scored."""
    check_items(model, [items], "some/model", "none", size=8)
    truth = accuracy_one_by_one(model, items).scores
    flat = torch.tensor([score for each in truth for score in each])
    bound = 200 * EPS * float(flat.abs().max())
    with torch.no_grad():
        together = scores(model, batch(items, range(len(items)), all_candidates=True))
    torch.testing.assert_close(together, flat, rtol=0, atol=bound)
    torch.testing.assert_close(torch.tensor(accuracy(model, items).scores), torch.tensor(truth), rtol=0, atol=bound)


@pytest.mark.check
@pytest.mark.parametrize("method", ["none", "prompt", "prefix"])
@pytest.mark.parametrize("kind", [*architectures.SOUND, *architectures.CURED])
def test_language_models_score_alike_or_do_not_fit_the_method(kind: str, method: str) -> None:
    """None of them is refused for padding; which ones peft cannot attach a method to is in architectures.UNFIT.

    Under LoRA their logits are compared in test_architectures.py.
    """
    if kind in architectures.UNFIT.get(method, ()):
        with pytest.raises(BadInput, match=f"--peft {method} does not fit this model of type {kind} "):
            attach(architectures.causal(kind), method, seed=0)
        return
    model = attach(architectures.causal(kind), method, seed=0)
    for items in KINDS:
        scored_alike(model, ITEMS[items])


@pytest.mark.parametrize(("kind", "method"), [("mistral", "prefix"), ("qwen3_5_text", "prompt"), ("rwkv", "none")])
def test_padding_stands_neither_before_the_text_nor_between_virtual_tokens_and_it(kind: str, method: str) -> None:
    model = attach(architectures.causal(kind), method, seed=0)
    scored_alike(model, ITEMS["multiple choice"])


def to_the_left(minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows with their padding before the text."""
    width = minibatch["input_ids"].shape[1]
    behind = width - minibatch["attention_mask"].sum(1)
    order = (torch.arange(width) - behind[:, None]) % width
    moved = {name: minibatch[name].gather(1, order) for name in ("input_ids", "attention_mask")}
    return {**minibatch, **moved, "back": minibatch["back"] - behind[minibatch["row"]]}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("mistral", "prompt"), ("rwkv", "none"),
        *(
            pytest.param(kind, method, marks=pytest.mark.check)
            for kind in architectures.CURED
            for method in ("prompt", "prefix")
            if kind not in architectures.UNFIT.get(method, ()) and (kind, method) != ("mistral", "prompt")
        ),
    ],
)  # fmt: skip
def test_padding_before_the_text_is_caught(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training did once: virtual tokens, then padding, then the text."""
    from smoothlab.llm import padding as entrances

    model = attach(architectures.causal(kind), method, seed=0)
    monkeypatch.setattr(entrances, "batch", lambda *args, **options: to_the_left(batch(*args, **options)))
    monkeypatch.setattr(entrances, "MULTIPLE", 16)
    words = refused(model, ITEMS["verbalizer"], method)
    named = "" if method == "none" else f" with --peft {method}"
    assert words.startswith(f"model 'some/model' of type {kind}{named}: the scores of a row change when it is ")


@pytest.mark.parametrize(
    "kind", ["xlnet", *(pytest.param(kind, marks=pytest.mark.check) for kind in architectures.AHEAD if kind != "xlnet")]
)
def test_models_that_read_what_they_are_to_predict_are_refused(kind: str) -> None:
    model = architectures.causal(kind)
    for items in KINDS:
        words = refused(model, ITEMS[items])
        assert f"of type {kind} does not read from left to right" in words and "--head classifier" in words


@pytest.mark.parametrize("method", ["none", pytest.param("prompt", marks=pytest.mark.check)])
@pytest.mark.parametrize("kind", architectures.LONG)
def test_factors_of_the_longest_row_are_refused_where_rows_are_that_long(kind: str, method: str) -> None:
    """With single rows each has its own factors, in training and evaluation; rows that are all short are as alone."""
    model = attach(architectures.causal(kind), method, seed=0)
    words = refused(model, ITEMS["verbalizer"], method)
    assert "when it is beside a longer one" in words and "use --batch 1, rows of equal length, or another" in words
    assert not check_items(model, [ITEMS["verbalizer"]], "some/model", method, size=1)
    assert check_items(model, [SHORT], "some/model", method, size=8)
    assert check_items(model, [SHORT], "some/model", method, size=1)
    alone = torch.tensor(accuracy_one_by_one(model, ITEMS["verbalizer"]).scores)
    apart = torch.tensor(accuracy(model, ITEMS["verbalizer"], mixed=False).scores)
    torch.testing.assert_close(apart, alone, rtol=0, atol=1e-4)
    assert float((torch.tensor(accuracy(model, ITEMS["verbalizer"]).scores) - alone).abs().max()) > 0.1


@pytest.mark.check
@pytest.mark.parametrize("kind", architectures.CLASSIFIERS)
def test_classifiers_that_padding_moves_are_refused_and_trained_in_single_rows(kind: str) -> None:
    model = architectures.classifier(kind)
    words = refused(model, ITEMS["classifier"])
    assert words.startswith(f"model 'some/model' of type {kind}: the scores of a row change") and "--batch 1" in words
    assert not check_items(model, [ITEMS["classifier"]], "some/model", "none", size=1)
    apart = accuracy(model, ITEMS["classifier"], mixed=False).scores
    truth = accuracy_one_by_one(model, ITEMS["classifier"]).scores
    torch.testing.assert_close(torch.tensor(apart), torch.tensor(truth), rtol=0, atol=1e-4)


@pytest.mark.check
@pytest.mark.parametrize("method", ["none", "lora", "prompt", "prefix"])
@pytest.mark.parametrize(
    "kind", ["opt", "llama", "gpt2", "bloom", *(kind for kind in architectures.CURED if kind != "rwkv")]
)
def test_classifiers_of_language_models_score_alike(kind: str, method: str) -> None:
    model = architectures.classifier(kind)
    if kind.startswith("qwen3_") and method == "prefix":
        with_prefix = attach(model, method, seed=0)
        assert "with --peft prefix cannot be run on a row by itself" in refused(
            with_prefix, ITEMS["classifier"], method
        )
        return
    scored_alike(attach(model, method, seed=0), ITEMS["classifier"])


def loaded(kind: str) -> LoadedModel:
    return LoadedModel(architectures.classifier(kind, vocab_size=4096), tokenizer(), "some/model", 128)


def test_sixteen_bits_do_not_hide_a_change() -> None:
    """Two tokens read ahead move a score by less than 16 bits round it: seen in fp32, and the weights stay the same."""
    model = architectures.causal("xlnet").bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    assert "does not read from left to right" in refused(model, ITEMS["verbalizer"])
    with precise(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(p, q) and p.dtype == torch.bfloat16 for p, q in zip(model.parameters(), before, strict=True))
    check_items(architectures.causal("llama").bfloat16(), [ITEMS["verbalizer"]], "some/model", "none", size=8)


@pytest.mark.check
@pytest.mark.parametrize("method", MEASURABLE)
def test_no_method_is_refused_on_sound_models(method: str) -> None:
    for kind in ("opt", "llama"):
        model = attach(architectures.causal(kind), method, seed=0, **started(method))
        check_items(model, [ITEMS["multiple choice"]], "some/model", method, size=8)


@pytest.mark.check
def test_a_method_that_averages_over_the_batch_is_caught() -> None:
    """Lily's routing does, and over tokens to come: `attach` refuses it by name, the check by what it computes."""
    from peft import LilyConfig, get_peft_model

    config = LilyConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    model: Any = get_peft_model(architectures.causal("llama"), config).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lily" in name:
                p.normal_(0, 0.3)
    words = refused(model, ITEMS["verbalizer"], "lily")
    assert "with --peft lily does not read from left to right" in words and "use another PEFT method, a causal" in words
    minibatch = batch(ITEMS["verbalizer"], range(5))
    inputs = {name: minibatch[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(BadInput, match="model type llama with LILY: the scores of a row change"):
        padding.check_batch(model, inputs)


@pytest.mark.check
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "method"), [("llama", "none"), ("llama", "prompt"), ("rwkv", "none"), ("t5", "none")])
def test_minibatches_of_others_are_checked_as_they_are(kind: str, method: str, side: str) -> None:
    """As the hook and the callback see them, with peft's own forward: padding on the left moves virtual tokens away."""
    import transformers as t

    if kind == "t5":
        ends = {"pad_token_id": 1, "decoder_start_token_id": 1}
        config = t.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **ends)
        model: Any = t.T5ForConditionalGeneration(config).eval()
    else:
        model = attach(architectures.causal(kind), method, seed=0)
    minibatch = batch(ITEMS["verbalizer"], range(5))
    minibatch = to_the_left(minibatch) if side == "left" else minibatch
    inputs = {name: minibatch[name] for name in ("input_ids", "attention_mask")}
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if kind == "t5":
        inputs["labels"] = torch.tensor([[5, 6, 7], [5, -100, -100]] * 2 + [[8, 9, -100]])
    wrong = side == "left" and (kind, method) != ("t5", "none")  # positions of its tokens are relative
    if kind == "llama" and method == "none" and side == "left":
        inputs["position_ids"], wrong = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0), False
    loss = fixed_loss(lambda: model(**inputs).loss, model)
    with padding.checked_calls(model):
        if not wrong:
            loss()
            return
        with pytest.raises(BadInput, match=f"model type {kind}.*: pad on the other side"):
            loss()


def test_training_on_single_rows_pads_nothing() -> None:
    seen: list[tuple[int, ...]] = []
    model = architectures.causal("llama")
    model.get_input_embeddings().register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape)))  # type: ignore[operator]
    choice_loss(model, batch(ITEMS["verbalizer"], [0], multiple=1))
    accuracy(model, ITEMS["multiple choice"], mixed=False)
    items = ITEMS["multiple choice"]
    rows = [len(c) + len(t) - 1 for c, ts in zip(items.contexts, items.options, strict=True) for t in ts]
    assert seen[0] == (1, 5) and sum(count * width for count, width in seen[1:]) == sum(rows)


@pytest.mark.check
def test_the_commands_refuse_before_the_first_step(tmp_path: Path) -> None:
    from smoothlab.experiments.finetune.experiment import Finetune
    from smoothlab.experiments.smoothness import Smoothness
    from tests.llm.classifiers import checkpoint

    folder = str(checkpoint(tmp_path, "xlnet"))
    run = {"model": folder, "data": "builtin", "peft": "none"}
    with pytest.raises(BadInput, match=f"model '{folder}' of type xlnet: the scores of a row change when"):
        Smoothness(**run, method="fo-full").setup()  # type: ignore[arg-type]
    Smoothness(**run, method="fo-full", batch=1).setup()  # type: ignore[arg-type]
    for head, words in (("lm", "does not read from left to right"), ("classifier", "the scores of a row change")):
        with pytest.raises(BadInput, match=f"of type xlnet.* {words}"):
            Finetune(**run, method="fo-full", head=head).setup()  # type: ignore[arg-type]
    Finetune(**run, method="fo-full", head="classifier", batch=1).setup()  # type: ignore[arg-type]


@pytest.mark.check
def test_the_callback_refuses_a_minibatch_whose_longest_row_switches_the_others(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from smoothlab.llm.callback import SmoothnessCallback

    def collate(rows: list[int]) -> dict[str, Tensor]:
        minibatch = batch(ITEMS["classifier"], rows)
        return {name: minibatch[name] for name in ("input_ids", "attention_mask", "labels")}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=5, max_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    for kind in ("llama", "phi3_longrope"):
        callback = SmoothnessCallback(at=[0], blocks=["head"], precision=0.5)
        trainer = Trainer(
            architectures.classifier(kind), arguments, train_dataset=range(5), data_collator=collate,  # type: ignore[arg-type]
            callbacks=[callback],
        )  # fmt: skip
        if kind == "llama":
            trainer.train()
            assert callback.rows
            continue
        with pytest.raises(BadInput, match="model type phi3: the scores of a row change when it is padded and beside"):
            trainer.train()
