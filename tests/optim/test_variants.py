"""Variants on HybridSGD: steps, replay from a seed log, saved and continued, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, Rademacher
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.muon import Muon
from smoothlab.zeroth.names import VARIANTS
from smoothlab.zeroth.variant import Variant
from smoothlab.zeroth.variants import Adaptive, Momentum, Plain, Spread, Subspace

RUNS: dict[str, tuple[Variant, Distribution, int]] = {
    "plain": (Plain(), Gaussian(), 1),
    "momentum": (Momentum(0.6, 3), Rademacher(), 2),
    "adaptive": (Adaptive(0.8), Gaussian(), 2),
    "spread": (Spread(), Rademacher(), 3),
    "subspace": (Subspace(3), LowRank(1), 2),
    "muon": (Muon(), LowRank(1), 2),
}
"""Runs with each variant: distribution, number of directions."""


class Run:
    """A hybrid run on a small net with a schedule and decay."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, log: Path | None = None, keep: int | None = None):
        torch.manual_seed(0)
        variant, distribution, q = RUNS[name]
        self.module = nn.Sequential(nn.Linear(3, 5).to(dtype), nn.Tanh(), nn.Linear(5, 2))
        self.inputs = torch.randn(7, 3)
        self.block = Block("x", tuple(self.module[0].parameters()))
        oracle = variant.oracle(ZerothOrder(1e-2, distribution=distribution, q=q))
        written = None
        if log is not None:
            written = SeedLog(log, 5, {0: self.block}, {0: oracle.distribution}, keep, {0: variant})
        group = {"params": self.block.params, "lr": 0.05, "oracle": oracle, "name": "x", "variant": variant}
        groups: list[dict[str, Any]] = [
            group | {"weight_decay": 0.1},
            {"params": self.module[2].parameters(), "lr": 0.1},
        ]
        self.optimizer = HybridSGD(groups, seed=5, log=written)

    def loss(self) -> Tensor:
        hidden = self.module[0](self.inputs.to(self.block.params[0].dtype)).float()
        return nn.functional.cross_entropy(self.module[2:](self.module[1](hidden)), torch.arange(7) % 2)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.param_groups[0]["lr"] = 0.05 / (1 + self.optimizer.steps)
            self.optimizer.step(self.loss)

    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1).float() for p in self.module.parameters()])


def test_the_runs_are_of_all_variants() -> None:
    assert list(RUNS) == list(VARIANTS)
    ends = []
    for name in RUNS:
        run = Run(name)
        run.steps(4)
        ends.append(run.weights())
    assert all(not torch.equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


def test_steps_are_those_of_dense_updates() -> None:
    """Heavy ball as torch's SGD has it, with dampening beta and its bias at the start taken out."""
    run = Run("momentum")
    variant = Momentum(0.6, 20)
    group = run.optimizer.param_groups[0]
    optimizer = HybridSGD([{**{n: group[n] for n in ("params", "oracle")}, "lr": 0.05, "variant": variant}], seed=5)
    x = [p.detach().clone() for p in run.block.params]
    m = torch.zeros(run.block.dim)
    for t in range(8):
        optimizer.step(run.loss)
        assert optimizer.last is not None
        m = 0.6 * m + 0.4 * optimizer.last.gradients["group 0"].dense(run.block)
        for p, start, part in zip(run.block.params, x, run.block.split(m), strict=True):
            start -= 0.05 * part.view(start.shape) / (1 - 0.6 ** (t + 1))
            torch.testing.assert_close(p.detach(), start, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS)
def test_a_log_replays_to_the_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    run = Run(name, dtype, tmp_path / "log")
    passed = []
    for _ in range(7):
        run.steps(1)
        passed.append([p.detach().clone() for p in run.block.params])
    variant, oracle = RUNS[name][0], run.optimizer.param_groups[0]["oracle"]
    for until in (2, 5, 7):
        fresh = Run(name, dtype).block
        assert replay(tmp_path / "log", {0: fresh}, {0: oracle.distribution}, until, variants={0: variant}) == until
        assert all(torch.equal(p, q) for p, q in zip(fresh.params, passed[until - 1], strict=True))
    if variant != Plain():
        fresh = Run(name, dtype).block
        with pytest.raises(BadInput, match=r"is of steps of variant .*, these are plain: give the same variant"):
            replay(tmp_path / "log", {0: fresh}, {0: oracle.distribution})
        with pytest.raises(BadInput, match="is of steps of variant"):
            SeedLog(tmp_path / "log", 5, {0: fresh}, {0: oracle.distribution})


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_goes_on_to_the_bit(tmp_path: Path, name: str, logged: bool) -> None:
    whole = Run(name)
    whole.steps(9)
    log = tmp_path / "log" if logged else None
    begun = Run(name, log=log)
    begun.steps(5)
    torch.save((begun.optimizer.state_dict(), begun.module.state_dict()), tmp_path / "state")
    begun.steps(2)  # which are lost
    again = Run(name, log=log)
    state, weights = torch.load(tmp_path / "state", weights_only=True)
    again.module.load_state_dict(weights)
    again.optimizer.load_state_dict(state)
    again.steps(4)
    assert torch.equal(again.weights(), whole.weights())
    if log is not None:
        fresh, oracle = Run(name).block, again.optimizer.param_groups[0]["oracle"]
        replay(log, {0: fresh}, {0: oracle.distribution}, variants={0: RUNS[name][0]})
        assert all(torch.equal(p, q) for p, q in zip(fresh.params, again.block.params, strict=True))


def tensors_in(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sum(map(tensors_in, value))
    return int(isinstance(value, Tensor))


@pytest.mark.parametrize("name", RUNS)
def test_no_variant_holds_a_vector(name: str) -> None:
    run = Run(name)
    run.steps(5)
    assert not tensors_in(run.optimizer.state_dict()["variants"])
    assert not any(gradient.kept for gradient in run.optimizer.last.gradients.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", RUNS)
def test_a_step_that_is_not_logged_has_not_happened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = Run(name), Run(name, log=tmp_path / "log")
    whole.steps(6)
    run.steps(3)

    def full(*args: object) -> None:
        raise BadInput("no room")

    with monkeypatch.context() as during:
        during.setattr(SeedLog, "append", full)
        with pytest.raises(BadInput, match="no room"):
            run.steps(1)
    run.steps(3)
    assert torch.equal(run.weights(), whole.weights())


def test_what_is_refused_is_one_line(tmp_path: Path) -> None:
    x, y = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    refused: list[tuple[dict[str, Any], str]] = [
        (
            {"variant": Momentum()},
            "group 'x' has no oracle, but a variant of zeroth-order steps: leave the variant out",
        ),
        ({"oracle": ZerothOrder(), "variant": "momentum"}, "variant 'momentum' of group 'x': use one of smoothlab's"),
        ({"oracle": ZerothOrder(), "variant": Spread()}, "variant spread with q = 1 plain directions"),
        (
            {"oracle": ZerothOrder(), "variant": Subspace()},
            "with gaussian directions: it is made for low-rank",
        ),
    ]
    for options, words in refused:
        with pytest.raises(BadInput, match=words) as told:
            HybridSGD([{"params": [x], "name": "x", **options}])
        assert "\n" not in str(told.value)
    block = Block("x", (x,))
    log = SeedLog(tmp_path / "log", 0, {0: block}, {0: Gaussian()})
    with pytest.raises(BadInput, match=r"of variant plain, group 'x' takes steps of adaptive\(0.999\): make the log"):
        HybridSGD([{"params": [x], "name": "x", "oracle": ZerothOrder(), "variant": Adaptive()}], log=log)
    saved = HybridSGD([{"params": [y], "oracle": ZerothOrder(), "variant": Adaptive()}]).state_dict()
    with pytest.raises(BadInput, match=r"state is of variant adaptive\(0.999\), group 'group 0' is of plain"):
        HybridSGD([{"params": [y], "oracle": ZerothOrder()}]).load_state_dict(saved)


def test_states_of_before_there_were_variants_are_of_plain_steps() -> None:
    ends = []
    for old in (True, False):
        y = nn.Parameter(torch.ones(2))
        optimizer = HybridSGD([{"params": [y], "oracle": ZerothOrder()}])
        state = optimizer.state_dict()
        if old:
            del state["variants"]
        optimizer.load_state_dict(state)
        optimizer.step(lambda y=y: y.square().sum())
        ends.append(y.tolist())
    assert ends[0] == ends[1] != [1.0, 1.0]


def test_a_subspace_is_the_groups_own_and_the_given_estimator_stays() -> None:
    oracle = ZerothOrder(distribution=LowRank(2))
    optimizer = HybridSGD([{"params": nn.Parameter(torch.ones(4, 4)), "oracle": oracle, "variant": Subspace(7)}])
    assert optimizer.param_groups[0]["oracle"].distribution == KeptSubspace(2, 7) and oracle.distribution == LowRank(2)


@pytest.mark.parametrize("name", ["subspace", "muon", "adaptive"])
def test_moves_inside_the_forward_pass_make_the_same_steps(name: str) -> None:
    ends = []
    for perturb in ("weights", "forward"):
        run = Run(name)
        variant, _, q = RUNS[name]
        oracle = ZerothOrder(1e-2, distribution=LowRank(1), q=q, perturb=perturb)  # type: ignore[arg-type]
        group = {"params": run.block.params, "lr": 0.02, "oracle": oracle, "variant": variant}
        optimizer = HybridSGD([group], seed=5)
        for _ in range(7):
            optimizer.step(run.loss)
        ends.append(run.weights())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-5)
    assert float((ends[0] - Run(name).weights()).abs().max()) > 0.02
