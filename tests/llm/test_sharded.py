"""Two processes that hold half of the base model each (FSDP2) take the steps of one that holds it whole."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.llm import distributed
from smoothlab.llm.adapters import attach
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.shards import is_sharded, local
from smoothlab.zeroth.distributions import Rademacher
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from tests.llm.test_distributed import differences, everywhere
from tests.llm.tiny import SHAPE

ROWS = 61
"""Rows of the embedding: the two processes hold 31 and 30."""
KINDS: dict[str, dict[str, Any]] = {"forward": {"perturb": "forward", "distribution": LowRank(2)}, "weights": {}}


def model() -> nn.Module:
    """A tiny Llama with LoRA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {**SHAPE, "vocab_size": ROWS, "intermediate_size": 33, "num_attention_heads": 2, "pad_token_id": 1}
        return attach(LlamaForCausalLM(LlamaConfig(**shape)).eval(), "lora", seed=0)


def shard(module: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard

    whole = set(partition(module)["peft"].params)
    for part in module.modules():
        if type(part).__name__ == "LlamaDecoderLayer":
            fully_shard(part, ignored_params=whole)
    fully_shard(module, ignored_params=whole)


def trained(folder: Path, kind: str) -> dict[str, Tensor]:
    """Losses, coefficients and weights of some steps; the first process writes a seed log."""
    several, rank = distributed.world_size() > 1, distributed.rank()
    known = set(map(id, plain_tensors()))
    oracle, module = KINDS[kind], model()
    log = None
    if rank == 0:
        block = partition(module)["base"]
        law = ZerothOrder(generator="portable", **oracle).distribution
        log = SeedLog(folder / f"{kind}.{distributed.world_size()}.log", 0, {0: block}, {0: law})
        del block  # which would keep the whole weights in memory
    if several:
        shard(module)
        oracle = oracle | {"layers": module}
    blocks = partition(module)
    groups = [
        {"params": blocks["base"].params, "lr": 1e-3, "name": "x"},
        {"params": blocks["peft"].params, "lr": 1e-2, "name": "y"},
    ]
    optimizer = HybridSGD([groups[0] | {"oracle": ZerothOrder(generator="portable", **oracle)}, groups[1]], log=log)
    optimizer.peers = distributed.Peers() if several else None
    numbers = torch.randint(2, ROWS, (4, 9), generator=torch.Generator().manual_seed(0))
    mine, found = numbers, {"loss before": module(input_ids=numbers, labels=numbers).loss.detach()}  # with a graph
    if several:
        mine = numbers[2 * rank : 2 * rank + 2]
    for step in range(3):
        closures = [lambda row=row: module(input_ids=row[None], labels=row[None]).loss for row in mine]
        found[f"loss {step}"] = optimizer.step(closures)
        assert optimizer.last is not None
        found[f"slopes {step}"] = torch.tensor([c for _, c in optimizer.last.gradients["x"].terms])
    with torch.no_grad():
        found["loss after"] = module(input_ids=numbers, labels=numbers).loss
    if several:
        check_memory(blocks["base"], module, known)
    if log is not None:
        log.force()
    return found | {name: whole(p) for name, p in module.named_parameters()}


def whole(p: Tensor) -> Tensor:
    return p.full_tensor() if is_sharded(p) else p.detach().clone()  # type: ignore[attr-defined,no-any-return]


def check_memory(block: Block, module: nn.Module, known: set[int]) -> None:
    """The process holds its rows, and no copy of a whole matrix beside `known` tensors, results of other runs."""
    for part in module.modules():
        if hasattr(part, "reshard"):  # the last evaluation has left the outermost module's parameters gathered
            part.reshard()
    for p in block.params:
        assert is_sharded(p) and len(local(p)) <= (len(p) + 1) // 2
    gc.collect()  # cycles that held the whole model
    shapes = {tuple(p.shape) for p in block.params if p.dim() == 2} - {(16, 16)}  # copies of y may be of that
    kept = [t.shape for t in plain_tensors() if tuple(t.shape) in shapes and id(t) not in known]
    assert len(shapes) == 3 and not kept


def plain_tensors() -> list[Tensor]:
    """All tensors of the process that have memory, but for sharded ones."""
    found = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    return [t for t in found if t.untyped_storage().size()]


def short(folder: Path) -> dict[str, Tensor]:
    """A layer of one row, of which one process holds nothing."""
    several = distributed.world_size() > 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, inputs = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(4, 5)
    oracle: dict[str, Any] = {"perturb": "forward", "distribution": LowRank(1)}
    if several:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net)
        oracle["layers"] = net
    optimizer = HybridSGD([{"params": net.parameters(), "oracle": ZerothOrder(**oracle), "lr": 0.1}])
    optimizer.peers = distributed.Peers() if several else None
    mine = inputs.chunk(2)[distributed.rank() : distributed.rank() + 1] if several else inputs.chunk(2)
    for _ in range(2):
        optimizer.step([lambda part=part: net(part).square().mean() for part in mine])
    return {name: whole(p) for name, p in net.state_dict().items()}


def swallowed() -> dict[str, Tensor]:
    """Two of three rows of the first process are too large to be moved: all rows together decide, not each process."""
    several = distributed.world_size() > 1
    net = nn.Linear(5, 6, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.1)
        net.weight[:2] = 1e6
    if several:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net)
    block = Block("x", tuple(net.parameters()))
    estimator = ZerothOrder(distribution=Rademacher(), layers=net if several else None)
    estimator(lambda: net(torch.ones(1, 5)).sin().mean(), block, [0])
    fraction = estimator.realized_fraction(block)
    assert fraction == pytest.approx(4 / 6, rel=1e-4)
    return {"fraction": torch.tensor(round(fraction, 6))}


def unsent() -> dict[str, Tensor]:
    """An update sends nothing: each process moves its own rows, and masters of these."""
    several, found = distributed.world_size() > 1, {}
    for dtype in (torch.float32, torch.bfloat16):
        net = nn.Linear(4, 5, bias=False).to(dtype)
        nn.init.ones_(net.weight)
        if several:
            from torch.distributed.fsdp import fully_shard

            fully_shard(net)
        oracle = ZerothOrder(0.1, distribution=Rademacher(), layers=net if several else None)
        optimizer = HybridSGD([{"params": net.parameters(), "oracle": oracle, "lr": 0.1, "weight_decay": 0.1}])
        optimizer.peers = distributed.Peers() if several else None
        optimizer.backward(lambda net=net, dtype=dtype: net(torch.ones(1, 4, dtype=dtype)).float().sin().mean())
        if several:
            from torch.distributed.tensor.debug import CommDebugMode

            with CommDebugMode() as sent:
                optimizer.step()
            assert not sent.get_total_counts(), sent.get_comm_counts()
        else:
            optimizer.step()
        found[f"unsent: {dtype}"] = whole(net.weight)
    return found


def curvature() -> dict[str, Tensor]:
    """The norm of LoRA's Hessian beside a base model that is sharded, by differences; exact products are refused."""
    net, numbers = model(), torch.randint(2, ROWS, (4, 9), generator=torch.Generator().manual_seed(0))
    if distributed.world_size() > 1:
        shard(net)
    block = partition(net)["peft"]

    def loss() -> Tensor:
        value: Tensor = net(input_ids=numbers, labels=numbers).loss
        return value

    if distributed.world_size() > 1:
        with pytest.raises(BadInput, match="weights are sharded .* use central differences"):
            ExactHessian(loss, [block]).norms()
    estimate = FiniteDifferenceHessian(loss, [block]).norms(precision=0.3)[0]
    return {"curvature": torch.tensor(estimate.value)}


def work(folder: Path) -> dict[str, Tensor]:
    """All in one start of the processes, which takes longer than the steps."""
    found = {f"short: {name}": value for name, value in short(folder).items()}
    found |= swallowed() | unsent() | curvature()
    for kind in KINDS:
        found |= {f"{kind}: {name}": value for name, value in trained(folder, kind).items()}
    return found


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder with the logs, and what one process, and two, have found."""
    import torch.distributed.fsdp  # noqa: F401, before the processes are forked

    folder = tmp_path_factory.mktemp("sharded")
    model()
    found = [*everywhere(1, partial(work, folder), folder), *everywhere(2, partial(work, folder), folder)]
    return folder, found


@pytest.mark.check
def test_two_halves_take_the_steps_of_a_whole_to_the_bit(steps: tuple[Path, list[Any]]) -> None:
    _, (alone, *several) = steps
    start = {f"forward: {name}": p for name, p in model().named_parameters() if "lora" not in name}
    assert not [name for name, p in start.items() if torch.equal(p, alone[name])], "the base model has moved"
    assert len({float(alone[f"forward: loss {step}"]) for step in range(3)}) == 3
    for found in several:
        assert differences(alone, found) == []


@pytest.mark.check
def test_the_log_of_a_sharded_run_is_that_of_a_whole_one(steps: tuple[Path, list[Any]]) -> None:
    folder, (alone, *_) = steps
    for kind, oracle in KINDS.items():
        one, two = (folder / f"{kind}.{count}.log" for count in (1, 2))
        assert one.read_bytes() == two.read_bytes()
        start = model()
        law = ZerothOrder(generator="portable", **oracle).distribution
        assert replay(two, {0: partition(start)["base"]}, {0: law}) == 3
        base = {id(p) for p in partition(start)["base"].params}
        names = [name for name, p in start.named_parameters() if id(p) in base]
        assert all(torch.equal(p, alone[f"{kind}: {name}"]) for name, p in start.named_parameters() if name in names)
