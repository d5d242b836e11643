"""Blocks that FSDP2 shards, in one process: steps are those of whole ones, and what would be wrong is refused."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from smoothlab.blocks import Block, by_name
from smoothlab.errors import BadInput
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog_file import fingerprint
from smoothlab.shards import LocalEntries, is_sharded
from smoothlab.zeroth.closures import evaluate
from smoothlab.zeroth.distributions import Gaussian, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.gathered import Gathered
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.muon import Muon
from smoothlab.zeroth.variants import Momentum
from tests.mutations import mutate


class Alone:
    """Peers of a process that has none."""

    count = 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums over one process."""


class Net(nn.Module):
    """An embedding that is also the head, layers, a norm, and an adapter that is trained by exact gradients."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 6)) for _ in range(2))
        self.norm = nn.LayerNorm(6)
        self.adapter = nn.Linear(6, 6)
        self.to(dtype)
        self.fails = False

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.words(numbers)
        for layer in self.layers:
            x = x + layer(x)
        if self.fails:
            raise OSError("the loss fails")
        x = self.norm(x + self.adapter(x))
        return functional.linear(x, self.words.weight)

    def loss(self) -> Tensor:
        """Of a fixed minibatch."""
        numbers = torch.arange(11)
        return functional.cross_entropy(self(numbers).float(), numbers.flip(0))

    def base(self) -> Block:
        return Block("x", tuple(p for name, p in self.named_parameters() if "adapter" not in name))


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """A group of processes that has one, whose rows are all rows."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


pytestmark = pytest.mark.usefixtures("one_process")


def sharded(net: Net, **more: Any) -> Net:
    from torch.distributed.fsdp import fully_shard  # takes two seconds

    ignored = set(net.adapter.parameters())
    for layer in net.layers:
        fully_shard(layer, **more)
    fully_shard(net, ignored_params=ignored, **more)
    return net


def optimizer(net: Net, peers: Any = Alone, **more: Any) -> HybridSGD:
    """Hybrid steps on the net; `more` are options of the estimator, and of HybridSGD."""
    options = {"masters": more.pop("masters", True)}
    base = {"params": net.base().params, "lr": 0.01, "name": "x", "variant": more.pop("variant", None)}
    base["oracle"] = ZerothOrder(layers=net if is_sharded(net.words.weight) else None, **more)
    made = HybridSGD([base, {"params": net.adapter.parameters(), "lr": 0.1, "name": "y"}], **options)
    made.peers = peers and peers()
    return made


def whole(p: Tensor) -> Tensor:
    return p.full_tensor() if is_sharded(p) else p.detach()  # type: ignore[attr-defined,no-any-return]


FORWARD: dict[str, Any] = {"perturb": "forward", "distribution": LowRank(2)}
KINDS: dict[str, dict[str, Any]] = {
    "forward": FORWARD,
    "forward, portable": {**FORWARD, "generator": "portable"},
    "forward, one-sided": {**FORWARD, "sides": 1, "q": 2, "average": "antithetic"},
    "forward, momentum": {**FORWARD, "variant": Momentum(0.5)},
    "forward, masters": {**FORWARD, "dtype": torch.bfloat16, "mu": 0.1},
    "weights": {},
    "weights, sphere": {"distribution": Sphere(), "generator": "portable"},
    "weights, one-sided": {"sides": 1, "q": 2},
    "weights, orthogonal": {"q": 2, "average": "orthogonal"},
    "weights, masters": {"dtype": torch.bfloat16, "mu": 0.1},
}


def trained(net: Net, **options: Any) -> list[Any]:
    """Losses, coefficients, the loss that a user sees after the steps, and the weights."""
    made, found = optimizer(net, **options), list[Any]()
    for _ in range(3):
        found.append(float(made.step(net.loss)))
        assert made.last is not None
        found.append(made.last.gradients["x"].terms)
    with torch.no_grad():
        found.append(float(net.loss()))
    return [*found, [whole(p) for p in net.state_dict().values()]]


def check_steps(kind: str) -> None:
    options = KINDS[kind]
    dtype = options.get("dtype", torch.float32)
    expected, start = trained(Net(dtype), **options), Net(dtype).state_dict()
    found = trained(sharded(Net(dtype)), **options)
    assert found[:-1] == expected[:-1]
    assert all(torch.equal(one, other) for one, other in zip(found[-1], expected[-1], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(found[-1], start.values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_a_whole_model_to_the_bit(kind: str) -> None:
    check_steps(kind)


def test_the_outermost_module_stays_gathered_and_is_resharded() -> None:
    """Without that a step would not move what a user's next forward pass sees."""
    net = sharded(Net())
    made = optimizer(net, **FORWARD)
    with torch.no_grad():
        net.loss()
    assert not is_sharded(net.words.weight) and is_sharded(net.layers[0][0].weight)  # type: ignore[index]
    made.step(net.loss)
    assert is_sharded(net.words.weight)


@pytest.mark.parametrize("options", [FORWARD, {}], ids=["forward", "weights"])
def test_an_exception_leaves_everything_as_it_was(options: dict[str, Any]) -> None:
    net = sharded(Net())
    block, estimator = net.base(), ZerothOrder(layers=net, **options)
    estimator(net.loss, block, [1])
    before = [whole(p).clone() for p in block.params]
    value, net.fails = evaluate(net.loss, block), True
    with pytest.raises(OSError, match="the loss fails"):
        estimator(net.loss, block, [1])
    net.fails = False
    assert evaluate(net.loss, block) == value
    assert all(torch.equal(whole(p), q) for p, q in zip(block.params, before, strict=True))
    assert all(len(m._forward_pre_hooks) < 2 for m in net.modules()), "FSDP2 has one"


def test_layers_make_no_difference_to_a_whole_model_that_is_moved_inside_the_forward_pass() -> None:
    net, seed = Net(), [1]
    with_layers = ZerothOrder(layers=net, **FORWARD)(net.loss, net.base(), seed)
    assert with_layers.terms == ZerothOrder(**FORWARD)(net.loss, net.base(), seed).terms


def own_loop(net: Net) -> list[Any]:
    """Coefficients and weights of steps without HybridSGD."""
    block, found = net.base(), list[Any]()
    estimator = ZerothOrder(layers=net, **FORWARD)
    for step in range(3):
        gradient = estimator(net.loss, block, [step])
        gradient.add_to(block, -0.1)
        found.append(gradient.terms)
    return [*found, [whole(p).tolist() for p in block.params]]


def check_own_loop() -> None:
    assert own_loop(sharded(Net())) == own_loop(Net())


def test_steps_of_a_loop_of_ones_own_are_those_of_a_whole_model() -> None:
    check_own_loop()


# Broken on purpose

MUTATIONS: dict[str, tuple[tuple[Any, str], str, str, Callable[[], None]]] = {
    "only what is whole moves": (
        (Gathered, "inside"), "stand(tensors)", "stand({})", lambda: check_steps("forward")
    ),
    "estimates see the weights before the last step": (
        (Gathered, "reshard"), "unit.reshard()", "pass", check_own_loop
    ),
    "others see them": (
        (HybridSGD, "_move"), "reshard(group", "print(group", lambda: check_steps("forward")
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_code_is_seen(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, old, new, check = MUTATIONS[mutation]
    mutate(monkeypatch, where, old, new)
    with pytest.raises(AssertionError):
        check()


# Refused


def steps(**options: Any) -> Callable[[], object]:
    def call() -> object:
        net = sharded(Net())
        return optimizer(net, **{**FORWARD, **options}).step(net.loss)

    return call


def estimate(loss: Callable[[Net], Tensor], **options: Any) -> Callable[[], object]:
    def call() -> object:
        net = sharded(Net())
        return ZerothOrder(layers=net, **(options or FORWARD))(lambda: loss(net), net.base(), [1])

    return call


def with_exact_rows() -> None:
    net = sharded(Net())
    HybridSGD([{"params": net.words.parameters(), "name": "words"}])


def gathered_before(*, directly: bool = False) -> None:
    net = sharded(Net())
    with torch.no_grad():
        net.loss()
    block, estimator = net.base(), ZerothOrder(layers=net, **FORWARD)
    if directly:
        estimator(net.loss, block, [1])
    HybridSGD([{"params": block.params, "oracle": estimator, "name": "x"}])


def of_another_model() -> None:
    net = sharded(Net())
    ZerothOrder(layers=sharded(Net()), **FORWARD)(net.loss, net.base(), [1])


def by_another_run() -> None:
    net = sharded(Net())
    ZerothOrder(layers=net, **FORWARD)(lambda: net.layers[0](torch.ones(1, 6)).sum(), net.base(), [1])


def widened() -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    net = Net()
    net.adapter.bfloat16()
    sharded(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    ZerothOrder(layers=net, **FORWARD)(net.loss, net.base(), [1])


def by_columns() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    p = nn.Parameter(distribute_tensor(torch.ones(2, 3), init_device_mesh("cpu", (1,)), [Shard(1)]))
    LocalEntries(p)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no module": (
        lambda: HybridSGD([{"params": sharded(Net()).base().params, "oracle": ZerothOrder(), "name": "x"}]),
        r"the parameters of 'x' are sharded \(DTensor\): use ZerothOrder\(layers=model\), with the model that fully_",
    ),
    "no module, directly": (
        lambda: (lambda net: ZerothOrder()(net.loss, net.base(), [1]))(sharded(Net())), "use ZerothOrder.layers=model"
    ),
    "exact": (
        with_exact_rows,
        r"group 'words' has no oracle, but a sharded parameter \(DTensor\) of shape \(11, 6\): keep it whole in each "
        r"process, fully_shard\(..., ignored_params=",
    ),
    "no peers": (steps(peers=None), "whose rows must all move alike: set its attribute peers"),
    "parallel": (steps(parallel=2), "goes neither with parallel evaluations"),
    "keep": (steps(perturb="weights", distribution=Gaussian(), keep=True), "nor with directions that are kept"),
    "muon": (steps(variant=Muon()), "its variant's update is a Orthogonalized of whole matrices"),
    "gathered before": (gathered_before, r"a parameter of shape \(11, 6\) that FSDP2 had gathered .*: call reshard"),
    "gathered before, directly": (
        lambda: gathered_before(directly=True), r"a parameter of shape \(11, 6\) that FSDP2 had gathered"
    ),
    "another model": (of_another_model, r"a sharded parameter \(DTensor\) of shape \(11, 6\) that no FSDP2 module"),
    "not run": (by_another_run, r"its parameter of shape \(11, 6\) is gathered in no forward pass of the loss"),
    "a penalty before": (
        estimate(lambda net: float(net.layers[0][0].weight.norm()) + net.loss()),  # type: ignore[index,operator,union-attr]
        r"its sharded parameter of shape \(7, 6\) is read by norm outside of the forward passes",
    ),
    "a penalty after": (
        estimate(lambda net: net.loss() + 0 * net.words.weight.square().sum()),
        r"of shape \(11, 6\) is read by square outside of the forward passes",
    ),
    "a penalty, weights": (
        estimate(lambda net: net.loss() + 0 * net.words.weight.data.sum(), perturb="weights"), "is read by data outside"
    ),
    "mixed precision": (
        widened, "FSDP2 gathers torch.float32 parameters of block 'x' in torch.bfloat16: leave mp_policy out"
    ),
    "columns": (
        by_columns, r"a parameter of shape \(2, 3\) is placed as \(Shard\(dim=1\),\): use fully_shard on a mesh"
    ),
    "factors": (
        lambda: optimizer(sharded(Net(torch.bfloat16)), masters="factors", **FORWARD),
        r"masters 'factors' for group 'x', whose parameters are sharded \(DTensor\): use masters in float32",
    ),
    "a log": (lambda: fingerprint([sharded(Net()).base()]), "make the log, or replay it, with the whole model, before"),
    "measured": (lambda: by_name([sharded(Net()).base()]), r"sharded parameters \(DTensor\), which cannot be measured"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_right_is_refused_in_one_line(name: str) -> None:
    call, words = BAD[name]
    with pytest.raises(BadInput, match=words) as error:
        call()
    assert "\n" not in str(error.value)
