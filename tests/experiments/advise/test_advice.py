"""Advice on quadratics: rates below their limits, a mu, what they cost, and nothing left of the measuring."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import smoothlab
from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.advise import advice as advice_module
from smoothlab.experiments.advise.advice import FRACTION, MINIBATCHES, RUNS, Advice, advise, rates_of
from smoothlab.experiments.advise.config import default_budget, default_run
from smoothlab.experiments.advise.predicting import predicted_limit
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.stats.intervals import Interval
from smoothlab.stats.thresholds import threshold
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from tests.experiments.advise.quadratics import hybrid, raised, trainer_of


def limit_of(advice: Advice, option: str) -> Interval:
    """The stability limit that advice rests on."""
    rows = [row for row in advice.rows if row["part"] == "limit" and row["option"] == option]
    return Interval(*(rows[-1][end] for end in ("value", "low", "high")))


@pytest.mark.parametrize("by", ["predict", "try", "confirm", "auto"])
def test_each_way_finds_the_edge_of_gradient_descent(by: Any) -> None:
    advice = advise(trainer_of([4.0, 1.0]), by=by, budget=1e6)
    (advised,) = advice.advised
    limit = limit_of(advice, "eta_x")
    assert advised.option == "eta_x" and limit.low <= 0.5 <= limit.high
    sources = {"predict": "predicted", "try": "tried"}
    assert advised.source == sources.get(by, "predicted and tried")
    assert advice.forwards > 0 and advice.seconds > 0 and advice.steps > 0


def test_a_hybrid_gets_both_rates_and_mu_and_stays_as_it_was() -> None:
    trainer, twin = hybrid(), hybrid()
    oracle = trainer.optimizer.param_groups[0]["oracle"]
    advice = smoothlab.advise(trainer, budget=1e6)
    assert [advised.option for advised in advice.advised] == ["mu", "eta_y", "eta_x"]
    y, x = (limit_of(advice, option) for option in ("eta_y", "eta_x"))
    edge = 2 / 12  # the mean-square edge; what runs of 60 steps show is up to twice as large
    assert y.low <= 0.5 <= y.high and x.low <= 2 * edge and x.high >= edge
    with pytest.raises(KeyError):
        advice["eta"]
    assert trainer.optimizer.param_groups[0]["oracle"] is oracle
    for each in (trainer, twin):
        for _ in range(3):
            each.update()
    for name in ("base", "peft"):
        assert torch.equal(trainer.blocks[name].params[0], twin.blocks[name].params[0])


def test_a_hybrids_zeroth_order_rate_fits_the_curvature_that_the_module_leads_to() -> None:
    trainer = raised()
    advice = advise(trainer, by="predict", budget=1e6)
    assert advice["eta_y"].value == pytest.approx(FRACTION["exact"] * 2, rel=1e-5)
    limits = []
    for eta_y in (0.0, advice["eta_y"].value):
        limit = predicted_limit(
            trainer, trainer.blocks["base"], rates={"peft": eta_y}, minibatches=MINIBATCHES, seed=(0, 3)
        )
        limits.append(limit.limit.value)
    assert advice["eta_x"].value == pytest.approx(FRACTION["zeroth"] * limits[1], rel=1e-3)
    assert limits[1] < limits[0] / 2


def test_a_larger_negative_eigenvalue_sets_no_limit() -> None:
    """f = -2 x^2 + y^2 from x = 0, where nothing moves x: the limit is that of y alone."""
    trainer = trainer_of([-4.0, 2.0])
    with torch.no_grad():
        trainer.blocks["base"].params[0][0] = 0.0
    advice = advise(trainer, by="confirm", budget=1e6)
    limit = limit_of(advice, "eta_x")
    assert advice["eta_x"].source == "predicted and tried" and limit.low <= 1.0 <= limit.high


def test_where_curvature_sets_no_limit_trying_goes_on_and_says_so() -> None:
    """f = x^4/4 - 2 x^2 at x = 1/2, where it curves downwards; beyond its minimum at 2 it rises steeply."""
    x = torch.nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64))

    def loss(model: Any, batch: Any) -> Tensor:
        return (x**4 / 4 - 2 * x**2).sum()

    optimizer = HybridSGD([{"params": [x], "lr": 0.01, "name": "base"}])
    trainer = Trainer(None, {"base": Block("base", (x,))}, lambda step: [0], loss, optimizer)
    (advised,) = advise(trainer, by="confirm", budget=1e6).advised
    assert advised.source == "tried" and "mostly negative" in str(advised.flag)
    with pytest.raises(BadInput, match="mostly negative"):
        advise(trainer, by="predict")


def test_where_no_rate_makes_the_loss_rise_the_prediction_stands_and_says_so() -> None:
    """f = log(1 + exp(-x)) bends upwards and falls with every step, however long."""
    x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = HybridSGD([{"params": [x], "lr": 0.01, "name": "base"}])
    trainer = Trainer(
        None, {"base": Block("base", (x,))}, lambda step: [0],
        lambda *_: torch.nn.functional.softplus(-x).sum(), optimizer,
    )  # fmt: skip
    advice = advise(trainer, by="confirm", budget=1e6)
    limit = limit_of(advice, "eta_x")
    assert limit.value == pytest.approx(2 / 0.25) and limit.high > 1e5
    assert "no eta_x up to" in str(advice["eta_x"].flag) and "the prediction stands" in str(advice["eta_x"].flag)
    with pytest.raises(BadInput, match="no eta_x from"):
        advise(trainer, by="try", budget=1e6)


def counting(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make time the number of evaluations of the loss: one a step, and one for each loss that a run is judged by."""
    evaluations = [0]
    loss = trainer.loss

    def counted(model: Any, part: Any) -> Any:
        evaluations[0] += 1
        return loss(model, part)

    trainer.loss = counted
    clock = SimpleNamespace(process_time=lambda: float(evaluations[0]), perf_counter=time.perf_counter)
    monkeypatch.setattr(advice_module, "time", clock)
    return evaluations


def test_a_small_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of([1.0] * 50)
    evaluations = counting(trainer, monkeypatch)
    advice = advise(trainer, by="try", budget=40, steps=10)
    runs = [row for row in advice.rows if row["part"] == "trial"]
    assert 1 <= len(runs) <= 4 and evaluations[0] <= 40


@pytest.mark.parametrize(
    ("parameters", "budget", "steps"),
    [(7_000_000_000, 100, 20), (135_000_000, 100, 20), (30_000_000, 450, 20), (13_500_000, 1000, 60), (2, 2000, 60)],
)
def test_small_models_are_given_the_time_to_try(parameters: int, budget: int, steps: int) -> None:
    assert (default_budget(parameters), default_run(budget)) == (budget, steps)


@pytest.mark.parametrize("chosen", [None, 100])
def test_the_budget_follows_from_the_whole_model(chosen: int | None) -> None:
    trainer = trainer_of([4.0, 1.0])
    with torch.device("meta"):  # 27 million parameters, of which two are trained
        trainer.model = torch.nn.Linear(27, 10**6, bias=False)
    advice = advise(trainer, by="try", budget=chosen)
    assert advice.budget == (chosen or 500)
    assert max(row["steps"] for row in advice.rows if row["part"] == "trial") == 20
    trainer.model = None
    assert advise(trainer, by="try").budget == 2000


def test_trying_ends_where_the_limit_is_known_to_a_factor_of_one_and_a_half() -> None:
    advice = advise(trainer_of([4.0, 1.0]), by="try", budget=1e6)
    assert advice["eta_x"].high <= 2.25 * advice["eta_x"].low


@pytest.mark.parametrize("by", ["try", "confirm"])
@pytest.mark.parametrize("budget", [60, 100, 150, 220])
def test_the_time_of_all_measuring_stays_within_the_budget(by: Any, budget: int, monkeypatch: Any) -> None:
    trainer = trainer_of([4.0, 1.0])
    evaluations = counting(trainer, monkeypatch)
    advice = advise(trainer, by=by, budget=budget, steps=10)
    assert 0.5 * budget < advice.steps <= budget
    # Losses at the start and at the end of runs are in it: counted by forward passes alone, they would not fit.
    assert advice.steps == evaluations[0]


@pytest.mark.parametrize(("budget", "minibatches"), [(100, 1), (400, 4)])
def test_a_prediction_leaves_time_for_runs(budget: int, minibatches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of([4.0, 1.0])
    seen = []
    monkeypatch.setattr(advice_module, "predicted_limit", lambda *args, **kwargs: seen.append(kwargs) or limit)
    limit = predicted_limit(trainer, trainer.blocks["base"])
    counting(trainer, monkeypatch)
    advice = advise(trainer, by="confirm", budget=budget)
    assert seen[0]["minibatches"] == minibatches
    assert sum(row["part"] == "trial" for row in advice.rows) >= RUNS["exact"]


def test_runs_of_20_steps_tell_the_limit_of_60() -> None:
    """The prior, the first rate tried and the limit are in units of the random walk's limits of 20 and of 60 steps."""
    trainer = trainer_of([4.0, 1.0, 1.0, 1.0], oracle=ZerothOrder())
    advice = advise(trainer, budget=1e6, steps=20)
    trials = [row for row in advice.rows if row["part"] == "trial"]
    limits = {row["source"]: row for row in advice.rows if row["part"] == "limit"}
    predicted = limits["predicted"]
    center = (predicted["low"] * predicted["high"]) ** 0.5
    shorter = trials[0]["rate"] / center
    assert 1.4 < shorter < 1.7
    seen = ([row["rate"] for row in trials], [row["loss_after"] > 1.01 * row["loss_before"] for row in trials])
    prior = Interval(*(shorter * predicted[end] for end in ("value", "low", "high")))
    for source, alone in (("tried", threshold(*seen)), ("predicted and tried", threshold(*seen, prior))):
        told = [limits[source][end] for end in ("value", "low", "high")]
        assert told == pytest.approx([end / shorter for end in alone])
    (best,) = (row for row in advice.rows if row["part"] == "comparison" and row["loss_after"] == least(advice))
    expected = best["factor"] * FRACTION["zeroth"] * limits["predicted and tried"]["value"]
    assert advice["eta_x"].value == pytest.approx(expected)


def least(advice: Advice) -> float:
    """The lowest loss of the runs that compare rates."""
    return min(row["loss_after"] for row in advice.rows if row["part"] == "comparison")


def test_of_three_longer_runs_the_lowest_loss_decides() -> None:
    """f = 2 x^2 + y^2/2 from (1, 1): at 1/4, 1/2 and 3/4 of 2/lambda_max y shrinks by 7/8, 3/4 and 5/8 a step."""
    advice = advise(trainer_of([4.0, 1.0]), budget=1e6)
    runs = {row["factor"]: row["loss_after"] for row in advice.rows if row["part"] == "comparison"}
    assert runs[2.0] < runs[1.0] < runs[0.5] and advice.forwards > 3 * 200 * 3
    limit = limit_of(advice, "eta_x")
    expected = [0.75 * end for end in limit]  # and not 2 times 1/2, where a run would stand still
    assert [advice["eta_x"].value, advice["eta_x"].low, advice["eta_x"].high] == pytest.approx(expected)


@pytest.mark.parametrize(("by", "budget", "compares"), [("predict", 1e6, 0), ("try", 999, 0), ("try", 2000, 3)])
def test_only_an_ample_budget_is_kept_for_longer_runs(by: Any, budget: float, compares: int, monkeypatch: Any) -> None:
    trainer = trainer_of([4.0, 1.0])
    counting(trainer, monkeypatch)
    advice = advise(trainer, by=by, budget=budget)
    assert sum(row["part"] == "comparison" for row in advice.rows) == compares and advice.steps <= budget
    if not compares:
        assert advice["eta_x"].value == pytest.approx(FRACTION["exact"] * limit_of(advice, "eta_x").value)


def test_groups_of_one_option_share_its_rate() -> None:
    rates = rates_of(hybrid())
    assert [(rate.option, rate.names, rate.kind) for rate in rates] == [
        ("eta_y", ["peft"], "exact"), ("eta_x", ["base"], "zeroth")
    ]  # fmt: skip


def test_a_block_that_the_loss_does_not_depend_on_is_refused_in_one_line() -> None:
    for oracle in (None, ZerothOrder()):
        trainer = trainer_of([1.0], oracle=oracle)
        trainer.loss = lambda model, part: torch.ones((), dtype=torch.float64, requires_grad=True)
        with pytest.raises(BadInput, match="depend") as caught:
            advise(trainer, by="try")
        assert "\n" not in str(caught.value)
