"""Models of GGUF files: their weights, logits, tokenizers and saved folders."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smoothlab.blocks import fixed_loss
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import Rates
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.setup import optimizer
from smoothlab.llm import gguf_loading
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.export import save
from smoothlab.llm.gguf_settings import ARCHITECTURES
from smoothlab.llm.models import load_classifier, load_lm
from smoothlab.llm.partition import partition
from tests.llm.gguf_writing import QUANTIZED, model, write
from tests.llm.test_gguf_settings import logits, said
from tests.llm.tiny import encoded, tokenizer

TYPES: dict[str, Any] = {
    "Q4_1": {"default": QUANTIZED.Q4_1, "types": {"token_embd": QUANTIZED.Q8_0}},
    "Q8_0": {"default": QUANTIZED.Q8_0},
    "F16": {"default": QUANTIZED.F16},
    "Q4_0 and BF16": {"default": QUANTIZED.Q4_0, "types": {"attn_": QUANTIZED.BF16}},
}


def stood_at(source: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
    """The source with the weights of a file, as gguf itself de-quantizes them."""
    with torch.no_grad():
        for name, p in source.named_parameters():
            p.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
    return source


def assert_equal(loaded: nn.Module, source: nn.Module, weights: dict[str, np.ndarray]) -> None:
    """All weights of a loaded model are those of the file, and its logits those of the source at them."""
    named = dict(loaded.named_parameters())
    assert set(named) == set(weights)
    for name, values in weights.items():
        assert torch.equal(named[name], torch.from_numpy(np.ascontiguousarray(values))), name
    before = logits(source)
    assert torch.equal(logits(loaded), logits(stood_at(source, weights)))
    assert float(before.std()) > 0.1


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_that_gguf_de_quantizes(tmp_path: Path, types: str, tied: bool) -> None:
    source = model("llama", tie_word_embeddings=tied)
    weights = write(tmp_path / "x.gguf", source, **TYPES[types])
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    assert_equal(loaded.model, source, weights)
    assert loaded.model.config.tie_word_embeddings is tied and ("lm_head.weight" in weights) is not tied
    # Marks of a quantized model, by which peft would choose other layers and transformers would refuse to save.
    assert not hasattr(loaded.model, "hf_quantizer") and not hasattr(loaded.model, "quantization_method")
    assert not loaded.model.is_quantized and not hasattr(loaded.model.config, "quantization_config")
    assert loaded.max_length == 64 and loaded.tokenizer.padding_side == "left"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture(tmp_path: Path, kind: str) -> None:
    source = model(kind)
    weights = write(tmp_path / "x.gguf", source, **TYPES["Q4_1"])
    assert_equal(load_lm(str(tmp_path / "x.gguf"), seed=0).model, source, weights)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_files_that_do_not_state_the_number_of_key_heads(tmp_path: Path, kind: str) -> None:
    """There are as many as query heads; transformers takes another number, or leaves rows in llama.cpp's order."""
    source = model(kind, num_key_value_heads=4)
    weights = write(tmp_path / "x.gguf", source, drop=("attention.head_count_kv",))
    assert_equal(load_lm(str(tmp_path / "x.gguf"), seed=0).model, source, weights)


def test_biases_are_read(tmp_path: Path) -> None:
    source = model("llama", attention_bias=True, mlp_bias=True)
    weights = write(tmp_path / "x.gguf", source)
    assert sum(name.endswith("bias") for name in weights) == 14
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    assert_equal(loaded.model, source, weights)
    assert "attention_bias True is read from the file: transformers' reader had False" in loaded.notes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_in_another_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = write(tmp_path / "x.gguf", model("llama"), **TYPES["Q4_1"])
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0, dtype=dtype)
    for name, p in loaded.model.named_parameters():
        assert torch.equal(p, torch.from_numpy(np.ascontiguousarray(weights[name])).to(dtype))
    assert f"de-quantized to {str(dtype).removeprefix('torch.')}" in loaded.notes[-1]


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    more = {"blk.0.attn_q_norm.weight": np.ones(16, dtype=np.float32)}
    write(tmp_path / "x.gguf", model("llama"), tensors=more)
    assert "(no place for blk.0.attn_q_norm.weight)" in said(tmp_path / "x.gguf")


def test_tensors_that_are_missing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", model("llama"), metadata={"block_count": 3})
    assert "are not in its safetensors or of another shape" in said(tmp_path / "x.gguf")


def test_a_classifier_has_the_body_and_a_new_head(tmp_path: Path) -> None:
    weights = write(tmp_path / "x.gguf", model("llama", tie_word_embeddings=False), **TYPES["Q4_1"])
    loaded = load_classifier(str(tmp_path), 3, seed=0)
    assert loaded.model.score.weight.shape == (3, 64) and loaded.new == ("score.weight",)
    for name, p in loaded.model.model.named_parameters():
        assert torch.equal(p, torch.from_numpy(np.ascontiguousarray(weights[f"model.{name}"])))


# Two spaces before a number, which GPT-2 splits in another way than one digit at a time.
TEXT = "a fine film of  2019, and it's long"


def test_tokenizer_of_the_file(tmp_path: Path) -> None:
    """Ids of micro's own tokenizer, whose vocabulary the file has, on text that both split alike."""
    write(tmp_path / "x.gguf", model("llama", vocab_size=800))
    found = load_lm(str(tmp_path / "x.gguf"), seed=0).tokenizer
    assert len(found) == 800 and found.eos_token_id == found.pad_token_id == 1 and found.unk_token is None
    micro = tokenizer()
    text = "the film is not in the end, and it's long."
    assert found(text)["input_ids"] == micro(text, add_special_tokens=False)["input_ids"]
    assert found.decode(found(TEXT)["input_ids"]) == TEXT


def test_splits_of_text(tmp_path: Path) -> None:
    """Digits alone, spaces before them together; unknown splits are refused, unless a tokenizer.json is there."""
    from tokenizers import pre_tokenizers

    source = model("llama")
    pieces = {}
    for split in ("gpt-2", "smollm", "llama-bpe"):
        write(tmp_path / "x.gguf", source, metadata={"tokenizer.ggml.pre": split})
        backend = load_lm(str(tmp_path / "x.gguf"), seed=0).tokenizer.backend_tokenizer
        pieces[split] = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(TEXT)]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(TEXT)
    assert pieces["gpt-2"] == [piece for piece, _ in whole] and "Ġ2019" in pieces["gpt-2"]
    assert pieces["smollm"][4:9] == ["ĠĠ", "2", "0", "1", "9"]
    assert pieces["llama-bpe"][4:8] == ["Ġ", "Ġ", "201", "9"]
    for unknown in ("mystery", ""):
        write(tmp_path / "x.gguf", source, metadata={"tokenizer.ggml.pre": unknown})
        line = said(tmp_path / "x.gguf")
        assert f"(tokenizer.ggml.pre = {unknown or 'not stated'}) is not known" in line and "tokenizer.json" in line


def test_a_tokenizer_beside_the_file(tmp_path: Path) -> None:
    """It is taken instead of the file's; with tokenizer.json alone, the file says which tokens are special."""
    write(tmp_path / "x.gguf", model("llama", vocab_size=4096), metadata={"tokenizer.ggml.pre": "mystery"}, words=300)
    micro = tokenizer()
    micro.save_pretrained(tmp_path)
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    assert loaded.tokenizer(TEXT)["input_ids"] == micro(TEXT)["input_ids"]
    assert loaded.tokenizer.eos_token == micro.eos_token
    assert "the tokenizer is that of tokenizer.json beside x.gguf" in loaded.notes
    (tmp_path / "tokenizer_config.json").unlink()
    alone = load_lm(str(tmp_path / "x.gguf"), seed=0).tokenizer
    assert alone(TEXT)["input_ids"] == micro(TEXT)["input_ids"]
    assert alone.eos_token_id == alone.pad_token_id == 1 and alone.bos_token_id == 0


@pytest.mark.parametrize("states", [None, True, False])
def test_first_space_of_sentencepiece(tmp_path: Path, states: bool | None) -> None:
    """Texts begin with a space, unless the file says that they do not."""
    letters = ["\u2581", *"film", "fi", "lm", "film", "\u2581film"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [-float(n) for n in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(letters),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    if states is not None:
        keys["tokenizer.ggml.add_space_prefix"] = states
    write(tmp_path / "x.gguf", model("llama"), metadata=keys, words=0)
    found = load_lm(str(tmp_path / "x.gguf"), seed=0).tokenizer
    pieces = ["<s>", "film", "\u2581film"]
    if states is not False:
        pieces[1] = "\u2581film"
    ids = found("film film")["input_ids"]
    assert ids == [words.index(piece) for piece in pieces]
    assert found.decode(ids, skip_special_tokens=True) == "film film"


@pytest.mark.parametrize("release", ["5.11.0", "5.22.2", "5.23.0", "5.24.0.dev0", "6.0.0"])
def test_releases_that_misplace_the_start_token_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """The tests before and after this one fail under transformers 5.21 and 5.22, most of this file under 5.16."""
    write(tmp_path / "x.gguf", model("llama"))
    monkeypatch.setattr(gguf_loading, "version", {"transformers": release}.__getitem__)
    if release in ("5.11.0", "5.22.2"):
        words = f"GGUF files need transformers 5.23 or newer, and {release} is installed: pip install -U 'smoothlab"
        assert words in said(tmp_path / "x.gguf")
    else:
        gguf_loading.check_transformers(tmp_path / "x.gguf")


def test_start_token_under_llama_3(tmp_path: Path) -> None:
    """llama.cpp puts it before texts unless the file says that it does not."""
    source = model("llama")
    found = {}
    for states in (None, True, False):
        keys: dict[str, Any] = {"tokenizer.ggml.pre": "llama-bpe"}
        if states is not None:
            keys["tokenizer.ggml.add_bos_token"] = states
        write(tmp_path / "x.gguf", source, metadata=keys)
        found[states] = load_lm(str(tmp_path / "x.gguf"), seed=0).tokenizer("film")["input_ids"]
    assert found[True] == found[None] == [0, *found[False]]


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe"])
def test_whole_words_under_llama_3(tmp_path: Path, split: str) -> None:
    """A word of the vocabulary is one token there, whatever the merges make of its letters."""
    words = ["<s>", "</s>", *"film", "fi", "film"]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": split, "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": ["f i"], "tokenizer.ggml.token_type": [3, 3] + [1] * 6,
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    write(tmp_path / "x.gguf", model("llama"), metadata=keys, words=0)
    found = load_lm(str(tmp_path / "x.gguf"), seed=0).tokenizer
    pieces = {"gpt-2": ["fi", "l", "m"], "llama-bpe": ["film"]}[split]
    assert found("film", add_special_tokens=False)["input_ids"] == [words.index(piece) for piece in pieces]


def trained(loaded: Any, method: str) -> nn.Module:
    """The model after three steps of Algorithm 1, or of its LoRA module alone."""
    whole = attach(loaded.model, "lora", seed=0, r=4)
    blocks = partition(whole)
    if method == "fo-peft":
        del blocks["base"]
    mine = {id(p) for block in blocks.values() for p in block.params}
    for p in whole.parameters():
        p.requires_grad_(id(p) in mine)
    run = Finetune(method=method, eta_x=3e-3, eta_y=0.03, mu=1e-3)  # type: ignore[arg-type]
    steps = optimizer(run, blocks, Rates(run.eta_x, run.eta_y, run.mu))
    inputs = batch(encoded("multiple choice"), range(6))
    for _ in range(3):
        steps.step(fixed_loss(lambda: choice_loss(whole, inputs), whole))
    return whole


@pytest.mark.parametrize("method", ["hybrid", "fo-peft", "zo"])
def test_saved_folders_load_in_plain_transformers_and_peft(tmp_path: Path, method: str) -> None:
    """Rotary scaling and de-quantized weights included, although the GGUF file is gone."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = tmp_path / "x.gguf"
    freqs = {"rope_freqs.weight": np.array([1, 1, 1.5, 2, 3, 5, 8, 13], dtype=np.float32)}
    write(file, model("llama"), tensors=freqs, **TYPES["Q4_1"])
    loaded = load_lm(str(file), seed=0)
    start = logits(loaded.model)
    saved = tmp_path / "saved"
    if method == "zo":
        whole = loaded.model
        with torch.no_grad():
            next(whole.parameters()).add_(0.1)
    else:
        whole = trained(loaded, method)
    after = logits(whole.eval())
    assert float((after - start).abs().max()) > 1e-3
    save(whole, loaded.tokenizer, saved, base=method != "fo-peft")
    file.rename(tmp_path / "elsewhere.gguf")
    plain = AutoModelForCausalLM.from_pretrained(saved / "model").eval()
    assert not hasattr(plain.config, "quantization_config")
    ids = AutoTokenizer.from_pretrained(saved / "model")(TEXT)["input_ids"]
    assert ids == loaded.tokenizer(TEXT)["input_ids"]
    if method == "zo":
        assert torch.equal(logits(plain), after)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(logits(PeftModel.from_pretrained(plain, saved / "adapter").eval()), after)
        assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(saved / "adapter").eval()), after)
        if method == "fo-peft":  # the base model is the file's, on which the adapter loads too
            again = load_lm(str(tmp_path / "elsewhere.gguf"), seed=0).model
            assert torch.equal(logits(PeftModel.from_pretrained(again, saved / "adapter").eval()), after)


def test_another_file_in_the_working_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks there first for a file of the same name."""
    (tmp_path / "there").mkdir()
    source = model("llama")
    weights = write(tmp_path / "there" / "x.gguf", source)
    write(tmp_path / "x.gguf", model("llama", num_hidden_layers=1))
    monkeypatch.chdir(tmp_path)
    assert_equal(load_lm("there", seed=0).model, source, weights)
    shutil.rmtree("there")
    with pytest.raises(BadInput):
        load_lm("there", seed=0)
