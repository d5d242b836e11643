"""Loading classifiers: what comes out, what is left alone, and what is said when it cannot be done."""

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from smoothlab.errors import BadInput
from smoothlab.llm import hub, models
from smoothlab.llm.memory import parameter_count
from smoothlab.llm.models import load_classifier, load_lm


@pytest.fixture(scope="module")
def micro() -> models.LoadedModel:
    return load_classifier("micro", 2, seed=0)


def saved(folder: Path, kind: str, *, pickled: bool = False) -> Path:
    """A tiny model directory with micro's tokenizer; its weights pickled on demand."""
    import transformers as t

    small = {"vocab_size": 4096, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model: torch.nn.Module = {
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(**small, word_embed_proj_dim=16, ffn_dim=32, max_position_embeddings=50)
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**small, intermediate_size=32, max_position_embeddings=50)),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**small, intermediate_size=32, max_position_embeddings=50)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, n_positions=50)
        ),
    }[kind]()
    model.save_pretrained(folder)  # type: ignore[operator]
    load_classifier("micro", 2, seed=0).tokenizer.save_pretrained(folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_micro_is_what_its_card_says(micro: models.LoadedModel) -> None:
    model = micro.model
    base = sum(p.numel() for n, p in model.named_parameters() if "score" not in n)
    assert base == 3_505_536 <= 4_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.model_type == "opt" and model.config.activation_function == "gelu"
    assert micro.max_length == 256 and not model.training
    weights = Path(models.__file__).with_name("micro") / "model.safetensors"
    assert weights.stat().st_size <= 9_000_000


def test_the_head_is_seeded_and_the_global_generator_left(micro: models.LoadedModel) -> None:
    state = torch.random.get_rng_state()
    same, other = (load_classifier("micro", 2, seed=s).model.score.weight for s in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(micro.model.score.weight, same) and not torch.equal(same, other)
    assert load_classifier("micro", 5, seed=0).model.score.weight.shape == (5, 192)


def padded(loaded: models.LoadedModel, texts: list[str], labels: list[int]) -> dict[str, torch.Tensor]:
    """A minibatch by the tokenizer's own padding."""
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return inputs | {"labels": torch.tensor(labels)}


def test_padding_does_not_change_a_sentence(micro: models.LoadedModel) -> None:
    """Logits alone and beside a longer sentence agree to fp32 rounding of sums over 192 features and 6 layers."""
    texts = ["a fine film .", "although the plot is hollow , the film as a whole is lively ."]
    with torch.no_grad():
        both = micro.model(**{k: v for k, v in padded(micro, texts, [0, 1]).items() if k != "labels"}).logits
        alone = micro.model(**{k: v for k, v in padded(micro, texts[:1], [0]).items() if k != "labels"}).logits
    scale = float(both.abs().max())
    assert float((both[0] - alone[0]).abs().max()) < 192 * 6 * torch.finfo(torch.float32).eps * scale


def test_batches_are_padded_on_the_right_after_the_start_token(micro: models.LoadedModel) -> None:
    batch = padded(micro, ["fine", "a long and winding remark"], [1, 0])
    assert batch["input_ids"][0, 0] == micro.tokenizer.bos_token_id == 2
    assert batch["input_ids"][0, -1] == micro.tokenizer.pad_token_id == 1 and batch["attention_mask"][0, -1] == 0
    assert batch["labels"].tolist() == [1, 0]
    assert micro.tokenizer.decode(micro.tokenizer("A Film, fine.")["input_ids"][1:]) == "a film, fine."


@pytest.mark.parametrize("kind", ["opt", "llama", "bert", "gpt2"])
def test_local_directories_load(tmp_path: Path, kind: str) -> None:
    loaded = load_classifier(str(saved(tmp_path, kind)), 3, seed=0)
    loss = loaded.model(**padded(loaded, ["fine", "a dull film"], [0, 2])).loss
    assert torch.isfinite(loss) and loaded.max_length == 50


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("micros", "did you mean micro?"),
        ("MICRO", "did you mean micro?"),
        ("a/b/c", "it is no directory, and cannot be a hub name"),
        ("./no_such_folder", "it is no directory, and cannot be a hub name; check the path"),
        (__file__, "it is a file"),
        ("./nowhere/model", "cannot load model './nowhere/model'"),
    ],
)
def test_unknown_models_are_named(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput) as caught:
        load_classifier(name, 2, seed=0)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """Also where only the precision asked for cannot hold them: 1e5 is infinite in float16."""
    folder = saved(tmp_path, "opt")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.fc1.weight"))
    for value, dtype, fix in ((float("nan"), "float32", ""), (1e5, "float16", ", or --dtype float32")):
        weights[name][0, 0] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadInput) as caught:
            load_classifier(str(folder), 2, seed=0, dtype=getattr(torch, dtype))
        line = f"its weight model.decoder.layers.0.fc1.weight in {dtype} is not finite: use other weights{fix}"
        assert str(caught.value) == f"cannot load model '{folder}': {line}"


@pytest.mark.parametrize("kind", ["opt", "strange"])
def test_custom_code_is_never_run(tmp_path: Path, kind: str) -> None:
    """A known type is loaded as transformers' own, and a note says so; an unknown one is refused."""
    folder = saved(tmp_path, "opt")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": code}))
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    if kind == "opt":
        note = f"the custom code that config.json of {folder} names (auto_map) was left out: the model is transformers'"
        assert f"{note} own opt" in load_classifier(str(folder), 2, seed=0).notes
        return
    with pytest.raises(BadInput, match="its configuration needs custom code, which smoothlab never runs: use a model"):
        load_classifier(str(folder), 2, seed=0)


def test_pickled_weights_and_empty_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no pickled weights"):
        load_classifier(str(saved(tmp_path / "bin", "opt", pickled=True)), 2, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="needs config.json, a tokenizer and model.safetensors"):
        load_classifier(str(tmp_path / "empty"), 2, seed=0)


def test_a_missing_device_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(BadInput, match="--device cuda: torch sees no CUDA device here; use --device cpu"):
        load_classifier("micro", 2, seed=0, device="cuda")


def test_devices_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("tpu", "mps", "meta", "cpu:3", "cuda:", "cuda:-1", ""):
        with pytest.raises(BadInput, match=f"--device {device} is unknown: use cpu, cuda or cuda:0"):
            load_classifier("micro", 2, seed=0, device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match="--device cuda:9: torch sees CUDA devices 0 to 1 here; use cuda:0"):
        load_classifier("micro", 2, seed=0, device="cuda:9")


def edited(folder: Path, **changes: object) -> Path:
    """A directory whose config.json is changed."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_classifier(str(folder), 2, seed=0)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 20, 0.5])
def test_cut_weights_are_refused(tmp_path: Path, keep: float) -> None:
    path = saved(tmp_path, "opt") / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    assert "its weights cannot be had (SafetensorError" in refused(tmp_path)


def test_weights_of_another_body_are_refused(tmp_path: Path) -> None:
    """Of another architecture, too few layers, and another width: nothing is made up for the body."""
    foreign = saved(tmp_path / "foreign", "opt")
    shutil.copy(saved(tmp_path / "llama", "llama") / "model.safetensors", foreign)
    assert "20 of 21 weights" in refused(foreign)
    assert "32 of 53 weights" in refused(edited(saved(tmp_path / "deep", "opt"), num_hidden_layers=3))
    assert "3 of 21 weights" in refused(edited(saved(tmp_path / "wide", "opt"), ffn_dim=64))


def test_a_checkpoints_own_head_is_kept_or_replaced_and_told(tmp_path: Path) -> None:
    import transformers as t

    trained = load_classifier(str(saved(tmp_path / "lm", "opt")), 3, seed=1)
    trained.model.save_pretrained(tmp_path)
    trained.tokenizer.save_pretrained(tmp_path)
    same, other = (load_classifier(str(tmp_path), classes, seed=0) for classes in (3, 2))
    assert torch.equal(same.model.score.weight, trained.model.score.weight)
    assert any("the head is that of" in note for note in same.notes)
    assert other.model.score.weight.shape == (2, 16)
    assert any("another shape than 2 classes need: a new one" in note for note in other.notes)
    assert isinstance(other.model, t.OPTForSequenceClassification) and not any("head" in n for n in trained.notes)
    bert = load_classifier(str(saved(tmp_path / "bert", "bert")), 2, seed=0)
    assert any("bert.pooler.dense.weight is not in the weights" in note for note in bert.notes)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problem_types_become_classification(tmp_path: Path, problem: str) -> None:
    loaded = load_classifier(str(edited(saved(tmp_path, "opt"), problem_type=problem)), 2, seed=0)
    inputs = padded(loaded, ["fine", "a dull film"], [0, 1])
    found = loaded.model(**inputs)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, inputs["labels"]))
    assert any(f"was made for {problem}: it is trained with the cross-entropy of 2 classes" in n for n in loaded.notes)


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(BadInput, match="a classifier needs at least 2"):
        load_classifier("micro", 1, seed=0)


@pytest.mark.parametrize("kind", ["opt", "bert", "llama"])
def test_a_missing_tokenizer_is_not_made_up(tmp_path: Path, kind: str) -> None:
    for file in saved(tmp_path, kind).glob("*token*"):
        file.unlink()
    assert "tokenizer" in refused(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{}", "its tokenizer cannot be had"),
        ("config.json", "{", "its configuration cannot be had"),
        ("config.json", '{"model_type": "opt", "hidden_size": "wide"}', "its configuration cannot be had"),
        ("config.json", '{"model_type": "opt", "hidden_size": -16}', "its configuration cannot be had"),
        ("config.json", '{"model_type": "opt", "activation_function": "sigh"}', "its configuration cannot be had"),
        ("config.json", '{"model_type": "opt", "dtype": "float12"}', "its configuration cannot be had"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, file: str, content: str, words: str) -> None:
    (saved(tmp_path, "opt") / file).write_text(content)
    assert words in refused(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    shutil.copytree(saved(tmp_path / "good", "opt"), tmp_path / "small")
    small = edited(tmp_path / "small", vocab_size=1000)
    from safetensors.torch import load_file, save_file

    weights = load_file(small / "model.safetensors")
    embedding = "model.decoder.embed_tokens.weight"
    weights[embedding] = weights[embedding][:1000].clone()
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    assert "numbers its tokens up to 4095, its embedding has 1000 rows" in refused(small)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "llama") / "tokenizer_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in said.items() if k not in ("pad_token", "eos_token")}))
    assert "neither a padding nor an end-of-text token" in refused(tmp_path)


def test_positions_numbered_from_the_padding_token_on_are_left_out(tmp_path: Path) -> None:
    """RoBERTa's 52 positions take 50 tokens, and not one more."""
    import transformers as t

    config = t.RobertaConfig(
        vocab_size=4096, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=52, pad_token_id=1,
    )  # fmt: skip
    t.RobertaForMaskedLM(config).save_pretrained(tmp_path)
    shutil.copy(saved(tmp_path / "other", "opt") / "tokenizer.json", tmp_path)
    shutil.copy(tmp_path / "other" / "tokenizer_config.json", tmp_path)
    loaded = load_classifier(str(tmp_path), 2, seed=0)
    assert loaded.max_length == 50
    longest = padded(loaded, [" ".join(["fine"] * 48)], [0])
    assert longest["input_ids"].shape == (1, 50) and torch.isfinite(loaded.model(**longest).loss)
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(**padded(loaded, [" ".join(["fine"] * 49)], [0]))


def test_a_model_without_positions_takes_what_its_tokenizer_does_or_anything(tmp_path: Path) -> None:
    import transformers as t

    t.BloomForCausalLM(t.BloomConfig(vocab_size=4096, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    shutil.copy(saved(tmp_path / "other", "opt") / "tokenizer.json", tmp_path)
    said = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert load_classifier(str(tmp_path), 2, seed=0).max_length == 256
    said.pop("model_max_length")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    loaded = load_classifier(str(tmp_path), 2, seed=0)
    assert any("states no longest input" in note for note in loaded.notes)
    assert torch.isfinite(loaded.model(**padded(loaded, ["fine " * 999], [0])).loss)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A refused connection, and one that is taken and never answered; a model in the cache loads all the same."""
    from huggingface_hub import constants

    saved(tmp_path / "models--owner--cached" / "snapshots" / "1", "opt")
    (tmp_path / "models--owner--cached" / "refs").mkdir()
    (tmp_path / "models--owner--cached" / "refs" / "main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.reachable, "__defaults__", (0.3,))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            begun = time.monotonic()
            with pytest.raises(
                BadInput, match="'owner/model': there is no such directory here, the hub cannot be reached, .* or"
            ):
                load_classifier("owner/model", 2, seed=0)
            assert load_classifier("owner/cached", 2, seed=0).max_length == 50
            assert time.monotonic() - begun < 3  # twice the patience, and loading; retries alone take 23 s


def test_the_125m_shape_is_counted_without_being_made() -> None:
    """facebook/opt-125m has 125,239,296 parameters, its output tied to the embedding; the classifier adds 2 x 768."""
    config = models._opt_125m()
    config.num_labels = 2
    assert parameter_count(config) == 125_239_296 + 2 * 768


def test_what_a_container_may_take_counts(tmp_path: Path) -> None:
    """Of 1,000 bytes 700 are used, 200 of them by cached files, which make room."""
    from smoothlab.llm.memory import free

    for name, content in (("max", "1000\n"), ("current", "700\n"), ("stat", "active_file 50\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert free("cpu", tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert free("cpu", tmp_path) > 1000 and free("cpu", tmp_path / "none") > 1000


def test_too_large_a_model_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available = 2 << 30

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(
        BadInput, match=r"random:opt-125m needs about 11.2 GiB .* and 2.0 GiB are free: micro would fit"
    ):
        load_classifier("random:opt-125m", 2, seed=0)


def test_micro_is_a_language_model_with_tied_embeddings() -> None:
    """It tells words from noise as its card says: about 4 nats a token of English, log 4096 = 8.3 without knowledge."""
    loaded = load_lm("micro", seed=0)
    model = loaded.model
    assert type(model).__name__ == "OPTForCausalLM" and not model.training and loaded.max_length == 256
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) == 3_505_536 and loaded.tokenizer.padding_side == "left"
    text = "she looked at the window and said that she had not seen him for a long time ."
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).loss) < 5


@pytest.mark.parametrize("kind", ["opt", "llama", "gpt2"])
def test_language_models_load_from_directories(tmp_path: Path, kind: str) -> None:
    loaded = load_lm(str(saved(tmp_path, kind)), seed=0, dtype=torch.bfloat16)
    assert loaded.max_length == 50 and {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(loaded.model(**loaded.tokenizer("fine", return_tensors="pt")).logits).all()


def test_what_reads_both_ways_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is of type bert, which generates no text from left to right: use micro, or"):
        load_lm(str(saved(tmp_path, "bert")), seed=0)


def test_language_models_are_whole_and_not_pickled(tmp_path: Path) -> None:
    """A classifier's weights without a vocabulary head, pickled weights, and cut ones."""
    trained = load_classifier(str(saved(tmp_path / "lm", "llama")), 2, seed=1)
    trained.model.save_pretrained(tmp_path / "lm")
    with pytest.raises(BadInput, match="1 of 12 weights, lm_head.weight the first, are not in its safetensors"):
        load_lm(str(tmp_path / "lm"), seed=0)
    with pytest.raises(BadInput, match="no pickled weights"):
        load_lm(str(saved(tmp_path / "bin", "opt", pickled=True)), seed=0)
    path = saved(tmp_path / "cut", "opt") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="its weights cannot be had .SafetensorError"):
        load_lm(str(tmp_path / "cut"), seed=0)


def test_a_language_model_needs_less_memory_to_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available = 900 << 20

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(
        BadInput, match=r"random:opt-125m needs about 0.9 GiB to be trained and 0.9 GiB are free: micro"
    ):
        load_lm("random:opt-125m", seed=0)
