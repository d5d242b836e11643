"""The estimators experiment: intervals that cover, the U-curve's prediction, rows, resumption, bad input."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.estimators import bias_variance, model_blocks, synthetic, ucurve
from smoothlab.experiments.estimators.config import ON_MODEL, SYNTHETIC
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.estimators.synthetic import Ridges
from smoothlab.experiments.finetune.setup import Setup
from smoothlab.stats import samples
from smoothlab.trainer import reshuffled
from smoothlab.zeroth.distributions import Gaussian, named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.moments import second_moment
from tests.experiments.toy import classifier_loss

SMALL = Estimators(
    parts=SYNTHETIC,
    functions=("cubic",),
    distributions=("gaussian", "rademacher"),
    draws=300,
    dim=4,
    dims=(4, 16),
    qs=(1, 4),
    mus=(1e-6, 1e-3, 1e-2, 1e-1),
    curve_mus=(1e-6, 1e-4, 1e-2, 1.0),
    curve_draws=50,
    precisions=("float64", "float32"),
)
TOY = replace(
    SMALL, parts=ON_MODEL, kinds=("gaussian", "one-sided", "orthogonal4"), model_draws=30, model_curve_draws=8,
    model_mus=(1e-5, 1e-3, 1e-1), rounds=6,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tasks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(path: Path) -> list[dict]:
    return [row for line in path.read_text().splitlines() if (row := json.loads(line))["kind"] == "row"]


def run(experiment: Estimators, out: Path) -> list[dict]:
    return rows_of(records.run(experiment, out, environment={}))


# ------------------------------------------------------------------------------------------------ coverage


@pytest.mark.parametrize(
    ("distribution", "n"),
    [("gaussian", 1000), pytest.param("sphere", 500, marks=pytest.mark.check), ("rademacher", 300)],
)
@pytest.mark.parametrize("sides", [2, 1])
def test_intervals_of_the_bias_cover_the_closed_form(distribution: str, n: int, sides: int, times: int = 400) -> None:
    """The interval of bias rows, from fresh directions each time; p-values are uniform, so 1 % lie under 0.01."""
    f, mu, rng = Ridges.random("cosh", 4, 5), 0.3, np.random.default_rng(0)
    estimator = ZerothOrder(mu, sides=sides, distribution=named(distribution))
    g, hessian = f.taylor(2).gradient, f.taylor(2).hessian
    expected = f.mean(estimator) - g
    held, small = 0, 0
    for _ in range(times):
        z = vectors(distribution, rng, n)
        c, z = synthetic.slopes(f, mu, sides, torch.tensor(z)[:, None], torch.float64)
        c, z = c[:, 0] - z[:, 0] @ g, z[:, 0]
        if sides == 1:
            c = c - mu / 2 * ((z @ hessian) * z).sum(1)
        found, p = bias_variance._along(c[:, None] * z, expected, 1.0)
        held += found.low <= np.linalg.norm(expected) <= found.high
        small += p < 0.01
    assert held / times >= 0.93 and small / times < 0.03, (held, small)


def vectors(distribution: str, rng: np.random.Generator, n: int) -> np.ndarray:
    z = rng.standard_normal((n, 4))
    if distribution == "rademacher":
        return np.sign(z)
    return 2 * z / np.linalg.norm(z, axis=1, keepdims=True) if distribution == "sphere" else z


def held_where_rounding_is_larger_than_the_bias() -> float:
    """Share of intervals of signs and coordinates that hold the closed form at mu far below the best."""
    held = []
    for seed in range(4):
        few = Estimators(
            parts=("bias",),
            functions=("cubic", "quartic"),
            distributions=("rademacher", "coordinate"),
            draws=500,
            mus=(1e-6, 1e-5),
            seed=seed,
        )
        for point in few.points():
            rows = bias_variance.bias(few, point["setting"])
            held += [r["low"] <= r["reference"] <= r["high"] for r in rows]
    return float(np.mean(held))


@pytest.mark.check
def test_intervals_of_signs_and_coordinates_allow_for_the_mean_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_where_rounding_is_larger_than_the_bias() >= 0.95
    monkeypatch.setattr(bias_variance, "REPEATING", ())
    assert held_where_rounding_is_larger_than_the_bias() < 0.5


def test_no_p_value_is_told_where_rounding_hides_the_vector() -> None:
    rng = np.random.default_rng(0)
    vectors, expected = 1e-12 * rng.standard_normal((500, 3)) + 1e-10, np.full(3, 1.1e-10)
    found, p = bias_variance._along(vectors, expected, 1.0, floor=1e-9)
    assert p is None and found.low < 0 < found.high
    assert bias_variance._along(vectors, expected, 1.0)[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("d", "n"), [(4, 1000), (32, 500)])
def test_intervals_of_squared_errors_cover_the_closed_form(d: int, n: int) -> None:
    f, estimator, rng = Ridges.random("quadratic", d, 5), ZerothOrder(0.1, sides=1, q=2), np.random.default_rng(0)
    taylor = f.taylor(2)
    square = float(taylor.gradient @ taylor.gradient)
    truth, held = second_moment(estimator, taylor) - square, 0
    for _ in range(400):
        z = torch.tensor(rng.standard_normal((n, 2, d)))
        found = synthetic.slopes(f, 0.1, 1, z, torch.float64).estimates
        interval = samples.mean_square(((found - taylor.gradient) ** 2).sum(1))
        held += interval.low <= truth <= interval.high
    assert held / 400 >= 0.93


def test_a_wrong_estimator_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A two-sided quotient over 2.002 mu: a thousandth too small, a bias of its own."""
    honest = synthetic.slopes
    monkeypatch.setattr(bias_variance, "slopes", lambda *a: honest(*a)._replace(c=honest(*a).c / 1.001))
    rows = [r for r in run(replace(SMALL, parts=("bias",)), tmp_path / "run.jsonl") if r["mu"] == 1e-2]
    assert all(r["p_value"] < 1e-6 for r in rows if r["dtype"] == "float64")


# ------------------------------------------------------------------------------------------------ what rows say


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run(SMALL, tmp_path_factory.mktemp("small") / "run.jsonl")


def test_rows_are_flat_complete_and_in_order(small: list[dict]) -> None:
    assert list(dict.fromkeys(row["setting"] for row in small)) == [point["setting"] for point in SMALL.points()]
    assert Counter(row["part"] for row in small) == {"bias": 16, "variance": 8, "averages": 9, "curve": 22}
    for row in small:
        assert {"measured", "low", "high", "reference", "predicted", "stream", "draws", "dtype", "d"} <= set(row)
        assert row["low"] <= row["measured"] <= row["high"] or row["quantity"] == "noise"
        assert not any(isinstance(value, dict | list) for value in row.values())
        assert row["stream"].startswith("cpu/")
    assert all(row["reference"] is not None for row in small if row["quantity"] in ("bias", "error"))


def test_means_of_squares_are_flagged_where_rare_draws_may_carry_them(small: list[dict]) -> None:
    squared = [row for row in small if row["quantity"] in ("error", "derivative error", "noise")]
    assert all(row.get("flag") == "rare draws" for row in squared if row["draws"] < 299)
    plain = [row for row in squared if row["part"] == "variance" and row["distribution"] == "gaussian"]
    assert len(plain) == 4 and not any("flag" in row for row in plain if row["draws"] >= 299)
    assert not any("flag" in row for row in small if row["part"] == "bias")


def test_the_bias_has_slope_2_until_rounding_turns_it(small: list[dict]) -> None:
    rows = [row for row in small if row["part"] == "bias" and row["sides"] == 2 and row["distribution"] == "gaussian"]
    double, single = ({r["mu"]: r for r in rows if r["dtype"] == t} for t in ("float64", "float32"))
    slope = np.log10(double[1e-1]["measured"] / double[1e-3]["measured"]) / 2
    assert slope == pytest.approx(2, abs=1e-3)
    assert abs(single[1e-6]["measured"]) > 1e3 * double[1e-3]["reference"] > 1e3 * double[1e-6]["reference"]


def test_the_interval_of_the_bias_is_far_below_it(small: list[dict]) -> None:
    """The variance of the plain mean would leave sqrt(d / draws) ||g||, a hundred times the bias."""
    row = next(r for r in small if r["part"] == "bias" and r["mu"] == 1e-2 and r["dtype"] == "float64")
    assert row["high"] - row["low"] < row["measured"] < (SMALL.dim / SMALL.draws) ** 0.5 / 100


def test_one_sided_pairs_are_two_sided_estimates(small: list[dict]) -> None:
    found = {(r["average"], r["sides"], r["q"]): r for r in small if r["part"] == "averages"}
    assert found["antithetic", 1, 4]["reference"] == pytest.approx(2 * found["plain", 2, 4]["reference"])


def test_a_stopped_run_ends_as_an_undisturbed_one(small: list[dict], tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    assert run(SMALL, whole) == small
    lines = whole.read_bytes().splitlines(keepends=True)
    for cut in (1, 13, 30, len(lines) - 1):
        again = tmp_path / f"cut{cut}.jsonl"
        again.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
        assert run(SMALL, again) == small, cut


# ------------------------------------------------------------------------------------------------ the U-curve


def test_noise_is_that_of_a_rounded_function() -> None:
    """cos rounded to multiples of q: errors uniform in +- q/2."""
    rng, q = np.random.default_rng(0), 1e-5
    places = rng.uniform(0, 6, 40)[:, None] + 3e-3 * ucurve.OFFSETS
    found = ucurve.noise(np.round(np.cos(places) / q) * q)
    assert found.low <= q / 12**0.5 <= found.high and found.high < 1.7 * found.low


def test_derivatives_of_a_quartic_along_a_line() -> None:
    step, h = 1e-2, np.array(ucurve.STENCIL)
    values = 1 + 2 * (step * h) + 3 * (step * h) ** 2 / 2 + 5 * (step * h) ** 3 / 6 + 7 * (step * h) ** 4 / 24
    second, third = ucurve.derivatives(values[None], step)
    assert second[0] == pytest.approx(3, abs=1e-3) and third[0] == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("sides", [1, 2])
def test_the_best_mu_is_where_the_prediction_is_lowest(sides: int) -> None:
    grid = np.logspace(-6, 2, 4001)
    lowest = grid[ucurve.predicted(grid, sides, 7.0, 1e-8).argmin()]
    assert ucurve.best(sides, 7.0, 1e-8) == pytest.approx(lowest, rel=3e-3)


def test_gaussian_spreads_are_the_root_mean_squares() -> None:
    taylor = Ridges.random("cosh", 5, 1).taylor(3)
    kappa, tau = ucurve.gaussian_spread(taylor.hessian, taylor.third)
    for spread, tensor in ((kappa, taylor.hessian), (tau, taylor.third)):
        assert spread**2 == pytest.approx(float(Gaussian().expectation(((5,),), [tensor, tensor])))


def test_two_sided_errors_are_predicted_and_so_is_the_best_mu(tmp_path: Path) -> None:
    experiment = replace(SMALL, parts=("curve",), curve_draws=1000, curve_mus=tuple(np.logspace(-6, -1, 11)),
                         precisions=("float32",))  # fmt: skip
    rows = [row for row in run(experiment, tmp_path / "run.jsonl") if row["sides"] == 2]
    for row in rows:
        if row["quantity"] == "derivative error":
            assert row["measured"] == pytest.approx(row["predicted"], rel=0.35), row["mu"]
    best = next(row for row in rows if row["quantity"] == "best mu")
    assert best["low"] <= best["predicted"] <= best["high"] and not best["edge"]


# ------------------------------------------------------------------------------------------------ on a model


class Network(nn.Module):
    """A tanh network with a skip connection of its own as the "PEFT module", in any precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        self.peft = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> SimpleNamespace:
        x = x.to(self.peft.weight.dtype)
        return SimpleNamespace(logits=self.base(x) + self.peft(x))


def setup(experiment: Any) -> Setup:
    model, generator = Network(), torch.Generator().manual_seed(1)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    blocks = {n: Block(n, tuple(getattr(model, n).parameters())) for n in ("base", "peft")}

    def batches(step: int) -> list[tuple[Tensor, Tensor]]:
        numbers = reshuffled(50, 8, 0, step)
        return [(x[numbers], labels[numbers])]

    nothing: Any = None
    return Setup(
        experiment, model, blocks, list(blocks.values()), batches,
        lambda numbers: (x[numbers], labels[numbers]), 6, classifier_loss,
        nothing, nothing, nothing, "made up", [], nothing,
    )  # fmt: skip


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smoothlab.experiments.smoothness.Smoothness.setup", setup)


def test_a_models_rows(toy: None, tmp_path: Path) -> None:
    rows = run(TOY, tmp_path / "run.jsonl")
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    assert settings[:4] == [f"model-curve/{b}/{t}" for b in ("base", "peft") for t in ("float64", "float32")]
    assert settings[4:7] == [f"model-variance/{kind}" for kind in TOY.kinds] and len(settings) == 13
    for row in rows:
        if row["quantity"] == "error":
            assert row["d"] == 178 and row["low"] <= row["reference"] <= row["high"]
        if row["quantity"] == "derivative error" and row["dtype"] == "float64" and row["mu"] == 1e-3:
            assert row["predicted"] / 3 < row["measured"] < 3 * row["predicted"]
        if row["quantity"] == "share of a step":
            assert 0 < row["low"] <= row["measured"] <= row["high"] < 1


def test_a_best_mu_at_the_end_of_the_grid_is_told(toy: None, tmp_path: Path) -> None:
    """In fp64 the error of this grid still falls at its least mu."""
    experiment = replace(TOY, parts=("model-curve",), measure=("base",), precisions=("float64",))
    best = [row for row in run(experiment, tmp_path / "run.jsonl") if row["quantity"] == "best mu"]
    assert [(row["measured"], row["edge"]) for row in best] == [(1e-5, True), (1e-5, True)]


def test_a_models_gradient_and_derivatives_are_those_of_its_rounded_weights(toy: None) -> None:
    model = model_blocks.Measured(TOY)
    before = [p.detach().clone() for p in model.model.parameters()]
    assert all(torch.equal(p, p.bfloat16().float()) for p in before)
    g, (kappa, tau) = model.gradients["base"], model.spreads["base"]
    assert kappa > 0 and tau > 0 and g.dtype == np.float64 and g.shape == (178,)
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters(), strict=True))
    block = model.blocks["base"]
    single = torch.cat([x.reshape(-1) for x in torch.autograd.grad(model.loss(), block.params)])
    np.testing.assert_allclose(single.numpy(), g, rtol=1e-4, atol=1e-6)


def test_a_stopped_run_on_a_model_measures_the_last_setting_again(toy: None, tmp_path: Path) -> None:
    experiment = replace(TOY, parts=("model-curve", "model-variance"), measure=("peft",), precisions=("float32",))
    whole, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    rows = run(experiment, whole)
    again.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:13]))
    assert run(experiment, again) == rows


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": ()}, "--parts names nothing"),
        ({"parts": ("bias", "bias")}, "--parts bias, bias names one twice"),
        ({"parts": ("bais",)}, "--parts bais is unknown: use some of bias, variance"),
        ({"distributions": ("cauchy",)}, "--distributions cauchy is unknown"),
        ({"draws": 99}, "--draws 99: use a number from 100 to 10000000"),
        ({"dim": 41}, "--dim 41: use a number from 2 to 40"),
        ({"dims": (4, 1)}, "--dims 1: use a number from 2"),
        ({"dims": (2000,)}, "--dims 2000: use a number from 2 to 1024"),
        ({"qs": (0, 1)}, "--qs 0: use a number from 1"),
        ({"qs": (65,)}, "--qs 65: use a number from 1 to 64"),
        ({"mu": 0.0}, "--mu 0.0: use a number from 1e-12"),
        ({"mu": float("nan")}, "--mu nan: use a number from 1e-12"),
        ({"mu": 100.0}, "--mu 100.0: use a number from 1e-12 to 10"),
        ({"mus": (1e-3, -1e-3)}, "--mus -0.001: use a number from 1e-12"),
        ({"mus": (1e-2, 1e-3)}, "--mus 0.01, 0.001: give two or more steps, ascending"),
        ({"model_mus": (1e-2,)}, "--model-mus 0.01: give two or more steps, ascending"),
        ({"precisions": ("float16",)}, "--precisions float16 is unknown: use some of float64, float32, bfloat16"),
        ({"rounds": 5}, "--rounds 5: use a number from 6"),
        ({"model_draws": 5}, "--model-draws 5: use a number from 6"),
        (
            {"draws": 10**7},
            "--draws 10000000 with --dims 4, 16 and --qs 1, 4 would hold 3.2e+08 numbers",
        ),
        ({"seed": -1}, "--seed -1: use a number from 0"),
        ({"device": "tpu"}, "--device tpu is unknown"),
        ({"measure": ("base", "base")}, "--measure base, base names one twice"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        run(replace(SMALL, **change), tmp_path / "run.jsonl")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run.jsonl").exists()


def test_an_unknown_block_is_named(toy: None, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--measure bass: no such block, use some of base, peft"):
        run(replace(TOY, measure=("bass",)), tmp_path / "run.jsonl")


def test_the_command_line_says_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for options, words in (
        (["--mu", "-1"], "--mu -1.0: use a number from 1e-12"),
        (["--parts", "pie"], "--parts pie is unknown: use bias, variance,"),
        (["--mus", "1e-3"], "--mus 0.001: give two or more steps"),
        (["--batch", "0"], "--batch 0: use a number from 1"),
        (["--draws", "abc"], "--draws abc: use a whole number"), (["--mu", "x"], "--mu x: use a number"),
        (["--mus", "a", "1"], "--mus a 1: use numbers, with spaces between them"),
        (["--dims", "4.5"], "--dims 4.5: use whole numbers, with"), (["--batch"], "--batch has no value: give one"),
    ):  # fmt: skip
        assert main(["estimators", *options]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"smoothlab: error: {words}") and told.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_help_explains_every_option_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smoothlab.__main__ import main\ntry: main(['estimators', '--help'])\nfinally: "
        "print({'torch', 'transformers', 'pandas', 'scipy', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0 and told.stderr == "set()\n"
    words = " ".join(told.stdout.replace("│", " ").split())
    for field in dataclasses.fields(Estimators):
        option = re.search(rf"--{field.name.replace('_', '-')} (.*?\(default)", words)
        assert option and len(option[1].split()) > 4, field.name


def test_a_model_without_a_peft_module_has_no_settings_of_one() -> None:
    """Neither in the plan nor in the count of the progress bar."""
    with_module = replace(SMALL, parts=ON_MODEL, peft="lora", measure=())
    without = replace(with_module, peft="none")
    names = [point["block"] for point in without.points() if "block" in point]
    assert dict.fromkeys(names) == {"base": None, "head": None}
    assert len(with_module.points()) - len(without.points()) == len(SMALL.precisions)


def test_the_plan_tells_settings_and_time(toy: None) -> None:
    plan = replace(SMALL, parts=SYNTHETIC + ON_MODEL, measure=()).plan()
    whole = replace(SMALL, parts=SYNTHETIC + ON_MODEL, measure=("base", "peft"))  # this model has no head
    assert f"{len(whole.points())} settings" in plan and "directions" in plan
    assert "base                  178 parameters" in plan and "forwards of" in plan and "minutes" in plan
