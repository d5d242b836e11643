"""Every architecture of the table against plain references: padded rows, exact products, a hybrid step, saved weights.

Weights are fp64. Most architectures compute a part in fp32 whatever their weights are (RMS norms, eager softmax,
routers, rotary factors), and agree to fp32's rounding only; those that do not are named in PRECISE and must agree to
fp64's. Rows have 5 to 40 tokens and windows 16, so that windows matter.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, fixed_loss, flatten, standing_at
from smoothlab.hessian.exact import ExactHessian
from smoothlab.llm import vocabulary
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.export import save
from smoothlab.llm.partition import partition
from smoothlab.llm.precision import fit_float64
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import ZerothOrder
from tests.llm.architectures import CURED, SOUND, UNFIT, causal, rows
from tests.llm.tiny import tokenizer

QUICK = ("gpt2", "gemma2", "mixtral")
"""In the default run: positions from a table; windows, bounded logits and eager attention; a mixture of experts."""
KINDS = [kind for kind in (*SOUND, *CURED) if kind not in UNFIT["lora"]]
CASES = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.check) for kind in KINDS]
PRECISE = ("opt", "gpt2", "gpt_neox", "gpt_bigcode", "falcon", "stablelm", "phi", "starcoder2", "biogpt")
"""Architectures that compute in fp64 throughout if their weights are fp64."""
NARROW = ("xglm",)
"""Architectures whose code fails on fp64 weights: they are looked at in fp32."""
ITEMS = rows("verbalizer")


@cache
def made(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The architecture under LoRA, which stands off its initial values; a test leaves its weights as they were."""
    model: Any = causal(kind)
    if kind not in NARROW:
        model.to(dtype)
    fit_float64(model)
    model = attach(model, "lora", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in partition(model)["peft"].params:
            p += 0.1 * torch.randn(p.shape, generator=generator).to(p)
    return model


def prompt_loss(model: nn.Module) -> Loss:
    minibatch = batch(ITEMS, range(len(ITEMS)))
    return fixed_loss(lambda: choice_loss(model, minibatch), model)


def roundoff(kind: str) -> float:
    return torch.finfo(torch.float64 if kind in PRECISE else torch.float32).eps


@pytest.mark.parametrize("kind", CASES)
def test_padded_rows_have_the_logits_of_unpadded_ones(kind: str) -> None:
    """At every place that is scored, of candidates of one token and of several."""
    model = made(kind)
    for items in (ITEMS, rows("multiple choice")):
        minibatch = batch(items, range(len(items)), all_candidates=True)
        with torch.no_grad():
            padded = vocabulary.logits(model, minibatch)
            for number, (row, back) in enumerate(zip(minibatch["row"], minibatch["back"], strict=True)):
                alone = minibatch["input_ids"][row][minibatch["attention_mask"][row].bool()]
                place = minibatch["input_ids"].shape[1] - back
                logits = model(input_ids=alone[None]).logits[0, place]
                bound = 200 * roundoff(kind) * float(logits.abs().max())
                torch.testing.assert_close(padded[number], logits, rtol=0, atol=bound)


def gradient(loss: Loss, block: Block, v: Tensor, h: float) -> Tensor:
    """The block's gradient at its weights + h v."""
    moved = [p.detach() + h * part for p, part in zip(block.params, block.views(v), strict=True)]
    with standing_at(block, moved):
        parts = torch.autograd.grad(loss(), block.params, allow_unused=True)
    return flatten(torch.zeros_like(p) if g is None else g for g, p in zip(parts, block.params, strict=True))


def differences(loss: Loss, block: Block, v: Tensor, eps: float) -> tuple[Tensor, float]:
    """H v from central differences of gradients, and a bound of its error.

    The error of D(h) is |D(2h) - D(h)| / 3 by truncation, quadratic in h, or twice |D(2h) - D(h)| where the gradient
    jumps within h; and e / (sqrt(2) h) by rounding, e that of a gradient, known from the second difference of three
    that are 16 roundoffs apart (variance 6 e^2). Of four steps the one with the smallest bound is taken.
    """
    size = float(flatten(block.params).detach().norm())
    near = [gradient(loss, block, v, n * 16 * eps * size) for n in range(3)]
    noise = float((near[2] - 2 * near[1] + near[0]).norm()) / math.sqrt(6)
    best, least = v, math.inf
    for exponent in range(4):
        h = size * eps ** (1 / 3) / 8 / 4**exponent
        short, long = ((gradient(loss, block, v, s) - gradient(loss, block, v, -s)) / (2 * s) for s in (h, 2 * h))
        bound = 2 * float((long - short).norm()) + 4 * noise / (math.sqrt(2) * h)
        if bound < least:
            best, least = short, bound
    return best, least


@pytest.mark.parametrize("kind", CASES)
def test_exact_products_are_differences_of_the_gradient(kind: str) -> None:
    """Of base and LoRA along a random direction of either, to a bound of at most 1 % in fp32 and 1e-6 in fp64."""
    model = made(kind)
    loss, blocks = prompt_loss(model), partition(model)
    hessian = ExactHessian(loss, list(blocks.values()))
    generator = torch.Generator().manual_seed(2)
    for name, block in blocks.items():
        v = torch.randn(block.dim, generator=generator).to(block.params[0])
        v /= v.norm()
        (exact,) = hessian.product(v, name, [name])
        differenced, bound = differences(loss, block, v, roundoff(kind))
        assert float((exact - differenced).norm()) <= bound
        assert bound <= (1e-6 if kind in PRECISE else 1e-2) * float(exact.norm())


@pytest.mark.check
@pytest.mark.parametrize(("kind", "operations"), [("mixtral", ("Topk",)), ("llama", ())])
def test_where_tokens_go_to_other_experts_the_loss_jumps(kind: str, operations: tuple[str, ...]) -> None:
    """What a difference divides by its step there; the graph names the operation, so that rows can say so."""
    model = made(kind)
    loss, block = prompt_loss(model), partition(model)["base"]
    assert ExactHessian(loss, [block]).graph.nonsmooth == operations
    v = torch.randn(block.dim, generator=torch.Generator().manual_seed(1)).to(block.params[0])

    def at(t: float) -> float:
        moved = [p.detach() + t * part for p, part in zip(block.params, block.views(v), strict=True)]
        with torch.no_grad(), standing_at(block, moved):
            return float(loss())

    values = [at(n * 5e-5) for n in range(101)]
    changes = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    widest = max(range(100), key=changes.__getitem__)
    start, end = widest * 5e-5, (widest + 1) * 5e-5
    for _ in range(20):  # towards the half that changes more
        middle = (start + end) / 2
        if abs(at(middle) - at(start)) > abs(at(end) - at(middle)):
            end = middle
        else:
            start = middle
    jumps = abs(at(end) - at(start)) > 1e-3
    assert jumps == bool(operations)


MU, ETA_X, ETA_Y = 1e-3, 1e-4, 1e-2


def dense_step(loss: Loss, x: Block, y: Block, z: Tensor) -> None:
    """One step of Algorithm 1 in plain torch: perturb, two forward passes, restore, gradient of y, update."""
    home = x.copies()
    values = []
    with torch.no_grad():
        for side in (1, -1):
            for p, start, part in zip(x.params, home, x.views(z), strict=True):
                p.copy_(start + side * MU * part)
            values.append(float(loss()))
        for p, start in zip(x.params, home, strict=True):
            p.copy_(start)
    gradients = torch.autograd.grad(loss(), y.params)
    slope = (values[0] - values[1]) / (2 * MU)
    with torch.no_grad():
        for p, part in zip(x.params, x.views(z), strict=True):
            p -= ETA_X * slope * part
        for p, g in zip(y.params, gradients, strict=True):
            p -= ETA_Y * g


def put(blocks: Mapping[str, Block], values: Mapping[str, Sequence[Tensor]]) -> None:
    """Write values into the blocks' weights."""
    with torch.no_grad():
        for name, block in blocks.items():
            for p, value in zip(block.params, values[name], strict=True):
                p.copy_(value)


@pytest.mark.parametrize("kind", CASES)
def test_a_hybrid_step_is_the_dense_references(kind: str) -> None:
    """Two steps; the slope is exact up to the rounding of two losses, whose difference is divided by 2 mu."""
    model = made(kind)
    loss, blocks = prompt_loss(model), partition(model)
    x, y = blocks["base"], blocks["peft"]
    home = {name: block.copies() for name, block in blocks.items()}
    oracle = ZerothOrder(MU)
    for step in range(2):
        dense_step(loss, x, y, oracle.distribution.draw(x, (2, step, 0, 0)))
    wanted = {name: flatten(block.copies()) for name, block in blocks.items()}
    moved = {name: float((wanted[name] - flatten(home[name])).abs().max()) for name in blocks}
    put(blocks, home)
    groups = [
        {"params": x.params, "lr": ETA_X, "oracle": oracle, "name": "base"},
        {"params": y.params, "lr": ETA_Y, "name": "peft"},
    ]
    optimizer = HybridSGD(groups, seed=2)
    for _ in range(2):
        optimizer.step(loss)
    stepped = {name: flatten(block.copies()) for name, block in blocks.items()}
    put(blocks, home)
    for name in blocks:
        bound = 100 * torch.finfo(wanted[name].dtype).eps / MU * moved[name]
        torch.testing.assert_close(stepped[name], wanted[name], rtol=0, atol=bound)


@pytest.mark.parametrize("kind", CASES)
def test_saved_weights_give_the_logits_back(kind: str, tmp_path: Path) -> None:
    """By plain transformers and peft, from both folders that --save writes."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = attach(causal(kind), "lora", seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in partition(model).values():
            for p in block.params:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    ids = torch.tensor([max(ITEMS.contexts, key=len)])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        save(model, tokenizer(), tmp_path, base=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bare = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
            both = PeftModel.from_pretrained(bare, tmp_path / "adapter")
            whole = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
        for loaded in (both, whole):
            torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, wanted, rtol=0, atol=0)
