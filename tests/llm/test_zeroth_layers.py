"""Moving transformers layer by layer, inside their forward calls: the same estimates as a moved copy, to the bit."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, fixed_loss, flatten
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from tests.llm.tiny import IDS, LABELS, MASK, tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = tiny(kind).to(dtype)
    return model, fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)


def language_model(dtype: torch.dtype) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Its output layer is tied to its embedding."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=60, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32,
        max_position_embeddings=64, activation_function="gelu", dropout=0.0, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OPTForCausalLM(config).to(dtype).eval()
    assert model.lm_head.weight is model.get_input_embeddings().weight

    def loss() -> Tensor:  # transformers' own is in fp32; no padding, whose row torch gives no gradient
        logits = model(input_ids=IDS[:1]).logits[0, :-1]
        return nn.functional.cross_entropy(logits, IDS[0, 1:])

    return model, fixed_loss(loss, model)


def check(model: nn.Module, loss: Callable[[], Tensor], distribution: Distribution, **more: object) -> None:
    block = Block("model", tuple(model.parameters()))
    mu = 0.05 if block.params[0].dtype == torch.bfloat16 else 1e-3
    home = [p.data.clone() for p in block.params]
    plain, layered = (ZerothOrder(mu, distribution=distribution, layers=layers, **more) for layers in (None, model))  # type: ignore[arg-type]
    expected, found = plain(loss, block, [1]), layered(loss, block, [1])
    assert found == expected and all(c != 0 for _, c in found.terms)
    assert all(torch.equal(p.data, h) for p, h in zip(block.params, home, strict=True))
    twin = copy.deepcopy(model)
    found.add_to(block, -1e-3)
    expected.add_to(Block("twin", tuple(twin.parameters())), -1e-3)
    ours, theirs = (flatten(p.data for p in m.parameters()) for m in (model, twin))
    assert torch.equal(ours, theirs) and not torch.equal(ours, flatten(home))


@pytest.mark.parametrize(
    ("distribution", "dtype"),
    [
        (Gaussian(), torch.float64),
        (Sphere(), torch.float32),
        (Rademacher(), torch.bfloat16),
        (LowRank(2), torch.float32),
    ],
    ids=lambda value: value.name if isinstance(value, Distribution) else str(value),
)
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_layers_and_copies_agree_to_the_bit(kind: str, distribution: Distribution, dtype: torch.dtype) -> None:
    check(*classifier(kind, dtype), distribution)


@pytest.mark.parametrize(
    "more", [{"sides": 1, "q": 2, "average": "antithetic"}, {"q": 3, "average": "orthogonal"}, {"keep": True}], ids=str
)
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_so_do_averages_and_kept_directions(kind: str, more: dict[str, object]) -> None:
    check(*classifier(kind, torch.float32), Gaussian(), **more)


def test_tied_weights_are_moved_in_both_of_their_places() -> None:
    model, loss = language_model(torch.float64)
    check(model, loss, Gaussian())
    tied = Block("embedding", (model.get_input_embeddings().weight,))
    ((_, slope),) = ZerothOrder(1e-5, layers=model)(loss, tied, [0]).terms
    loss().backward()
    exact = float(tied.params[0].grad.reshape(-1) @ Gaussian().draw(tied, [0, 0]))  # type: ignore[union-attr]
    assert slope == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_an_exception_in_the_middle_leaves_the_model_as_it_was(kind: str) -> None:
    model, loss = classifier(kind, torch.float32)
    block = Block("model", tuple(model.parameters()))
    before = [(p.data_ptr(), p.data.clone()) for p in block.params]
    value = loss().item()
    deep = model.get_submodule("model.decoder.layers.1.fc1" if kind == "opt" else "model.layers.1.mlp.up_proj")
    calls: list[int] = []

    def failing(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:  # two evaluations see that the loss is deterministic, one that layers will do
            raise OSError("in the middle")

    handle = deep.register_forward_hook(failing)
    with pytest.raises(OSError, match="in the middle"):
        ZerothOrder(1e-3, layers=model)(loss, block, [0])
    handle.remove()
    assert all(p.data_ptr() == a and torch.equal(p.data, v) for p, (a, v) in zip(block.params, before, strict=True))
    assert loss().item() == value and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
