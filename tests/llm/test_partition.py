"""Blocks of any transformers model: every live parameter in exactly one, named as a reader expects."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach
from smoothlab.llm.partition import dead_copies, live_parameters, partition, unfreeze
from tests.llm.tiny import IDS, LABELS, MASK, tiny


def _build(name: str) -> nn.Module:
    import transformers as t

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
    makers: dict[str, Callable[[], nn.Module]] = {
        "opt": lambda: tiny("opt"),
        "llama": lambda: tiny("llama"),
        "opt-lm": lambda: t.OPTForCausalLM(t.OPTConfig(**small, word_embed_proj_dim=16, ffn_dim=32)),
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**small, intermediate_size=32)),
        "albert": lambda: t.AlbertForSequenceClassification(
            t.AlbertConfig(**small, embedding_size=16, intermediate_size=32)
        ),
        "gpt2": lambda: t.GPT2ForSequenceClassification(t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=60)
        ),
        "t5-classifier": lambda: t.T5ForSequenceClassification(
            t.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=60)
        ),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=60)
        ),
        "llama-lm": lambda: t.LlamaForCausalLM(t.LlamaConfig(**small, intermediate_size=32, tie_word_embeddings=False)),
        "gpt2-lm": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60)),
        "opt-projected": lambda: t.OPTForSequenceClassification(
            t.OPTConfig(**small, word_embed_proj_dim=8, ffn_dim=32)
        ),
        "mamba": lambda: t.MambaForCausalLM(
            t.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=60)
        ),
    }
    return makers[name]()


MODELS = (
    "opt", "llama", "opt-lm", "bert", "albert", "gpt2", "t5", "t5-classifier", "distilbert", "llama-lm", "gpt2-lm",
    "opt-projected", "mamba",
)  # fmt: skip


@pytest.mark.parametrize("by", ["part", "layer", "module", r"first=\.0\.,rest2=NOT-THERE"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_one_block(name: str, by: str) -> None:
    model = _build(name)
    if "NOT" in by:
        with pytest.raises(BadInput, match="rest2=NOT-THERE matches no parameter; names look like"):
            partition(model, by)
        return
    blocks = partition(model, by)
    members = [id(p) for block in blocks.values() for p in block.params]
    assert sorted(members) == sorted({id(p) for p in model.parameters()})
    assert all(block.name == key for key, block in blocks.items())


@pytest.mark.parametrize(
    ("name", "by", "expected"),
    [
        ("opt", "part", {"base", "head"}),
        ("opt-lm", "part", {"base"}),
        ("bert", "part", {"base", "head"}),
        ("gpt2", "part", {"base", "head"}),
        ("opt", "layer", {"embedding", "layer.0", "layer.1", "final", "head"}),
        ("llama", "layer", {"embedding", "layer.0", "layer.1", "final", "head"}),
        ("gpt2", "layer", {"embedding", "layer.0", "layer.1", "final", "head"}),
        ("opt", "module", {"embedding", "attention", "mlp", "norm", "head"}),
        ("llama", "module", {"embedding", "attention", "mlp", "norm", "head"}),
        ("bert", "module", {"embedding", "attention", "mlp", "norm", "rest", "head"}),  # rest: the pooler
        ("t5", "module", {"embedding", "attention", "mlp", "norm"}),
        ("t5", "part", {"base"}),
        ("t5-classifier", "part", {"base", "head"}),
        ("llama-lm", "part", {"base"}),
        ("gpt2-lm", "module", {"embedding", "attention", "mlp", "norm"}),
        ("albert", "layer", {"embedding", "layer.0", "final", "head"}),  # its layers share their weights
        (
            "t5-classifier",
            "layer",
            {"embedding", "encoder.layer.0", "encoder.layer.1", "decoder.layer.0", "decoder.layer.1", "final", "head"},
        ),
        ("mamba", "module", {"embedding", "norm", "rest"}),  # no attention, so no mlp beside it
    ],
)
def test_blocks_have_the_expected_names(name: str, by: str, expected: set[str]) -> None:
    assert set(partition(_build(name), by)) == expected


KINDS = {
    "opt": {
        "layers.0.self_attn.q_proj.weight": "attention",
        "layers.1.self_attn.out_proj.bias": "attention",
        "layers.0.fc1.weight": "mlp",
        "layers.0.self_attn_layer_norm.weight": "norm",
        "decoder.final_layer_norm.bias": "norm",
        "embed_positions.weight": "embedding",
        "score.weight": "head",
    },
    "llama": {
        "layers.0.self_attn.o_proj.weight": "attention",
        "layers.1.mlp.gate_proj.weight": "mlp",
        "layers.0.post_attention_layernorm.weight": "norm",
        "model.norm.weight": "norm",
        "embed_tokens.weight": "embedding",
    },
    "bert": {
        "layer.0.attention.self.query.weight": "attention",
        "layer.0.attention.output.dense.weight": "attention",
        "layer.0.attention.output.LayerNorm.weight": "norm",
        "layer.1.intermediate.dense.bias": "mlp",
        "layer.1.output.dense.weight": "mlp",
        "embeddings.word_embeddings.weight": "embedding",
        "embeddings.LayerNorm.weight": "norm",
        "classifier.weight": "head",
    },
    "gpt2": {"h.0.attn.c_attn.weight": "attention", "h.1.mlp.c_fc.weight": "mlp", "ln_f.weight": "norm"},
    "distilbert": {"pre_classifier.weight": "head", "classifier.bias": "head", "ffn.lin1.weight": "mlp"},
    "albert": {
        "embedding_hidden_mapping_in.weight": "embedding",
        "albert_layers.0.attention.query.weight": "attention",
        "albert_layers.0.ffn_output.weight": "mlp",
        "pooler.weight": "rest",
    },
    "t5": {
        "decoder.block.1.layer.1.EncDecAttention.q.weight": "attention",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "attention",
        "encoder.block.0.layer.0.layer_norm.weight": "norm",
        "decoder.block.0.layer.2.DenseReluDense.wi.weight": "mlp",
        "shared.weight": "embedding",
    },
    "opt-projected": {"project_in.weight": "embedding", "project_out.weight": "rest"},
    "llama-lm": {"lm_head.weight": "rest"},
}


@pytest.mark.parametrize(
    ("name", "suffix", "kind"), [(m, s, k) for m, table in KINDS.items() for s, k in table.items()]
)
def test_kinds_of_modules(name: str, suffix: str, kind: str) -> None:
    model = _build(name)
    blocks = partition(model, "module")
    found = [(n, p) for n, p in model.named_parameters() if n.endswith(suffix)]
    assert found
    for n, p in found:
        assert any(p is q for q in blocks[kind].params), (
            n,
            [b for b in blocks if any(p is q for q in blocks[b].params)],
        )


def test_ties_count_once() -> None:
    model = _build("opt-lm")
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight  # type: ignore[union-attr]
    assert partition(model)["base"].dim == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix", "ia3"])
def test_dead_copies_are_known_by_structure(method: str) -> None:
    model = attach(tiny("opt"), method, seed=0)
    dead = dead_copies(model)
    assert len(dead) == 1
    (frozen,) = [n for n, p in model.named_parameters() if id(p) in dead]
    assert "original_module" in frozen
    assert all(p.requires_grad is (id(p) not in dead) for p in model.parameters())
    blocks = partition(model)
    assert set(blocks) == {"base", "peft", "head"} and blocks["head"].dim == 32
    assert not any(id(p) in dead for b in blocks.values() for p in b.params)


def test_a_live_parameter_without_gradient_stays_in_its_block() -> None:
    """A frozen base with no gradient at all is alive: structure decides, not autograd."""
    model = attach(tiny("opt"), "lora", seed=0)
    model.requires_grad_(False)
    assert partition(model)["base"].dim == 6496
    unfreeze(model)
    assert all(p.requires_grad for _, p in live_parameters(model))


def test_replaced_norms_and_counters_are_dead() -> None:
    """LN tuning computes with its copies of the norms; AdaLoRA keeps a counter as a parameter: neither is trained."""
    plain, replaced, counted = (
        tiny("opt"),
        attach(tiny("opt"), "ln_tuning", seed=0),
        attach(tiny("opt"), "adalora", seed=0),
    )
    norms = partition(plain, "module")["norm"].dim
    base = partition(plain)["base"].dim
    assert {n: b.dim for n, b in partition(replaced).items()} == {"base": base - norms, "peft": norms, "head": 32}
    assert partition(counted)["base"].dim == base
    dead = dead_copies(counted)
    assert {n.split(".")[-2] for n, p in counted.named_parameters() if id(p) in dead} == {"ranknum", "original_module"}


def test_only_the_active_adapter_is_live() -> None:
    import peft

    model = attach(tiny("opt"), "lora", seed=0)
    one = {id(p) for p in partition(model)["peft"].params}
    model.add_adapter("second", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))  # type: ignore[operator]
    assert {id(p) for p in partition(model)["peft"].params} == one
    model.set_adapter("second")  # type: ignore[operator]
    blocks = partition(model)
    assert blocks["peft"].dim == 2 * 2 * 2 * 16 and blocks["head"].dim == 32
    unfreeze(model)
    model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
    assert all(p.grad is not None for _, p in live_parameters(model))


@pytest.mark.parametrize(
    ("targets", "layers"),
    [(["embed_tokens"], 60 + 16), (["lm_head"], 16 + 60), (["embed_tokens", "q_proj"], 60 + 16 + 2 * 32)],
)
def test_modules_on_an_embedding_or_a_vocabulary_head(targets: list[str], layers: int) -> None:
    """LoRA keeps bare parameters in a ParameterDict there; the tied base weight counts once."""
    import peft

    bare = _build("opt-lm")
    dim = sum(p.numel() for p in bare.parameters())
    model = peft.get_peft_model(bare, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    unfreeze(model)
    assert {n: b.dim for n, b in partition(model).items()} == {"base": dim, "peft": 4 * layers}


def test_adapters_injected_without_a_wrapper_are_found() -> None:
    import peft

    model = peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["q_proj"]), tiny("opt"))
    assert partition(model)["peft"].dim == 2 * 4 * 32


def test_a_copied_embedding_is_no_head() -> None:
    """What modules_to_save keeps is named by where it stands: an embedding is base, the score is head."""
    import peft

    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = peft.get_peft_model(tiny("opt"), config)
    assert {n: b.dim for n, b in partition(model).items() if n != "peft"} == {"base": 6496, "head": 32}
    assert {"embedding", "layer.0", "layer.1", "final", "peft", "head"} == set(partition(model, "layer"))


@pytest.mark.parametrize("method", ["none", "lora", "ln_tuning", "prompt", "prefix"])
@pytest.mark.parametrize("by", ["part", "layer", "module"])
def test_blocks_of_the_base_are_the_same_under_any_module(method: str, by: str) -> None:
    bare = {n: b.dim for n, b in partition(tiny("llama"), by).items()}
    wrapped = {n: b.dim for n, b in partition(attach(tiny("llama"), method, seed=0), by).items()}
    wrapped.pop("peft", None)
    if method == "ln_tuning":  # its copies are the norms
        bare = {n: dim for n, dim in bare.items() if n != "norm"}
        assert set(bare) == set(wrapped) - {"norm"} or by == "layer"
    else:
        assert wrapped == bare


def test_a_plain_module_has_a_head_by_name() -> None:
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "classifier": nn.Linear(3, 2)})
    assert {n: b.dim for n, b in partition(model).items()} == {"base": 12, "head": 8}


def test_patterns_may_hold_commas() -> None:
    model = tiny("opt")
    blocks = partition(model, r"ends=(embed|score).{1,12},norms=layer_norm\.(weight|bias)")
    assert set(blocks) == {"ends", "norms", "rest"} and blocks["norms"].dim == 5 * 32


def test_patterns_name_blocks_and_the_rest() -> None:
    model = tiny("opt")
    blocks = partition(model, "query=q_proj,value=v_proj")
    assert set(blocks) == {"query", "value", "rest"}
    assert blocks["query"].dim == 2 * (16 * 16 + 16)
    same = partition(model, patterns={"query": "q_proj", "value": "v_proj"})
    assert {n: b.dim for n, b in same.items()} == {n: b.dim for n, b in blocks.items()}


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("layers", "--blocks layers is unknown: use part, layer, module, or patterns name=regex"),
        ("q=(", "q=( is no regular expression"),
        ("=q_proj", "pattern '=q_proj' needs a name of its own"),
        ("a=q_proj,a=v_proj", "pattern 'a=v_proj' needs a name of its own"),
        ("rest=q_proj", "pattern 'rest=q_proj' needs a name of its own, other than rest"),
        ("a=", "pattern 'a=' needs a name of its own, other than rest (what no pattern matches), and a regular"),
        ("a=q_proj,b=proj.weight", "is in blocks 'a' and 'b': make the patterns exclude each other"),
    ],
)
def test_bad_rules_are_named(by: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        partition(tiny("opt"), by)
    assert words in str(caught.value)


@pytest.mark.parametrize(("patterns", "words"), [({}, "no pattern is given"), ({"q": "("}, "is no regular expression")])
def test_bad_mappings_are_named(patterns: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        partition(tiny("opt"), patterns=patterns)


def test_modules_are_measured_jointly_on_a_wrapped_classifier() -> None:
    """Where general Hessian tools fail: base and LoRA unfrozen together, the dead copy of the head beside them."""
    from smoothlab.blocks import fixed_loss
    from smoothlab.hessian.exact import ExactHessian

    model = attach(tiny("opt"), "lora", seed=0)
    loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)
    blocks = list(partition(model).values())
    found = ExactHessian(loss, blocks).norms(cross=[("base", "peft")], precision=0.2)
    assert all(torch.isfinite(torch.tensor(e.value)) for e in found) and len(found) == 10
