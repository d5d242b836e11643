"""Fig. 1a, 1b and 3, the estimators and the rates in small, of built-in model and data: measured, drawn, one page."""

from dataclasses import replace
from pathlib import Path

from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.experiment import Finetune, Method
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.records import Experiment, Row, run

# So few steps move the weights only with a rate well above that of Appendix D.4 (5e-5 over 5,000 steps).
STEPS, POINTS, PROBES, RATE = 150, 6, 20, 2e-2


# Estimators: few enough directions for half a minute.
SMALL = Estimators(
    functions=("cosh",),
    distributions=("gaussian", "rademacher", "lowrank"),
    draws=3000,
    dims=(4, 16, 64),
    qs=(1, 2, 4, 8),
    mus=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    curve_draws=400,
    measure=("base",),
    model_draws=12,
    kinds=("gaussian", "rademacher", "one-sided"),
    model_mus=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    model_curve_draws=6,
    rounds=6,
)

# Rates: every part, in half a minute.
SMALL_RATES = Rates(
    eps=(1.0,), deltas=(0.5,), families=("quadratic", "cosh-y"), orders=("reshuffle", "replace"),
    fit_eps=(0.4, 0.3, 0.2), fit_ns=(2, 4, 8), fit_deltas=(0.5, 0.2), replicas=60, max_steps=13_000,
)  # fmt: skip

# Fine-tuning: enough steps for the methods to part. Zeroth-order steps alone learn nothing in so few.
TUNED = Finetune(steps=120, eval_every=30, test=300, patience=0)
METHODS: dict[str, Method] = {"fo-lora": "fo-peft", "hybrid-lora": "hybrid", "zo": "zo"}


def runs(seed: int) -> dict[str, Smoothness]:
    """The two runs by the figure they are for: full fine-tuning (1a); base and LoRA jointly (1b)."""
    small = Smoothness(
        model="micro", data="builtin", peft="none", blocks="part", steps=STEPS, points=POINTS, lr=RATE,
        protocol="both", probes=PROBES, seed=seed, measure=("base",),
    )  # fmt: skip
    return {"fig1a": small, "fig1b": replace(small, peft="lora", measure=("base", "peft"))}


def measure_and_draw(folder: Path, *, seed: int, environment: Row, overwrite: bool) -> Path:
    """Measure all runs into `folder` (continuing what was stopped), draw the figures, and write the page.

    Returns:
        The path of `index.html`.

    Raises:
        BadInput: `folder` cannot be written, or holds records of other settings.
    """
    every: dict[str, Experiment] = {
        **runs(seed), "estimators": replace(SMALL, seed=seed), "rates": replace(SMALL_RATES, seed=seed),
    }  # fmt: skip
    tuned = {f"finetune-{name}": replace(TUNED, method=method, seed=seed) for name, method in METHODS.items()}
    every |= tuned
    records = {
        figure: run(experiment, folder / f"{figure}.jsonl", environment=environment, overwrite=overwrite)
        for figure, experiment in every.items()
    }

    from smoothlab.report.page import demo_report

    return demo_report(
        folder, records["fig1a"], records["fig1b"], records["estimators"], records["rates"],
        [records[name] for name in tuned],
    )  # fmt: skip
