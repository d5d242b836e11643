"""Whether the options of `smoothlab finetune` make sense together, told before anything is loaded."""

import itertools
import math
from dataclasses import fields
from typing import TYPE_CHECKING

from smoothlab.errors import BadInput
from smoothlab.experiments.options import check_fields, option
from smoothlab.llm.tasks.jsonlines import TEMPLATE

if TYPE_CHECKING:
    from smoothlab.experiments.finetune.experiment import Finetune
    from smoothlab.llm.tuning import Rates

RANGES = {
    "train": (1, 10**9), "dev": (1, 10**9), "test": (1, 10**9), "q": (1, 10**4), "steps": (0, 10**9),
    "batch": (1, 10**9), "parts": (1, 64), "eval_every": (1, 10**9), "patience": (0, 10**9), "seed": (0, 2**32 - 1),
}  # fmt: skip
"""Least and greatest value of whole numbers."""
MOST_TRIALS = 1000
ZEROTH, FIRST = ("hybrid", "zo"), ("hybrid", "fo-peft")
"""Methods with a zeroth-order base model, and with a PEFT module."""


def check(run: "Finetune") -> None:
    """Refuse values out of range, names that are none of the choices, and combinations that train nothing.

    Raises:
        BadInput: names the first option that is wrong, and what it may be.
    """
    from smoothlab.llm.memory import check_device
    from smoothlab.zeroth.distributions import named

    check_fields(run, RANGES)
    named(run.distribution, "--distribution")
    _check_method(run)
    for rates in grid(run):
        _check_rates(run, rates)
    if run.logged and run.method not in ZEROTH:
        raise BadInput(
            f"--checkpoint {run.checkpoint} with --method {run.method}: a seed log holds zeroth-order steps, which "
            f"{' and '.join(ZEROTH)} make; leave log: out"
        )
    if (run.template, run.verbalizers) != (TEMPLATE, ()) and not run.data.endswith((".jsonl", ".jsonl.gz")):
        given = "template" if run.template != TEMPLATE else "verbalizers"
        raise BadInput(
            f"{option(given)} with --data {run.data}, which has prompts of its own: leave it out, it is for JSON "
            "Lines files"
        )
    check_device(run.device)
    for field, folder in (("checkpoint", run.folder), ("save", run.save), ("tensorboard", run.tensorboard)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise BadInput(f"{option(field)} {folder} is a file: name a folder")


def grid(run: "Finetune") -> list["Rates"]:
    """Rates of each trial: all combinations of the values of --search; what it does not name is as given.

    Raises:
        BadInput: not of the form name=a,b,..., a name twice, or too many combinations.
    """
    from smoothlab.llm.tuning import Rates

    values: dict[str, list[float]] = {}
    for text in run.search:
        name, _, rest = text.partition("=")
        if name not in Rates._fields:
            raise BadInput(f"--search {text}: write name=a,b,... with a name of {', '.join(Rates._fields)}")
        if name in values:
            raise BadInput(f"--search {text}: {name} has values already; name each once")
        try:
            values[name] = [float(one) for one in rest.split(",")]
        except ValueError:
            raise BadInput(f"--search {text}: write {name}=a,b,... with numbers, e.g. {name}=1e-4,1e-3") from None
        if len(set(values[name])) < len(values[name]):
            raise BadInput(f"--search {text}: a value is there twice")
    every = [values.get(name, [getattr(run, name)]) for name in Rates._fields]
    if (count := math.prod(map(len, every))) > MOST_TRIALS:
        raise BadInput(f"--search asks for {count} combinations: at most {MOST_TRIALS}")
    return [Rates(*combination) for combination in itertools.product(*every)]


def used(method: str) -> tuple[str, ...]:
    """The rates, and mu, that a method uses."""
    there = {"eta_x": method != "fo-peft", "eta_y": method in FIRST, "mu": method in ZEROTH}
    return tuple(name for name, is_there in there.items() if is_there)


def unused(run: "Finetune") -> list[str]:
    """What to say of options that were given and that the method does not use."""
    idle = {"eta_x", "eta_y", "mu"} - {*used(run.method)} | (
        {"q", "sides", "distribution"} if run.method not in ZEROTH else set()
    )
    return [
        f"{option(f.name)} {getattr(run, f.name)} is not used by --method {run.method}"
        for f in fields(run)
        if f.name in idle and getattr(run, f.name) != f.default
    ]


def _check_method(run: "Finetune") -> None:
    if run.method in FIRST and run.peft == "none":
        raise BadInput(f"--peft none with --method {run.method}: name a PEFT method, or use zo or fo-full")
    if run.method not in FIRST and run.peft not in ("auto", "none"):
        raise BadInput(
            f"--peft {run.peft} with --method {run.method}, which trains the base model alone: leave --peft out, "
            "or use hybrid or fo-peft"
        )
    for text in run.search:
        name = text.partition("=")[0]
        if name in ("eta_x", "eta_y", "mu") and name not in used(run.method):
            raise BadInput(f"--search {text}: --method {run.method} uses no {name}")


def _check_rates(run: "Finetune", rates: "Rates") -> None:
    for name in ("eta_x", "eta_y"):
        value = getattr(rates, name)
        if not (math.isfinite(value) and value >= 0):
            raise BadInput(f"{option(name)} {value:g}: use a finite rate of at least 0")
    if not any(getattr(rates, name) for name in used(run.method) if name != "mu"):
        name = "eta_y" if run.method == "fo-peft" else "eta_x"
        raise BadInput(f"{option(name)} 0 with --method {run.method} trains nothing: give a rate above 0")
    if not (math.isfinite(rates.mu) and rates.mu > 0):
        raise BadInput(f"--mu {rates.mu:g}: use a finite step above 0, e.g. 1e-3")
