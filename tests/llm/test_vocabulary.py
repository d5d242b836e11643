"""Log-probabilities in chunks of positions: values, gradients and products of the whole table, which is never there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smoothlab.llm import vocabulary
from smoothlab.llm.evaluate import Encoded, batch, choice_loss
from tests.llm.tiny import tiny_lm

WORDS = 60
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip


def of_config(name: str, **more: Any) -> nn.Module:
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return t.AutoModelForCausalLM.from_config(getattr(t, f"{name}Config")(**SHAPE, **more)).eval()


def stranger() -> nn.Module:
    """A model that does to its logits what no configuration says."""
    model = tiny_lm("llama")
    model.register_forward_hook(lambda module, args, output: SimpleNamespace(logits=output.logits.sin()))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "opt": partial(tiny_lm, "opt"),
    "llama": partial(tiny_lm, "llama"),
    "gemma2": lambda: of_config("Gemma2", head_dim=8, final_logit_softcapping=0.02),
    "cohere": lambda: of_config("Cohere", logit_scale=3.0),
    "granite": lambda: of_config("Granite", logits_scaling=0.2),
    "stranger": stranger,
}


@contextmanager
def chunks_of(positions: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "CHUNK", positions * WORDS)
        yield


def items(kind: Any) -> Encoded:
    """Three items of 1 to 9 scored tokens; choices have two candidates, which share positions."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, WORDS, (count,), generator=generator).tolist())

    contexts = (tokens(4), tokens(7), tokens(2))
    options: Any = ((tokens(9),), (tokens(1),), (tokens(5),))
    if kind == "verbalizer":
        options = tuple(((*tail, 5, 6), (*tail, 7)) for (tail,) in options)
    return Encoded(contexts, options, (0, 0, 0), kind, 1)


def derivatives(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """The loss, its gradient, and a product with its Hessian, taken twice of one graph as measuring does."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    along = sum((g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum() for g in gradient)
    products = [torch.autograd.grad(along, weights, retain_graph=True, materialize_grads=True) for _ in range(2)]
    return [loss.detach(), *(tensor.detach() for tensor in (*gradient, *products[0], *products[1]))]


@pytest.mark.parametrize("kind", ["completion", "verbalizer"])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_give_what_the_whole_table_gives(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]().double()
    model.config._attn_implementation = "eager"  # has a second derivative on every device
    minibatch = batch(items(kind), range(3))
    whole = derivatives(choice_loss(model, minibatch), model)
    assert all(tensor.isfinite().all() for tensor in whole) and whole[1].norm() > 0
    for positions in (1, 4, len(minibatch["row"]) - 1):
        with chunks_of(positions, monkeypatch):
            pieces = derivatives(choice_loss(model, minibatch), model)
        for piece, tensor in zip(pieces, whole, strict=True):
            # Llama-like norms compute in fp32.
            assert torch.allclose(piece, tensor, rtol=1e-5, atol=1e-6 * float(tensor.abs().max() + 1))


class Widest(TorchDispatchMode):
    """The largest number of rows of a table with a column for each word, weights left out."""

    def __init__(self, weights: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.rows, self._weights = 0, weights

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.shape[-1:] == (WORDS,) and tuple(leaf.shape) not in self._weights:
                self.rows = max(self.rows, leaf.numel() // WORDS)
        return result


@pytest.mark.parametrize(("positions", "rows"), [(4, 1), (100, 15)])
def test_no_chunk_is_kept_for_the_backward_pass(positions: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the model's own logits of one position; the table of all 15 is kept where it is not cut."""
    model, minibatch, kept = tiny_lm("llama"), batch(items("completion"), range(3)), [0]
    transposed = tuple(reversed(model.get_output_embeddings().weight.shape))  # type: ignore[operator]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (WORDS,) and tuple(tensor.shape) != transposed:
            kept[0] += tensor.numel() // WORDS
        return tensor

    with chunks_of(positions, monkeypatch), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = choice_loss(model, minibatch)
    assert loss.requires_grad and kept[0] <= rows and (kept[0] == rows) == (rows > 1)


@pytest.mark.parametrize(
    ("name", "positions", "rows"),
    [*((name, 4, 4) for name in MODELS if name != "stranger"), ("stranger", 4, 15), ("llama", 100, 15)],
)
def test_the_table_of_all_positions_is_never_there(
    name: str, positions: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward; with a limit above all 15 positions, or an unknown model, the table is there and seen."""
    model, minibatch = MODELS[name](), batch(items("completion"), range(3))
    transposed = tuple(reversed(model.get_output_embeddings().weight.shape))  # type: ignore[operator]
    with chunks_of(positions, monkeypatch), Widest({transposed}) as widest:
        choice_loss(model, minibatch).backward()  # type: ignore[no-untyped-call]
    assert len(minibatch["row"]) == 15
    assert widest.rows == rows


@pytest.mark.parametrize("training", [False, True])
def test_products_keep_no_chunk_either(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode, where dropout could draw anew, what a product computes is kept, and seen here."""
    model, minibatch, kept = tiny_lm("llama").train(training), batch(items("completion"), range(3)), [0]
    model.config._attn_implementation = "eager"
    weights = [p for p in model.parameters() if p.requires_grad]
    transposed = tuple(reversed(model.get_output_embeddings().weight.shape))  # type: ignore[operator]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (WORDS,) and tuple(tensor.shape) != transposed:
            kept[0] += tensor.numel() // WORDS
        return tensor

    with chunks_of(4, monkeypatch), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradient = torch.autograd.grad(choice_loss(model, minibatch), weights, create_graph=True)
        assert (kept[0] > 15) is training
    with chunks_of(4, monkeypatch), Widest({transposed}) as widest:
        torch.autograd.grad([g for g in gradient if g.requires_grad], weights, [torch.ones_like(g) for g in gradient])
    assert widest.rows == 4


def test_a_weight_outside_the_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that adds what another module holds, as PEFT methods do on tied embeddings: its derivatives are there."""
    model, minibatch = tiny_lm("llama").double(), batch(items("completion"), range(3))
    model.config._attn_implementation = "eager"
    elsewhere = nn.Parameter(torch.linspace(-1, 1, WORDS, dtype=torch.float64))
    head = model.get_output_embeddings()  # type: ignore[operator]
    head.register_forward_hook(lambda module, args, output: output + elsewhere)
    model.register_parameter("elsewhere", elsewhere)
    whole = derivatives(choice_loss(model, minibatch), model)
    with chunks_of(4, monkeypatch):
        pieces = derivatives(choice_loss(model, minibatch), model)
    assert elsewhere.shape in [piece.shape for piece in pieces[1:]]
    for piece, tensor in zip(pieces, whole, strict=True):
        assert torch.allclose(piece, tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max() + 1))
