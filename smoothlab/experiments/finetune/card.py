"""Text of the model cards of --save: what was trained, on which data, by which command, how well."""

import shlex
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from smoothlab.environment import PACKAGES
from smoothlab.experiments.finetune.config import FinetuneOptions
from smoothlab.experiments.finetune.options import grid, rates_used
from smoothlab.experiments.options import option


def command(run: FinetuneOptions) -> str:
    """The command line of a run, with every option that is not at its default."""
    words = ["smoothlab", "finetune"]
    for field in fields(run):
        value = getattr(run, field.name)
        if value == field.default:  # all 50 options would hide the few that were set
            continue
        if value is False:  # switches have no value: --path, --no-path
            words.append(option(f"no_{field.name}"))
            continue
        words.append(option(field.name))
        if isinstance(value, tuple):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def _result(test: dict[str, Any], trials: str) -> dict[str, str]:
    """Sentences on how the weights were selected, and their test score."""
    selected = f"step {test['step']:,d}{trials}"
    if "accuracy" in test:
        return {
            "selected": f"{selected}, {100 * test['dev_accuracy']:.1f} % right on dev",
            "test accuracy": f"{100 * test['accuracy']:.1f} % of {test['count']:,d} items, looked at once (95 % "
            f"interval for the items alone: {100 * test['low']:.1f} to {100 * test['high']:.1f} %; guessing: "
            f"{100 * test['chance']:.1f} %; always the most frequent answer: {100 * test['majority']:.1f} %)",
        }
    items = f"{test['count']:,d} items with {test['tokens']:,d} scored tokens, looked at once"
    rows = {
        "selected": f"{selected}, loss {test['dev_loss']:.4g} on dev",
        "test loss": f"{test['loss']:.4g} nats a token, mean over the {items}; {test['token_loss']:.4g} over all "
        "tokens",
    }
    if "exact_match" in test:
        rows["test answers"] = f"exact match {100 * test['exact_match']:.1f} %, F1 {100 * test['f1']:.1f} %"
    return rows


def story(run: FinetuneOptions, test: dict[str, Any]) -> str:
    """What was trained, on which data, by which command and with which result, in Markdown.

    Args:
        run: as configured.
        test: the record of the test, which repeats the best evaluation on dev.
    """
    rates = ", ".join(f"{name} {test[name]:g}" for name in rates_used(run.method))
    if run.follow:
        rates += f" at the start, set to a share of the predicted stability limit every {run.follow:,d} steps"
    trials, head = "", "the language model's own head"
    if run.search:
        trials = f", trial {test['trial'] + 1} of {len(grid(run))}"
    if test["head"] == "classifier":
        head = "a classifier's head"
    versions = []
    for name in PACKAGES[:4]:
        with suppress(PackageNotFoundError):  # smoothlab also runs from a checkout that is not installed
            versions.append(f"{name} {version(name)}")
    rows = {
        "trained": f"{run.method}: {run.recipe.description.format(run.module)}",
        "scored by": head,
        "data": f"`{run.data}` ({test['served']}), at most {run.train:,d} items to train on, {run.dev:,d} to select by",
        "rates": f"{rates}, {run.schedule} schedule",
        "steps": f"{run.steps:,d} at most, of {run.batch} items each; seed {run.seed}",
        **_result(test, trials),
        "precision": run.dtype,
        "made with": ", ".join(versions),
    }
    table = "| | |\n|---|---|\n"
    for name, text in rows.items():
        text = text.replace("|", r"\|")  # a bar in a path or pattern would end the cell
        table += f"| {name} | {text} |\n"
    return f"{table}\n```bash\n{command(run)}\n```\n"
