"""Fig. 1a and 1b in small: the built-in model on the built-in sentences, measured, drawn and read out on one page."""

from dataclasses import replace
from pathlib import Path

from smoothlab.experiments.smoothness import Smoothness
from smoothlab.records import Row, run

# So few steps move the weights only with a rate well above that of Appendix D.4 (5e-5 over 5,000 steps).
STEPS, POINTS, PROBES, RATE = 150, 6, 20, 2e-2


def runs(seed: int) -> dict[str, Smoothness]:
    """The two runs by the figure they are for: full fine-tuning (1a); base and LoRA jointly (1b)."""
    small = Smoothness(
        model="micro", data="builtin", peft="none", blocks="part", steps=STEPS, points=POINTS, lr=RATE,
        protocol="both", probes=PROBES, seed=seed, measure=("base",),
    )  # fmt: skip
    return {"fig1a": small, "fig1b": replace(small, peft="lora", measure=("base", "peft"))}


def measure_and_draw(folder: Path, *, seed: int, environment: Row, overwrite: bool) -> Path:
    """Measure both runs into `folder` (continuing what was stopped), draw the figures, and write the page.

    Returns:
        The path of `index.html`.

    Raises:
        BadInput: `folder` cannot be written, or holds records of other settings.
    """
    records = {
        figure: run(experiment, folder / f"{figure}.jsonl", environment=environment, overwrite=overwrite)
        for figure, experiment in runs(seed).items()
    }

    from smoothlab.report import demo_report

    return demo_report(folder, records["fig1a"], records["fig1b"])
