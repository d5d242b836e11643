"""What the model cards of --save tell of a fine-tuning: what was trained, on which data, by which command, how well."""

import importlib.metadata
import shlex
from dataclasses import fields
from typing import Any

from smoothlab.environment import PACKAGES
from smoothlab.experiments.finetune.config import FinetuneOptions
from smoothlab.experiments.finetune.options import grid, used
from smoothlab.experiments.options import option


def command(run: FinetuneOptions) -> str:
    """The command line of a run, with every option that is not at its default."""
    words = ["smoothlab", "finetune"]
    for field in fields(run):
        value = getattr(run, field.name)
        if value != field.default:
            words += [option(field.name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return " ".join(map(shlex.quote, words))


def story(run: FinetuneOptions, test: dict[str, Any]) -> str:
    """What was trained, on which data, by which command and with which result, in Markdown.

    Args:
        run: as configured.
        test: the record of the test, which tells of the best evaluation on dev as well.
    """
    rates = ", ".join(f"{name} {test[name]:g}" for name in used(run.method))
    trials = f", trial {test['trial'] + 1} of {len(grid(run))}" if run.search else ""
    rows = {
        "trained": f"{run.method}: {run.recipe.description.format(run.module)}",
        "scored by": "a classifier's head" if test["head"] == "classifier" else "the language model's own head",
        "data": f"`{run.data}` ({test['served']}), at most {run.train:,d} items to train on, {run.dev:,d} to select by",
        "rates": f"{rates}, {run.schedule} schedule",
        "steps": f"{run.steps:,d} at most, of {run.batch} items each; seed {run.seed}",
        "selected": f"step {test['step']:,d}{trials}, {100 * test['dev_accuracy']:.1f} % right on dev",
        "test accuracy": f"{100 * test['accuracy']:.1f} % of {test['count']:,d} items, looked at once (95 % interval "
        f"for the items alone: {100 * test['low']:.1f} to {100 * test['high']:.1f} %; guessing: "
        f"{100 * test['chance']:.1f} %; always the most frequent answer: {100 * test['majority']:.1f} %)",
        "precision": run.dtype,
        "made with": ", ".join(f"{name} {version}" for name in PACKAGES[:4] if (version := _version(name))),
    }
    table = "\n".join(f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows.items())
    return f"| | |\n|---|---|\n{table}\n\n```bash\n{command(run)}\n```\n"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
