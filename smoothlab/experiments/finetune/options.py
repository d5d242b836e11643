"""Whether the options of `smoothlab finetune` and `smoothlab smoothness` fit together, before anything loads."""

import itertools
import math
import sys
from dataclasses import fields

from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import METHODS, NARROW, FinetuneOptions, Rates, Training
from smoothlab.experiments.options import check_fields, option
from smoothlab.llm.memory import check_device
from smoothlab.llm.tasks.jsonlines import TEMPLATE

RANGES = {
    "train": (1, 10**9), "dev": (1, 10**9), "test": (1, 10**9), "q": (1, 10**4),
    "steps": (0, 10**9), "batch": (1, 10**9), "parts": (1, 64), "points": (1, 10**6), "probes": (2, 10**6),
    "over": (0, 10**9), "diagonal": (0, 10**9), "eval_every": (1, 10**9), "answer_tokens": (0, 10**4),
    "patience": (0, 10**9), "follow": (0, 10**9), "seed": (0, 2**32 - 1),
}  # fmt: skip
"""Least and greatest value of whole numbers; seeds are shifted by 2^20 and must stay below torch's 2^63."""
MOST_TRIALS = 1000
PRECISE = ("frobenius", "trace", "gauss_newton_trace")
"""Quantities that --precision takes."""
ZEROTH = tuple(name for name, recipe in METHODS.items() if recipe.base == "zeroth")
RENAMED = {
    "finetune": {"--rule": "--optimizer", "--law": "--distribution"},
    "smoothness": {
        "--lr": "--eta-x and --eta-y", "--lr-block": "--eta-x, --eta-y, and --eta NAME=RATE for other blocks",
        "--keep-weights": "--checkpoint", "--schedule log": "--spacing log", "--rule": "--optimizer",
        "--protocol careful": "--protocol estimated",
    },
    "estimators": {"--laws": "--distributions"},
    "quadratic": {"--laws": "--distributions", "--longest": "--max-steps"},
    "rates": {
        "--law": "--distribution", "--longest": "--max-steps", "--every": "--all-combinations",
        "--buy-ratios": "--speedup-ratios", "--buy-dims": "--speedup-dims",
        "--parts buys": "--parts speedup_of_two_rates",
    },
}  # fmt: skip
"""Options of smoothlab 0.1 by subcommand, and their names of today."""


def check(run: Training) -> None:
    """Refuse values out of range, names that are none of the choices, and combinations that make no sense."""
    check_fields(run, RANGES)
    _check_directions(run)
    _check_variant(run)
    if run.rank is not None and run.rank < 1:
        raise BadInput(f"--rank {run.rank} is too small: use at least 1")
    if run.max_length is not None and run.max_length < 2:
        raise BadInput(f"--max-length {run.max_length} is too small: use at least 2 tokens")
    _check_method(run)
    trials = [run.rates]
    if isinstance(run, FinetuneOptions):
        trials = grid(run)
    for rates in trials:
        _check_rates(run, rates)
    _check_measuring(run)
    if isinstance(run, FinetuneOptions) and run.follow:
        _check_following(run)
    if run.logged and run.method not in ZEROTH:
        raise BadInput(
            f"--checkpoint {run.checkpoint} with --method {run.method}: a seed log holds zeroth-order steps, which "
            f"{' and '.join(ZEROTH)} make; leave log: out"
        )
    _check_prompts(run)
    if run.compute != "auto" and run.dtype not in NARROW:
        raise BadInput(
            f"--compute {run.compute} with --dtype {run.dtype}: it is for weights in 16 bits, leave it out or use "
            "--dtype bfloat16"
        )
    check_device(run.device)
    _check_folders(run)


def _check_prompts(run: Training) -> None:
    """Refuse prompts of the user's own with a task that has prompts."""
    if (run.template, run.verbalizers) == (TEMPLATE, ()) or run.data.endswith((".jsonl", ".jsonl.gz")):
        return
    name = "verbalizers"
    if run.template != TEMPLATE:
        name = "template"
    raise BadInput(
        f"{option(name)} with --data {run.data}, which has prompts of its own: leave it out, it is for JSON Lines files"
    )


def _check_folders(run: Training) -> None:
    """Refuse files where folders are written to: now, and not when the first file is written."""
    folders = {"checkpoint": run.folder}
    if isinstance(run, FinetuneOptions):
        folders |= {"save": run.save, "tensorboard": run.tensorboard}
    for name, folder in folders.items():
        if folder is not None and folder.exists() and not folder.is_dir():
            raise BadInput(f"{option(name)} {folder} is a file: name a folder")


def check_renamed(arguments: list[str]) -> None:
    """Refuse options of smoothlab 0.1 in one line that has the new option's name."""
    # As one text, because some renamed options are an option and its value, in either of two forms.
    line = " ".join(arguments).replace("=", " ") + " "
    for command, names in RENAMED.items():
        for old, new in names.items():
            if command in arguments and f" {old} " in line:
                raise BadInput(f"{old} of `smoothlab {command}` is {new} now")


def block_rates(run: Training) -> dict[str, float]:
    """Learning rates of --eta, by block."""
    rates: dict[str, float] = {}
    for text in run.eta:
        name, _, number = text.partition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if not name or not math.isfinite(rate) or rate < 0:
            raise BadInput(f"--eta {text}: write NAME=RATE with a finite rate of at least 0, e.g. layer.0=1e-6")
        if name in rates:
            raise BadInput(f"--eta {text}: block '{name}' has a rate already; name each block once")
        if name in ("base", "peft"):  # one rate, one option: the card and the rows name eta_x and eta_y
            rate_option = {"base": "--eta-x", "peft": "--eta-y"}[name]
            raise BadInput(f"--eta {text}: use {rate_option} {number} for block '{name}'")
        rates[name] = rate
    return rates


def grid(run: FinetuneOptions) -> list[Rates]:
    """Rates of each trial: all combinations of the values of --search; what it does not name is as configured."""
    values: dict[str, list[float]] = {}
    for text in run.search:
        name, _, numbers = text.partition("=")
        if name not in Rates._fields:
            raise BadInput(f"--search {text}: write name=a,b,... with a name of {', '.join(Rates._fields)}")
        if name in values:
            raise BadInput(f"--search {text}: {name} has values already; name each once")
        try:
            values[name] = [float(number) for number in numbers.split(",")]
        except ValueError:
            raise BadInput(f"--search {text}: write {name}=a,b,... with numbers, e.g. {name}=1e-4,1e-3") from None
        if len(set(values[name])) < len(values[name]):
            raise BadInput(f"--search {text}: a value is there twice")
    all_values = [values.get(name, [getattr(run, name)]) for name in Rates._fields]
    count = math.prod(map(len, all_values))
    if count > MOST_TRIALS:
        raise BadInput(f"--search asks for {count} combinations: at most {MOST_TRIALS}")
    return [Rates(*combination) for combination in itertools.product(*all_values)]


def rates_used(method: str) -> tuple[str, ...]:
    """The rates, and mu, that a method uses."""
    recipe = METHODS[method]
    names = []
    if recipe.base:
        names.append("eta_x")
    if recipe.module:
        names.append("eta_y")
    if recipe.base == "zeroth":
        names.append("mu")
    return tuple(names)


def unused(run: Training) -> list[str]:
    """A note on each option that was set and that the method does not use."""
    idle = set(Rates._fields) - set(rates_used(run.method))
    if run.method not in ZEROTH:
        idle |= {"q", "sides", "distribution", "variant", "generator", "masters", "parallel", "perturb"}
    if run.method == "zo":
        idle |= {"optimizer"}
    result = []
    for field in fields(run):
        value = getattr(run, field.name)
        if field.name in idle and value != field.default:
            result.append(f"{option(field.name)} {value} is not used by --method {run.method}")
    return result


def precisions(run: Training) -> dict[str, float]:
    """Precision of each quantity that --precision names; that of "frobenius" always, as a plain number or by default.

    Raises:
        BadInput: an unknown quantity, one that is named twice, or a number outside (0, 1).
    """
    words = [str(run.precision)]
    if isinstance(run.precision, tuple):
        words = list(run.precision)
    chosen: dict[str, float] = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        if not equals:
            name = "frobenius"
        if name not in PRECISE:
            raise BadInput(f"--precision {word}: write a number, or QUANTITY=NUMBER with one of {', '.join(PRECISE)}")
        if name in chosen:
            raise BadInput(f"--precision {word}: {name} has a precision already; name each once")
        try:
            chosen[name] = float(number)
        except ValueError:
            chosen[name] = math.nan
        if not 0 < chosen[name] < 1:
            raise BadInput(f"--precision {word}: use a number between 0 and 1, both excluded")
    return {"frobenius": 0.05} | chosen


def measuring_steps(run: Training) -> list[int]:
    """Steps of a run at which curvature is measured."""
    from smoothlab.hessian.trajectory import schedule

    if not run.measure:
        return []
    steps = schedule(run.steps, run.points, run.spacing)
    if len(steps) < run.points and run.steps:
        say(f"{len(steps)} points, not {run.points}: {run.steps} steps have no more distinct ones")
    return steps


def say(*notes: str) -> None:
    """Write notes to stderr, one a line; nothing for an empty one."""
    for note in notes:
        if note:
            print(f"smoothlab: {note}", file=sys.stderr)


def _check_directions(run: Training) -> None:
    from smoothlab.zeroth.distributions import named
    from smoothlab.zeroth.low_rank import LowRank

    distribution = named(run.distribution, "--distribution")
    if run.keeps_factors and run.dtype not in NARROW:
        raise BadInput(
            f"--masters factors with --dtype {run.dtype}: they are kept beside weights in 16 bits, add --dtype bfloat16"
        )
    if run.parallel < 1:
        raise BadInput(f"--parallel {run.parallel}: use at least 1")
    if run.parallel > 1 and not (run.moves_in_forward and run.sides == 2):
        raise BadInput(
            f"--parallel {run.parallel} with --sides {run.sides} and --perturb {run.perturb}: use --sides 2 and "
            "--perturb forward, or leave --parallel out"
        )
    if not run.moves_in_forward or run.method not in ZEROTH:
        return
    chosen = "perturb"
    if run.keeps_factors:
        chosen = "masters"
    if not isinstance(distribution, LowRank):
        raise BadInput(
            f"{option(chosen)} {getattr(run, chosen)} with --distribution {run.distribution}: use --distribution "
            f"lowrank, or leave {option(chosen)} out"
        )
    if run.keeps_factors and run.variant == "muon":
        raise BadInput("--masters factors with --variant muon, whose steps are of no low rank: leave one out")


def _check_method(run: Training) -> None:
    if run.recipe.module and run.peft == "none":
        raise BadInput(f"--peft none with --method {run.method}: name a PEFT method, or use zo or fo-full")
    if not run.recipe.module and run.peft not in ("auto", "none"):
        raise BadInput(
            f"--peft {run.peft} with --method {run.method}, which trains the base model alone: leave --peft out, "
            "or use hybrid or fo-peft"
        )
    if isinstance(run, FinetuneOptions):
        for text in run.search:
            name = text.partition("=")[0]
            if name in Rates._fields and name not in rates_used(run.method):
                raise BadInput(f"--search {text}: --method {run.method} uses no {name}")


def _check_rates(run: Training, rates: Rates) -> None:
    for name in ("eta_x", "eta_y"):
        rate = getattr(rates, name)
        if not (math.isfinite(rate) and rate >= 0):
            raise BadInput(f"{option(name)} {rate:g}: use a finite rate of at least 0")
    if not (math.isfinite(rates.mu) and rates.mu > 0):
        raise BadInput(f"--mu {rates.mu:g}: use a finite step above 0, e.g. 1e-3")
    trained = [getattr(rates, name) for name in rates_used(run.method) if name != "mu"]
    # Measuring at fixed weights, with all rates 0, is meant; training them is not.
    if not any((*trained, *block_rates(run).values())) and not run.measure:
        name = "eta_x"
        if run.method == "fo-peft":
            name = "eta_y"
        raise BadInput(f"{option(name)} 0 with --method {run.method} trains nothing: give a rate above 0")


def _check_variant(run: Training) -> None:
    from smoothlab.zeroth.distributions import named
    from smoothlab.zeroth.estimators import ZerothOrder
    from smoothlab.zeroth.variants import variant_named

    variant = variant_named(run.variant, "--variant")
    if run.method in ZEROTH:
        distribution = named(run.distribution, generator=run.generator)
        variant.oracle(ZerothOrder(sides=run.sides, distribution=distribution, q=run.q))


def _check_following(run: FinetuneOptions) -> None:
    from smoothlab.llm import distributed

    if run.variant != "plain":
        raise BadInput(
            f"--follow {run.follow} with --variant {run.variant}: the stability limits that rates follow are those of "
            "plain steps, leave one out"
        )
    if run.dtype in NARROW:
        raise BadInput(
            f"--follow {run.follow} with --dtype {run.dtype}, whose rounding hides the curvature that rates follow: "
            "use float32 or float64"
        )
    for text in run.search:
        if text.startswith("eta_"):
            raise BadInput(f"--follow {run.follow} with --search {text}: --follow sets that rate itself, leave one out")
    if distributed.world_size() > 1:
        raise BadInput(
            f"--follow {run.follow} with {distributed.world_size()} processes: start one process, without torchrun"
        )


def _check_measuring(run: Training) -> None:
    from smoothlab.llm import distributed

    if "gauss_newton_trace" in precisions(run) and not run.gauss_newton:
        raise BadInput("--precision gauss_newton_trace=... without --gauss-newton, which measures it: add that option")
    if run.diagonal and run.block_rows == "none":
        raise BadInput(f"--diagonal {run.diagonal} with --block-rows none: say whose norms, e.g. --block-rows layer")
    if run.block_rows != "none":
        if run.blocks == run.block_rows:
            raise BadInput(
                f"--block-rows {run.block_rows} with --blocks {run.blocks}: its blocks are not split, leave one out"
            )
        if run.protocol == "paper":
            raise BadInput(
                f"--block-rows {run.block_rows} with --protocol paper, which has no rows: use estimated or both"
            )
    for text in run.cross:
        if run.cross.count(text) > 1:
            raise BadInput(f"--cross {text} is given twice: name each pair once")
    if not run.measure:
        return
    if run.dtype in NARROW and not run.widens:
        raise BadInput(
            f"--measure with --dtype {run.dtype}, whose rounding hides curvature: use float32 or float64, or "
            "--compute float32 with --measure peft"
        )
    if distributed.world_size() > 1:
        raise BadInput(f"--measure with {distributed.world_size()} processes: start one process, without torchrun")
