"""Rates that follow the curvature: what they are set to, runs that are continued to the bit, and what is refused."""

import itertools
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.predicting import predicted_limit
from smoothlab.experiments.finetune.following import GROWTH, SHARE, followed
from smoothlab.experiments.finetune.options import check
from tests.experiments.advise.quadratics import hybrid, trainer_of
from tests.experiments.test_finetune import run
from tests.experiments.toy_finetune import Toy

FOLLOWED = Toy(follow=8, checkpoint=None, eval_every=4, steps=16)
Row = dict[str, Any]


def rates(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == "rate"]


def losses(rows: list[Row]) -> list[Any]:
    return [(row["step"], row["train_loss"], row["dev_loss"]) for row in rows if row["part"] == "dev"]


def test_a_rate_is_a_share_of_the_limit_at_the_weights_of_the_step() -> None:
    """f = 2 x^2: 2/lambda = 0.5 for exact gradients; each block of a hybrid has its own."""
    trainer = trainer_of([4.0, 2.0])
    trainer.rates = {"base": 1.0}
    (row,) = followed(trainer, 0, 10, {})
    assert row["rate"] == trainer.rates["base"] == pytest.approx(SHARE * 0.5, rel=1e-6)
    assert row["limit"] == pytest.approx(0.5, rel=1e-6) and row["flag"] is None
    trainer = hybrid(curvature_x=1.0, curvature_y=4.0, dim=10)
    trainer.rates = {"base": 1.0, "peft": 1.0}
    chosen = {row["option"]: row["rate"] for row in followed(trainer, 0, 10, {})}
    limit = predicted_limit(trainer, trainer.blocks["base"], minibatches=1, seed=(0, 0, 3)).limit.value
    assert chosen == pytest.approx({"eta_y": 0.125, "eta_x": SHARE * limit}, rel=1e-6)


def test_curvature_is_that_of_the_present_weights() -> None:
    """f = x^4/12: the second derivative is x^2."""
    trainer = trainer_of([0.0])
    (x,) = trainer.blocks["base"].params
    trainer.loss = lambda model, batch: (x**4).sum() / 12
    trainer.rates = {"base": 1.0}
    for place in (1.0, 2.0, 4.0):
        with torch.no_grad():
            x.fill_(place)
        (row,) = followed(trainer, 0, 10, {})
        assert row["limit"] == pytest.approx(2 / place**2, rel=1e-6)


def test_a_mixed_spectrum_does_not_raise_the_rate() -> None:
    """Large eigenvalues of both signs and a wide bulk, as LoRA has: few Lanczos steps miss the largest by a half."""
    trainer = trainer_of([1.0, 0.5, 0.4, -0.9, -0.8, -0.7, *np.linspace(-0.3, 0.3, 10000).tolist()])
    trainer.rates = {"base": 1.0}
    limits = [next(followed(trainer, seed, 10, {}))["limit"] for seed in range(20)]
    assert limits == pytest.approx([2.0] * 20, rel=0.01)
    quick = [predicted_limit(trainer, trainer.blocks["base"], minibatches=1, seed=(s, 0, 3)) for s in range(20)]
    assert max(prediction.limit.value for prediction in quick) > 3.0, "five steps, before which runs are tried"


def test_a_rate_falls_at_once_and_rises_by_three_at_most() -> None:
    trainer = trainer_of([4.0, 2.0])
    trainer.rates = {"base": 1e-3}
    seen = [next(followed(trainer, 0, 10, {})) for _ in range(7)]
    assert [row["rate"] for row in seen] == pytest.approx([3e-3, 9e-3, 0.027, 0.081, 0.125, 0.125, 0.125], rel=1e-6)
    assert [row["flag"] is None for row in seen] == [False] * 4 + [True] * 3 and GROWTH == 3
    trainer.rates = {"base": 0.0}
    assert list(followed(trainer, 0, 10, {})) == []  # a block that is kept where it is


def test_the_least_of_the_last_three_limits_counts() -> None:
    """f = c x^2/2 with another c in each minibatch: 2/c is 0.5, 2, 1, 2, 2, 2, and 0.1 at last."""
    trainer = trainer_of([0.0])
    trainer.loss = lambda model, c: c * trainer.blocks["base"].params[0].square().sum() / 2
    curvatures = [4.0, 1.0, 2.0, 1.0, 1.0, 1.0, 20.0]
    trainer.batches = lambda step: [curvatures[step]]
    trainer.rates, limits, seen = {"base": 1.0}, {}, []
    for trainer.step in range(7):
        seen += followed(trainer, 0, 1, limits)
    assert [row["limit"] for row in seen] == pytest.approx([2 / c for c in curvatures], rel=1e-6)
    assert [4 * row["rate"] for row in seen] == pytest.approx([0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 0.1], rel=1e-6)
    least = "share of the least of the last"
    assert [str(row["flag"]).startswith(least) for row in seen] == [False, True, True, True, True, False, False]


def test_the_next_steps_are_made_at_the_rates_on_record(tmp_path: Path) -> None:
    """A run that measures once is one at constant rates: those of its rows; its cost is counted."""
    rows = run(replace(FOLLOWED, follow=100), tmp_path / "followed.jsonl")
    chosen = {row["option"]: row["rate"] for row in rates(rows)}
    assert set(chosen) == {"eta_x", "eta_y"} and [row["step"] for row in rates(rows)] == [0, 0]
    constant = run(replace(FOLLOWED, follow=0, **chosen), tmp_path / "constant.jsonl")
    assert losses(rows) == losses(constant)
    assert losses(rows) != losses(run(replace(FOLLOWED, follow=0), tmp_path / "configured.jsonl"))
    spent = [row["follow_gradients"] for row in rows if row["part"] == "dev"]
    assert spent == [0.0] + [pytest.approx(sum(row["gradients"] for row in rates(rows)), abs=0.06)] * 4


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.check)])
def test_a_stopped_followed_run_ends_as_an_undisturbed_one(tmp_path: Path, optimizer: Any) -> None:
    """Stopped within the rows of the rates, behind them, and behind a point that was measured after them."""
    measured = replace(
        FOLLOWED, optimizer=optimizer, measure=("peft",), points=3, precision=0.3, path=False,
        checkpoint=tmp_path / "whole",
    )  # fmt: skip
    wanted = run(measured, tmp_path / "whole.jsonl")
    assert [row["step"] for row in rates(wanted)] == [0, 0, 8, 8]
    later = [number for number, row in enumerate(wanted) if row["part"] == "rate" and row["step"] == 8]
    for stop in (later[0] + 1, later[1] + 1, later[1] + 4):
        again, out = replace(measured, checkpoint=tmp_path / f"{stop}"), tmp_path / f"{stop}.jsonl"
        writer = records.Writer(out, "toy", records._plain(again.__dict__), {})
        rows = again.rows([])
        for row in itertools.islice(rows, stop):
            writer.write(row)
        rows.close()
        writer._stack.close()
        assert run(again, out) == wanted, stop
    plain = run(replace(measured, measure=(), checkpoint=None), tmp_path / "plain.jsonl")
    assert losses(plain) == losses(wanted)


@pytest.mark.check
def test_a_seed_log_holds_a_followed_run(tmp_path: Path) -> None:
    """Steps of a log have rates of their own; the best weights are rebuilt from it."""
    logged = replace(FOLLOWED, checkpoint=Path(f"log:{tmp_path / 'log'}"), optimizer="adam")
    rows = run(logged, tmp_path / "log.jsonl")
    plain = run(replace(logged, checkpoint=None), tmp_path / "plain.jsonl")
    assert losses(rows) == losses(plain) and rows[-1]["right"] == plain[-1]["right"]


def test_the_cost_is_said_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(replace(FOLLOWED, steps=8), tmp_path / "run.jsonl")
    said = capsys.readouterr().err
    assert re.search(r"--follow 8 took \d+ forward passes' work, \d+\.\d\d of that of the 8 steps, and \d+ s\n", said)


def test_a_plan_says_how_often_and_what_it_costs() -> None:
    text = replace(FOLLOWED, steps=17).plan()
    assert re.search(r"sets the rates 3 times to follow the curvature, about \d+ gradients each time\n", text)
    assert "to follow the curvature" not in replace(FOLLOWED, follow=0).plan()


def test_adams_preconditioner_is_that_of_the_run_once_it_has_made_steps() -> None:
    trainer = trainer_of([4.0], exact=partial(torch.optim.Adam))
    first = predicted_limit(trainer, trainer.blocks["base"])
    for _ in range(10):
        trainer.update()
    later = predicted_limit(trainer, trainer.blocks["base"])
    assert first.gradients - later.gradients == 10
    state = trainer.optimizer.state_dict()["exact"]["state"][0]
    scale = float((state["exp_avg_sq"] / (1 - 0.999**10)).sqrt()) + 1e-8
    assert later.limit.value == pytest.approx(38 * scale / 4.0, rel=1e-6)


def test_no_limit_at_the_start_is_refused_in_one_line_and_later_the_rate_is_kept() -> None:
    trainer = trainer_of([-4.0, -1.0])
    with pytest.raises(BadInput, match=r"--follow 5 has no limit for eta_x to follow: .*mostly negative") as caught:
        list(followed(trainer, 0, 5, {}))
    assert "\n" not in str(caught.value)
    trainer.update()
    (row,) = followed(trainer, 0, 5, {})
    assert row["rate"] == trainer.rates["base"] == 1e-3
    assert row["flag"].startswith("kept, as no limit was predicted: ") and row["gradients"] > 0


REFUSED = {
    "narrow": ({"dtype": "bfloat16"}, "--follow 8 with --dtype bfloat16"),
    "searched": ({"search": ("eta_y=0.1,0.2",)}, "--follow 8 with --search eta_y=0.1,0.2"),
    "negative": ({"follow": -1}, "--follow"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_fit_are_refused(case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(BadInput, match=words):
        check(replace(FOLLOWED, **options))
