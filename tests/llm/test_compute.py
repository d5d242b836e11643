"""16-bit weights with float32 arithmetic: the model in float32 whose weights are the same numbers, to its rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import fixed_loss, flatten
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.llm.adapters import attach
from smoothlab.llm.compute import PIECE, WideningLinear, check_widened, compute_in_float32
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import ZerothOrder
from tests.llm.architectures import CURED, SOUND, UNFIT, causal, rows

QUICK = ("llama", "gpt2", "gemma2")
"""In the default run: linear layers and embeddings; layers of another class; embeddings that scale their rows."""
OUTSIDE = ("qwen3_5_text", "qwen3_next")
"""Architectures whose short convolutions have weights that are read outside their modules."""
KINDS = [kind for kind in (*SOUND, *CURED) if kind not in UNFIT["lora"]]
CASES = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.check) for kind in KINDS]
MINIBATCH = batch(rows("verbalizer"), range(5))


def pair(kind: str, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, nn.Module]:
    """A model of 16-bit weights that computes in float32, and one that holds the same numbers in float32, with LoRA."""
    narrow, wide = causal(kind).to(dtype), causal(kind).to(dtype).float()
    compute_in_float32(narrow)
    both = attach(narrow, "lora", seed=0), attach(wide, "lora", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p, q in zip(*(partition(model)["peft"].params for model in both), strict=True):
            q += 0.1 * torch.randn(q.shape, generator=generator)
            p.copy_(q)
    return both


def spread(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", CASES)
def test_losses_gradients_and_products_are_those_of_float32_weights(kind: str) -> None:
    """The base is stored in bf16, whose roundoff is 4e-3: what is computed in it would be off by as much."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    narrow, wide = pair(kind)
    if kind in OUTSIDE:
        with pytest.raises(
            BadInput, match=f"--compute float32 does not fit this model of type {kind} .its parameter of"
        ):
            check_widened(narrow, fixed_loss(lambda: choice_loss(narrow, MINIBATCH), narrow))
        return
    check_widened(narrow, fixed_loss(lambda: choice_loss(narrow, MINIBATCH), narrow))
    for model in (narrow, wide):
        blocks = partition(model)
        for p in blocks["base"].params:
            p.requires_grad_(False)
        loss = fixed_loss(lambda model=model: choice_loss(model, MINIBATCH), model)
        hessian = ExactHessian(loss, [blocks["peft"]])
        v = torch.randn(blocks["peft"].dim, generator=torch.Generator().manual_seed(2))
        (product,) = hessian.product(v, "peft", ["peft"])
        assert blocks["peft"].params[0].dtype == torch.float32
        found.append((torch.tensor([hessian.loss]), hessian.gradients["peft"], product))
    for one, other in zip(*found, strict=True):
        assert spread(one, other) < 2e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_hybrid_step_sees_what_sixteen_bits_would_round_away(dtype: torch.dtype) -> None:
    """Moves of 1e-4, a fraction of which bf16 would let through, layer by layer; the step itself is rounded once."""
    steps = []
    for model, layers in zip(pair("llama", dtype), (True, False), strict=True):
        blocks = partition(model)
        oracle = ZerothOrder(1e-4, layers=model if layers else None, dtype=torch.float32)
        groups = [
            {"params": blocks["base"].params, "lr": 1e-3, "oracle": oracle, "name": "base"},
            {"params": blocks["peft"].params, "lr": 1e-2, "name": "peft"},
        ]
        before = flatten(blocks["base"].copies()).float()
        optimizer = HybridSGD(groups, seed=3)
        optimizer.step(fixed_loss(lambda model=model: choice_loss(model, MINIBATCH), model))
        assert optimizer.last is not None
        assert optimizer.last.realized_fractions["base"] == pytest.approx(1, abs=0.01)
        ((_, slope),) = optimizer.last.gradients["base"].terms
        steps.append((slope, flatten(blocks["base"].copies()).float() - before, flatten(blocks["peft"].copies())))
    (narrow, moved, module), (wide, reference, other) = steps
    assert narrow == pytest.approx(wide, rel=2e-2)  # two losses of float32, and a difference of 1e-4 |slope| |z|
    half = torch.finfo(dtype).eps / 2 * (before + reference).abs()  # of the spacing of 16-bit numbers
    assert bool(((moved - reference).abs() <= 1.01 * half + 0.02 * reference.abs()).all())
    assert spread(module, other) < 1e-5


@pytest.mark.parametrize("shape", [(3, 5), (PIECE // 1000 + 7, 1000)])
def test_products_in_pieces_are_differentiable_twice(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], shape[0]).requires_grad_(False).bfloat16()
    plain = nn.Linear(shape[1], shape[0]).requires_grad_(False)
    plain.load_state_dict(layer.state_dict())
    compute_in_float32(layer)
    assert type(layer) is WideningLinear
    found = []
    for module in (layer, plain):
        x = torch.linspace(-1, 1, 2 * 2 * shape[1]).view(2, 2, -1).requires_grad_(True)
        y = module(x)
        (g,) = torch.autograd.grad(y.square().mean(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().mean(), x)
        found.append((y, g, h))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_weights_are_back_after_an_exception() -> None:
    model: Any = causal("gpt2").bfloat16()
    compute_in_float32(model)
    before = [(id(p), p.dtype, p.detach().clone()) for p in model.parameters()]
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[5, 99]]))
    with pytest.raises(RuntimeError):
        model.transformer.h[0].attn.c_attn(torch.ones(2, 3))
    for (key, dtype, value), p in zip(before, model.parameters(), strict=True):
        assert id(p) == key and p.dtype == dtype and torch.equal(p, value)


def test_gradients_of_sixteen_bit_weights_are_rounded_ones() -> None:
    narrow, wide = pair("llama")
    grads = []
    for model in (narrow, wide):
        params = partition(model)["base"].params
        loss = choice_loss(model, MINIBATCH)
        grads.append(flatten(g.float() for g in torch.autograd.grad(loss, params)))
    assert spread(*grads) < 4e-3


@pytest.mark.check
def test_the_command_trains_measures_and_saves_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from smoothlab.experiments.finetune.experiment import Finetune

    run = Finetune(
        dtype="bfloat16", compute="float32", train=8, dev=4, test=4, batch=4, parts=1, steps=2, measure=("peft",),
        cross=(), points=2, save=tmp_path,
    )  # fmt: skip
    measured = [row for row in run.rows([]) if row.get("block") == "peft"]
    assert measured and all(row["flag"] is None for row in measured if row["quantity"] == "frobenius")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_command_moves_weights_in_float32() -> None:
    """bf16 rounds 1.6 % of a step of 1e-3 away on `micro`."""
    from smoothlab.experiments.finetune.experiment import Finetune

    run = Finetune(method="zo", dtype="bfloat16", compute="float32", train=8, dev=4, test=4, batch=4, parts=1)
    trainer = run.setup().trainer()
    trainer.update()
    assert trainer.optimizer.last is not None
    assert trainer.optimizer.last.realized_fractions["base"] == pytest.approx(1, abs=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    from smoothlab.experiments.finetune.experiment import Finetune
    from smoothlab.experiments.finetune.options import check

    with pytest.raises(BadInput, match="--compute float32 with --dtype float32: it is for weights in 16 bits"):
        check(Finetune(compute="float32"))
    with pytest.raises(BadInput, match="--measure with --dtype bfloat16, .* --compute float32 with --measure peft"):
        check(Finetune(dtype="bfloat16", measure=("peft",)))
    run = Finetune(dtype="bfloat16", compute="float32", measure=("all",), train=8, dev=4, test=4, batch=4, parts=1)
    with pytest.raises(BadInput, match="block 'base' is held in 16 bits, .* use --measure peft"):
        run.setup()
