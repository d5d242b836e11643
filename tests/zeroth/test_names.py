"""One table of distributions: a class and an entry are all that a new one takes, everywhere that distributions go."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.__main__ import main
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import moment
from smoothlab.blocks import Block
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import draw, named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Cumulants
from smoothlab.zeroth.moments import Taylor, linear_factor, mean, second_moment
from smoothlab.zeroth.names import DISTRIBUTIONS
from smoothlab.zeroth.rng import Piece, Stream
from tests.cases import ESTIMATORS, OBJECTIVES, symmetric


@dataclass(frozen=True)
class Threefold(Distribution):
    """Entries 0 with probability 1 - p and +-1/sqrt(p) else."""

    p: float = 0.5

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        out.uniform_(-1, 1, generator=stream.generator(piece.tensor, piece.number))
        out.copy_(out.sign().mul_(out.abs() < self.p).mul_(self.p**-0.5))

    def cumulants(self) -> Cumulants:
        return Cumulants.of_moments(1 / self.p, 1 / self.p**2, 1 / self.p**3)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(DISTRIBUTIONS, "threefold", Threefold)
    yield "threefold(0.25)"


def block_of(vector: Tensor) -> Block:
    return Block("x", (nn.Parameter(vector.clone()),))


def test_a_new_distribution_has_closed_forms_that_its_estimates_agree_with(registered: str) -> None:
    rng, d, n = np.random.default_rng(0), 3, 6000
    g, hessian, third = (symmetric(rng, d, k) for k in (1, 2, 3))
    f = Taylor(g, hessian, third)
    block, terms = block_of(torch.zeros(d).double()), [torch.from_numpy(t) for t in (g, hessian, third)]

    def loss() -> Tensor:
        x = block.params[0]
        return terms[0] @ x + x @ terms[1] @ x / 2 + torch.einsum("i,j,k,ijk->", x, x, x, terms[2]) / 6

    estimator = ZerothOrder(0.5, sides=1, distribution=named(registered))
    found = torch.stack([estimator(loss, block, (1, i)).dense(block) for i in range(n)]).numpy()
    off = (found.mean(0) - mean(estimator, f)) / (found.std(0) / math.sqrt(n))
    assert np.abs(off).max() < 4
    squares = (found**2).sum(1)
    assert abs(squares.mean() - second_moment(estimator, f)) < 4 * squares.std() / math.sqrt(n)
    assert linear_factor(ZerothOrder(distribution=named(registered)), 10) == 10 - 1 + 4 == moment(10, registered)


def test_a_new_distribution_runs_algorithm_1_with_the_moment_of_its_closed_form(registered: str) -> None:
    f, start = OBJECTIVES["E1"], None
    start = torch.full((f.d_x + f.d_y,), 0.3).double()
    how = Algorithm1(1e-3, 1e-3, 1, distribution=registered, order="replace")
    directions = torch.empty(400, 5, f.d_x).double()
    how.run(f, start, replicas=3)
    named(registered).fill_replicas(directions, torch.empty(directions.shape), torch.Generator().manual_seed(0))
    assert set(directions.unique().tolist()) <= {-2.0, 0.0, 2.0}
    assert float(directions.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(3 / directions.numel()))


def test_a_new_distribution_takes_hybrid_steps_that_replay_from_a_log(registered: str, tmp_path: Path) -> None:
    start = torch.linspace(-1, 1, 12).double()
    blocks = {0: block_of(start), 1: block_of(start)}
    distributions = {0: named(registered)}
    log = SeedLog(tmp_path / "log", 0, {0: Block("x", blocks[0].params)}, distributions)
    group = {"params": blocks[0].params, "oracle": ZerothOrder(distribution=distributions[0]), "lr": 0.1, "name": "x"}
    optimizer = HybridSGD([group], log=log)
    for _ in range(3):
        optimizer.step(lambda: blocks[0].params[0].square().sum())
    assert b"Threefold(p=0.25)" in (tmp_path / "log").read_bytes()
    assert replay(tmp_path / "log", {0: blocks[1]}, distributions) == 3
    assert torch.equal(blocks[0].params[0], blocks[1].params[0]) and not torch.equal(blocks[0].params[0], start)


def test_a_new_distribution_is_measured_and_recorded_with_its_parameters(registered: str) -> None:
    small = Estimators(parts=("variance",), distributions=("gaussian", registered), draws=400, dims=(4,))
    rows = list(small.rows([]))
    names = [row["distribution"] for row in rows]
    assert names == ["gaussian", "gaussian", registered, registered]
    for row in rows:
        assert row["low"] <= row["reference"] <= row["high"]


def test_two_parameters_are_two_names() -> None:
    assert named("sparse(0.25)").name == "sparse(0.25)" != named("sparse").name == "sparse(0.1)"
    assert named("lowrank(2)").name == "lowrank(2)" and named("gaussian").name == "gaussian"


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_entry_is_its_class_in_lower_case_and_its_draws_have_the_second_moment_of_its_closed_form(name: str) -> None:
    distribution, n = named(name), 4000
    assert type(distribution).__name__.lower() == name == distribution.name.partition("(")[0]
    shapes = ((3, 2), (2,))
    block = Block("b", tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    z = torch.stack([draw(block, name, (5, i)) for i in range(n)])
    g = torch.linspace(-1, 2, 8).double()
    squares = (z @ g) ** 2 * z.square().sum(1) / (g @ g)
    expected = distribution.second_moment(shapes, gradient=g.numpy())[0]
    assert abs(squares.mean() - expected) <= 4 * squares.std() / math.sqrt(n) + 1e-9


def test_cases_and_defaults_name_every_entry() -> None:
    cases = {type(case.distribution) for case in ESTIMATORS.values()}
    defaults = {name.partition("(")[0] for name in Estimators().distributions}
    assert {type(named(name)) for name in DISTRIBUTIONS} <= cases and defaults == set(DISTRIBUTIONS)


@pytest.mark.parametrize("command", ["finetune", "estimators"])
def test_help_lists_the_entries(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = "".join(capsys.readouterr().out.split())
    assert "|".join(DISTRIBUTIONS) in words.replace("││", "")
