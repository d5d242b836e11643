"""Loading classifiers: what comes out, what is left alone, and what is said when it cannot be done."""

from pathlib import Path

import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.llm import models
from smoothlab.llm.models import encode, load_classifier, parameter_count


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


def test_padding_does_not_change_a_sentence(micro: models.LoadedModel) -> None:
    """Logits alone and beside a longer sentence agree to fp32 rounding of sums over 192 features and 6 layers."""
    texts = ["a fine film .", "although the plot is hollow , the film as a whole is lively ."]
    with torch.no_grad():
        both = micro.model(**{k: v for k, v in encode(micro, texts, [0, 1], "cpu").items() if k != "labels"}).logits
        alone = micro.model(**{k: v for k, v in encode(micro, texts[:1], [0], "cpu").items() if k != "labels"}).logits
    scale = float(both.abs().max())
    assert float((both[0] - alone[0]).abs().max()) < 192 * 6 * torch.finfo(torch.float32).eps * scale


def test_batches_are_padded_on_the_right_after_the_start_token(micro: models.LoadedModel) -> None:
    batch = encode(micro, ["fine", "a long and winding remark"], [1, 0], "cpu")
    assert batch["input_ids"][0, 0] == micro.tokenizer.bos_token_id == 2
    assert batch["input_ids"][0, -1] == micro.tokenizer.pad_token_id == 1 and batch["attention_mask"][0, -1] == 0
    assert batch["labels"].tolist() == [1, 0]
    assert micro.tokenizer.decode(micro.tokenizer("A Film, fine.")["input_ids"][1:]) == "a film, fine."


def test_a_long_sentence_is_refused_not_cut(micro: models.LoadedModel) -> None:
    with pytest.raises(BadInput, match=r"the sentence 'word word .*' has \d+ tokens, micro takes 256"):
        encode(micro, ["word " * 300], [0], "cpu")


@pytest.mark.parametrize("kind", ["opt", "llama", "bert", "gpt2"])
def test_local_directories_load(tmp_path: Path, kind: str) -> None:
    loaded = load_classifier(str(saved(tmp_path, kind)), 3, seed=0)
    loss = loaded.model(**encode(loaded, ["fine", "a dull film"], [0, 2], "cpu")).loss
    assert torch.isfinite(loss) and loaded.max_length == 50


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("micros", "did you mean micro?"),
        ("./nowhere/model", "cannot load model './nowhere/model'"),
    ],
)
def test_unknown_models_are_named(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput) as caught:
        load_classifier(name, 2, seed=0)
    assert words in str(caught.value) and "\n" not in str(caught.value)


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


def test_the_125m_shape_is_counted_without_being_made() -> None:
    """facebook/opt-125m has 125,239,296 parameters, its output tied to the embedding; the classifier adds 2 x 768."""
    config = models._opt_125m()
    config.num_labels = 2
    assert parameter_count(config) == 125_239_296 + 2 * 768


def test_too_large_a_model_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available = 2 << 30

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(
        BadInput, match=r"random:opt-125m needs about 11.2 GiB .* and 2.0 GiB are free: micro would fit"
    ):
        load_classifier("random:opt-125m", 2, seed=0)
