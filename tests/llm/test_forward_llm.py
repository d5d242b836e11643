"""Moves inside the forward passes of transformers: the same hybrid steps as with a moved copy, and replays of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smoothlab.blocks import flatten
from smoothlab.errors import BadInput
from smoothlab.llm.compute import compute_in_float32
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.zeroth.estimators import Sides, ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.products import Moved
from smoothlab.zeroth.rng import GeneratorName
from tests.llm.architectures import causal
from tests.llm.test_architectures import ETA_X, ETA_Y, KINDS, MU, made, prompt_loss, put

QUICK = ("opt", "gpt2", "llama", "falcon")
"""In the default run: positions from a table and tied heads; transposed weights; RMS norms; products with A'."""
REFUSED = {
    "gpt_oss": "experts.gate_up_proj_bias of shape .* is read by __getitem__",
}
"""Architectures that read a matrix otherwise than in products, and what they are told."""
SINGLE = ("deepseek_v3",)
"""Architectures that multiply by a matrix in fp32, whatever their weights are."""
CASES = [
    kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.check) for kind in KINDS if kind not in REFUSED
]


def groups(kind: str, oracle: ZerothOrder, decay: float = 0.0) -> list[dict[str, object]]:
    blocks = partition(made(kind))
    return [
        {"params": blocks["base"].params, "lr": ETA_X, "oracle": oracle, "name": "base", "weight_decay": decay},
        {"params": blocks["peft"].params, "lr": ETA_Y, "name": "peft"},
    ]


def after(kind: str, oracle: ZerothOrder, steps: int = 2) -> tuple[Tensor, Tensor, list[float]]:
    """Base model and LoRA after hybrid steps, which are then taken back, and the losses."""
    model = made(kind)
    blocks, loss = partition(model), prompt_loss(model)
    with torch.no_grad():
        loss()  # RWKV rescales its weights when it is first called
    home = {name: block.copies() for name, block in blocks.items()}
    optimizer = HybridSGD(groups(kind, oracle), seed=2)
    try:
        losses = [float(optimizer.step(loss)) for _ in range(steps)]
        return flatten(blocks["base"].copies()), flatten(blocks["peft"].copies()), losses
    finally:
        put(blocks, home)


@pytest.mark.parametrize("kind", CASES)
def test_a_hybrid_step_is_that_with_a_moved_copy(kind: str) -> None:
    """Two steps of base model and LoRA; the slope is exact up to the rounding of two losses, divided by 2 mu."""
    sides: Sides
    for sides in (1, 2):
        wanted = after(kind, ZerothOrder(MU, sides, LowRank(1)))
        found = after(kind, ZerothOrder(MU, sides, LowRank(1), perturb="forward"))
        home = {name: flatten(block.copies()) for name, block in partition(made(kind)).items()}
        for name, theirs, ours in zip(("base", "peft"), wanted[:2], found[:2], strict=True):
            moved = float((theirs - home[name]).abs().max())
            dtype = torch.float32 if kind in SINGLE else theirs.dtype
            bound = 100 * torch.finfo(dtype).eps / MU * moved
            assert moved > 0
            torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)
        assert found[2] == pytest.approx(wanted[2], rel=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_architectures_that_read_a_matrix_otherwise_are_told(kind: str) -> None:
    with pytest.raises(BadInput, match=f"block 'base': its parameter .*{REFUSED[kind]}.*: use perturb 'weights'"):
        after(kind, ZerothOrder(MU, 2, LowRank(1), perturb="forward"))
    after(kind, ZerothOrder(MU, 2, LowRank(1)), steps=1)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_weights_of_16_bits_that_compute_in_float32_give_the_slope_of_float32_weights(kind: str) -> None:
    """The same weights in both formats: the slope is exact up to the rounding of two losses, divided by 2 mu."""
    slopes = []
    for narrow in (True, False):
        model = causal(kind).bfloat16()
        if narrow:
            compute_in_float32(model)
        else:
            model.float()
        loss, base = prompt_loss(model), partition(model)["base"]
        oracle = ZerothOrder(MU, 2, LowRank(2), perturb="forward", dtype=torch.float32)
        ((_, slope),) = oracle(loss, base, 3).terms
        slopes.append(slope)
        assert oracle.realized_fraction(base) > 0.99  # type: ignore[operator]
    assert slopes[0] == pytest.approx(slopes[1], abs=100 * torch.finfo(torch.float32).eps / MU)
    assert abs(slopes[0]) > 1e-1


@pytest.mark.parametrize("generator", ["torch", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_replays_from_its_log_to_the_bit(dtype: torch.dtype, generator: GeneratorName, tmp_path: Path) -> None:
    """Evaluations leave the weights to the bit, and updates are those that the log's seeds give, 16-bit masters too."""
    model = made("gpt2", dtype)
    blocks, loss = partition(model), prompt_loss(model)
    base = blocks["base"]
    home, read = {name: block.copies() for name, block in blocks.items()}, set[int]()
    oracle = ZerothOrder(0.05, 1, LowRank(2, generator=generator), q=2, perturb="forward")
    log = SeedLog(tmp_path / "log", 2, {0: base}, {0: oracle.distribution})
    settings = [{"params": base.params, "lr": 1e-3, "oracle": oracle, "weight_decay": 0.1, "name": "base"}]
    optimizer = HybridSGD([*settings, {"params": blocks["peft"].params, "lr": ETA_Y, "name": "peft"}], seed=2, log=log)

    def watched() -> Tensor:
        read.update(p.move.home.data_ptr() for p in base.params if isinstance(p, Moved))
        return loss()

    for _ in range(3):
        optimizer.step(watched)
    log.close()
    trained = base.copies()
    put(blocks, home)
    assert replay(tmp_path / "log", {0: base}, {0: oracle.distribution}) == 3
    replayed = base.copies()
    put(blocks, home)
    assert _equal(trained, replayed) and not _equal(trained, home["base"])
    assert read == {p.data_ptr() for p in base.params if p.dim() == 2}, "no evaluation reads a copy of a matrix"


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
