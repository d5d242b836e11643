"""One, two and four processes take the same steps, to the bit."""

import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smoothlab.experiments.finetune.config import Rates
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.setup import optimizer
from smoothlab.llm import distributed
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Trainer, reshuffled
from smoothlab.zeroth.closures import NotFinite
from tests.llm.tiny import encoded, tiny_lm

ITEMS = encoded("verbalizer")


def everywhere(count: int, work: Callable[[], object], place: Path) -> list[object]:
    """What `work` returns in each of so many forked processes, which know each other as those of torchrun do."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        status = 1
        try:
            signal.alarm(120)
            torch.set_num_threads(1)
            os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})

            def keep(rank: int = rank) -> None:
                torch.save(work(), place / f"{count}.{rank}")

            distributed.run(keep, keep, "cpu", met=True) if count > 1 else keep()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count
    return [torch.load(place / f"{count}.{rank}") for rank in range(count)]


def trained(options: str, steps: int = 3) -> dict[str, torch.Tensor]:
    """Losses, weights and gradients after some steps of `finetune` on a tiny OPT."""
    chosen = dict(option.split("=") for option in options.split())
    dtype, module = getattr(torch, chosen.pop("dtype", "float32")), chosen.pop("peft", "lora")
    size = int(chosen.pop("batch", "8"))
    run = Finetune(seed=3, **{k: int(v) if v.isdecimal() else v for k, v in chosen.items()})  # type: ignore[arg-type]
    model = attach(tiny_lm("opt"), module, seed=0).to(dtype)
    blocks = {name: block for name, block in partition(model).items() if name in ("base", "peft")}
    if module == "none" or run.method == "fo-peft":
        blocks = {"base": blocks["base"]} if module == "none" else {"peft": blocks["peft"]}
    mine = {id(p) for block in blocks.values() for p in block.params}
    for p in model.parameters():
        p.requires_grad_(id(p) in mine)
    stepper = optimizer(run, blocks, Rates(1e-3, 0.05, 1e-2))
    stepper.peers = distributed.Peers() if distributed.world_size() > 1 else None

    def batches(step: int) -> list[Any]:
        parts = distributed.parts(reshuffled(24, size, 0, step), "cpu")
        return [batch(ITEMS, [n % len(ITEMS) for n in part]) for part in parts]

    trainer = Trainer(model, blocks, batches, choice_loss, stepper, steps=steps)
    found = {f"loss {k}": torch.tensor(trainer.update(), dtype=torch.float64) for k in range(steps)}
    found |= {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("size", "count", "device", "cuts"),
    [
        (16, 1, "cpu", 4), (16, 2, "cpu", 4), (16, 4, "cpu", 4), (6, 1, "cpu", 2), (6, 2, "cpu", 2), (5, 1, "cpu", 1),
        (6, 3, "cpu", 3), (16, 8, "cpu", 8), (16, 1, "cuda:0", 1), (16, 2, "cuda:1", 2),
    ],
)  # fmt: skip
def test_parts_are_those_of_one_process(
    monkeypatch: pytest.MonkeyPatch, size: int, count: int, device: str, cuts: int
) -> None:
    """In the order of the minibatch, and as many for each process."""
    monkeypatch.setenv("WORLD_SIZE", str(count))
    found = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        found.append(distributed.parts(range(size), device))
    assert [numbers for here in found for part in here for numbers in part] == list(range(size))
    assert {len(here) for here in found} == {cuts // count} and {len(part) for here in found for part in here} == {
        size // cuts
    }


@pytest.mark.check
@pytest.mark.usefixtures("imported")
def test_other_processes_hear_of_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """The part of one of them alone is NaN: all refuse the step, and none waits for another."""

    def work() -> str:
        p = nn.Parameter(torch.ones(2))
        made = HybridSGD([{"params": [p], "name": "p"}])
        made.peers = distributed.Peers()
        try:
            made.step(lambda: (p * (float("nan") if distributed.rank() else 1.0)).sum())
        except NotFinite as error:
            return f"{error.value} {p.tolist()}"
        return "went on"

    assert everywhere(2, work, tmp_path) == ["nan [1.0, 1.0]"] * 2


@pytest.mark.check
@pytest.mark.usefixtures("imported")
def test_a_parameter_without_gradient_in_one_process_gets_that_of_the_other(tmp_path: Path) -> None:
    def work() -> list[object]:
        p, q, r = (nn.Parameter(torch.tensor([-0.0, 2.0])) for _ in range(3))
        made = HybridSGD([{"params": [p, q, r], "name": "p", "lr": 0.5}])
        made.peers = distributed.Peers()
        made.step(lambda: (p * torch.tensor([4.0, 8.0])).sum() if distributed.rank() else q.sum())
        return [p.tolist(), q.tolist(), r.grad]

    assert everywhere(2, work, tmp_path) == [[[-1.0, 0.0], [-0.25, 1.75], None]] * 2


def differences(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


@pytest.fixture(scope="module")
def imported() -> None:
    """What all processes import is imported before they are forked."""
    import torch.distributed.rendezvous  # noqa: F401

    attach(tiny_lm("opt"), "lora", seed=0)
    p = nn.Parameter(torch.ones(1))
    HybridSGD([{"params": [p], "name": "p"}]).step(p.sum)


@pytest.mark.check
@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("options", ["method=hybrid sides=1", "method=fo-full peft=none dtype=bfloat16 optimizer=adam"])
def test_the_number_of_processes_leaves_every_bit(tmp_path: Path, options: str) -> None:
    work = partial(trained, options)
    (alone,) = everywhere(1, work, tmp_path)
    assert len({float(alone[f"loss {k}"]) for k in range(3)}) == 3
    for count in (2, 4):
        for found in everywhere(count, work, tmp_path):
            assert differences(alone, found) == []
