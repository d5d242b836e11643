"""A folder of bf16 weights that stay a mapped file: hybrid steps, evaluation and curvature beside it, on `micro`."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, fixed_loss, flatten
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.llm import memory
from smoothlab.llm.adapters import attach
from smoothlab.llm.compute import compute_in_float32
from smoothlab.llm.evaluate import accuracy, batch, choice_loss
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.factors import merge, with_steps
from smoothlab.zeroth.low_rank import LowRank
from tests.llm.architectures import causal, rows

ITEMS = rows("verbalizer")
MINIBATCH = batch(ITEMS, range(4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`micro` in bfloat16, in several files."""
    path = tmp_path_factory.mktemp("micro")
    loaded = load_lm("micro", seed=0, dtype=torch.bfloat16)
    loaded.model.save_pretrained(path, max_shard_size="2MB")
    loaded.tokenizer.save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def model(folder: Path, method: str, *, wide: bool = False) -> nn.Module:
    """The folder's model with a PEFT module that is away from its start; in bf16, or the same numbers in float32."""
    base = load_lm(str(folder), seed=0, dtype=torch.float32 if wide else torch.bfloat16).model
    if not wide:
        compute_in_float32(base)
    whole = attach(base, method, seed=0, measured=False)
    if method != "none":
        generator = torch.Generator().manual_seed(1)
        for p in partition(whole)["peft"].params:
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return whole


def stepping(whole: nn.Module, *, masters: Any) -> HybridSGD:
    blocks = partition(whole)
    oracle = ZerothOrder(distribution=LowRank(1), perturb="forward", dtype=torch.float32)
    groups: list[dict[str, Any]] = [{"params": blocks["base"].params, "lr": 1e-3, "oracle": oracle, "name": "base"}]
    if "peft" in blocks:
        groups.append({"params": blocks["peft"].params, "lr": 1e-2, "name": "peft"})
    return HybridSGD(groups, seed=3, masters=masters, exact=torch.optim.AdamW)


def loss_of(whole: nn.Module) -> Callable[[], Tensor]:
    return fixed_loss(lambda: choice_loss(whole, MINIBATCH), whole)


def weights(block: Block) -> Tensor:
    return flatten(with_steps(p) for p in block.params).float()


def scores(whole: nn.Module) -> Tensor:
    return torch.tensor(accuracy(whole, ITEMS).scores)


@pytest.mark.parametrize("method", ["lora", "prompt", "none"])
def test_steps_scores_and_curvature_are_those_of_float32_weights(folder: Path, method: str) -> None:
    """The slow truth holds the same numbers in float32 and moves them in place."""
    before = contents(folder)
    narrow, wide = model(folder, method), model(folder, method, wide=True)
    start, first = weights(partition(wide)["base"]), scores(wide)
    for whole, masters in ((narrow, "factors"), (wide, True)):
        optimizer = stepping(whole, masters=masters)
        for _ in range(4):
            optimizer.step(loss_of(whole))
    move = weights(partition(wide)["base"]) - start
    apart = weights(partition(narrow)["base"]) - weights(partition(wide)["base"])
    # Slopes are differences of fp32 losses over 2e-3: an error of 1e-6 of a loss of 1 is 1e-3 of a slope of 1.
    assert float(move.norm()) > 0.1 and float(apart.norm()) < 1e-2 * float(move.norm())
    assert float((scores(narrow) - scores(wide)).norm()) < 1e-2 * float((scores(wide) - first).norm())
    if method != "none":
        products = []
        for whole in (narrow, wide):
            block = partition(whole)["peft"]
            partition(whole)["base"].params[0].requires_grad_(False)
            hessian = FiniteDifferenceHessian(loss_of(whole), [block], h=0.1)
            v = torch.randn(block.dim, generator=torch.Generator().manual_seed(2))
            products.append(hessian.product(v, "peft", ["peft"])[0])
        assert float((products[0] - products[1]).norm()) < 2e-2 * float(products[1].norm())
    # Merging writes to pages of this process, never to the files.
    merge(narrow.parameters())
    assert contents(folder) == before


def test_weights_are_the_files_and_no_copy(folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "own"))  # which no other test has mapped
    whole = model(folder, "lora")
    base = partition(whole)["base"].params
    size = sum(p.nbytes for p in base)
    assert memory.mapped_bytes(base) == size
    optimizer = stepping(whole, masters="factors")
    for _ in range(2):
        optimizer.step(loss_of(whole))
    assert memory.mapped_bytes(base) == size
    pages = _pages(folder)
    # Nobody has written to a page: a private copy would be anonymous memory in the file's mapping.
    assert pages["Rss"] > 0.9 * size and pages["Anonymous"] == 0
    merge(base)
    assert _pages(folder)["Anonymous"] > 0.9 * size


def test_other_number_formats_are_copies(folder: Path) -> None:
    assert memory.mapped_bytes(partition(model(folder, "none", wide=True))["base"].params) == 0
    assert memory.mapped_bytes([torch.zeros(1000)]) == 0
    assert memory.mapped_bytes([torch.zeros(1000)], Path("/there/is/none")) == 0


def _pages(folder: Path) -> dict[str, int]:
    """Bytes of the pages that are mapped from the folder's files, by /proc/self/smaps."""
    found = {"Rss": 0, "Anonymous": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found and inside:
            found[name] += 1024 * int(rest.split()[0])
        elif "-" in name.split()[0]:
            inside = str(folder) in line
    return found


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "opt"])
def test_other_architectures_add_their_steps(kind: str) -> None:
    """Transposed layers (GPT-2), embeddings that scale their rows (Gemma), tables of positions (OPT)."""
    found = []
    for wide in (False, True):
        whole: Any = causal(kind).bfloat16()
        if wide:
            whole = whole.float()
        else:
            compute_in_float32(whole)
        whole = attach(whole, "lora", seed=0, measured=False)
        optimizer = stepping(whole, masters=True if wide else "factors")
        losses = [float(optimizer.step(loss_of(whole))) for _ in range(4)]
        found.append((losses, weights(partition(whole)["base"])))
    (first, *_, last), other = found[1][0], found[0][0]
    assert abs(first - last) > 1e-2 and other == pytest.approx(found[1][0], abs=1e-2 * abs(first - last))
    assert float((found[0][1] - found[1][1]).norm()) < 1e-2 * float(found[1][1].norm())


def test_measuring_a_module_keeps_no_copy_of_the_weights(folder: Path) -> None:
    """While LoRA is measured, the base model's weights, which are trained, are in no graph: these would be float32."""
    run = Finetune(
        model=str(folder), dtype="bfloat16", masters="factors", distribution="lowrank(1)", measure=("peft",), cross=(),
        product="central", precision=0.5, train=8, dev=4, test=4, batch=4, parts=1, steps=2, points=1, path=False,
    )  # fmt: skip
    setup = run.setup()
    shapes = {p.shape for p in setup.blocks["base"].params if p.dim() == 2}
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float32 and (tensor.shape in shapes or tensor.shape[::-1] in shapes):
            kept.append(tensor)
        return tensor

    trainer = setup.trainer(at=[0])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        measured = list(trainer.point())
    assert any(row["quantity"] == "frobenius" for row in measured) and not kept
