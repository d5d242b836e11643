"""The runs on the real model, in the order in which they are made: what `python -m benchmarks.real_model --list` lists.

A run is one experiment of smoothlab with a name of its own. Some take learning rates that earlier runs have selected on
dev, so that a rate is searched with seed 0 alone:

    the search of a first-order method       tries eta_y;
    that of hybrid beside it                 takes that eta_y, and tries eta_x: the zeroth-order part is all it adds;
    runs with other seeds and other steps    take both.

Equal steps favor hybrid, whose step costs more. Runs called "...-forwards" therefore stop at as many evaluations of the
loss as the first-order method makes in all its steps. Backward passes are not counted: a hybrid run has fewer then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.smoothness import Smoothness

PARTS = {
    "fig1": "Fig. 1a and 1b: curvature along FO-LoRA and hybrid-LoRA",
    "sst2": "Table 1 on SST-2: zero-shot, ZO-FT, LoRA and prompt tuning",
    "sst2-more": "the same for prefix tuning and for FO-FT",
    "tasks": "COPA and WiC, LoRA only",
    "fig2-3": "Fig. 2 (one rate or two) and Fig. 3 (longer training)",
    "fig1-more": "Fig. 1 along ZO-FT, and other seeds",
}
"""Parts of the queue, in their order."""
RATES: dict[str, tuple[float, float, float]] = {
    "zo": (3e-5, 1e-4, 3e-4),
    "lora": (3e-4, 1e-3, 3e-3),
    "prompt": (3e-3, 1e-2, 3e-2),
    "prefix": (1e-3, 3e-3, 1e-2),
    "full": (3e-6, 1e-5, 3e-5),
}
"""Rates that are tried: eta_x of zeroth-order steps and of first-order ones of the whole model (full), else eta_y."""
RATE_OF = {"zo": ("eta_x",), "fo-full": ("eta_x",), "fo-peft": ("eta_y",), "hybrid": ("eta_x", "eta_y")}
"""Learning rates that a method has."""


@dataclass(frozen=True)
class Size:
    """How large the runs are.

    Attributes:
        steps: training steps of a run.
        longer: training steps of a run of Fig. 3.
        dev: items to select by.
        test: items to test on, at most.
        seeds: seeds of the table; rates are tried with the first of them.
        tries: rates that are tried, 1 (the middle one) or 3.
        points: measuring points of Fig. 1.
        probes: unit vectors a block in the paper's protocol; a product with one costs a gradient of the whole model.
    """

    steps: int = 200
    longer: int = 400
    dev: int = 100
    test: int = 872
    seeds: tuple[int, ...] = (0, 1, 2)
    tries: int = 3
    points: int = 8
    probes: int = 10


SIZES = {"full": Size(), "short": Size(steps=50, longer=100, test=200, tries=1, points=3, probes=4)}
"""What --size names; full takes the hours of a day, short those of an evening."""


@dataclass(frozen=True)
class Run:
    """One run of the queue.

    Attributes:
        name: of its record file.
        part: one of PARTS.
        experiment: what is run, with the rates that it does not take from other runs.
        takes: learning rate to the name of the run whose selected one it is.
    """

    name: str
    part: str
    experiment: Finetune | Smoothness
    takes: Mapping[str, str] = field(default_factory=dict)

    def with_rates(self, selected: Mapping[str, Mapping[str, Any]]) -> Finetune | Smoothness:
        """The experiment with its rates.

        Args:
            selected: the row of the test of each run that is taken from, by name.
        """
        rates = {rate: float(selected[name][rate]) for rate, name in self.takes.items()}
        return replace(self.experiment, **rates)  # type: ignore[arg-type]  # the fields of rates are floats


def runs(size: Size, **options: Any) -> list[Run]:
    """All runs in their order.

    Args:
        size: how large they are.
        options: fields of every experiment, such as model, data_dir and device.
    """
    base = Finetune(
        data="sst2", batch=8, parts=1, steps=size.steps, dev=size.dev, test=size.test, eval_every=25, patience=0,
        **options,
    )  # fmt: skip
    queue = [*_figure_1(size, options, ("fo-peft", "hybrid"), size.seeds[:1], "fig1")]
    # Before training, a good part of the errors is the candidates' prior: calibrated scores leave it out.
    untrained = replace(_method(base, "fo-peft", "lora", size.seeds[0], steps=0), calibrate=True)
    queue.append(Run("zero-shot", "sst2", untrained))
    queue += _table(base, size, [("fo-peft", "lora"), ("hybrid", "lora"), ("zo", ""), ("fo-peft", "prompt"),
                                 ("hybrid", "prompt")], "sst2")  # fmt: skip
    queue += _table(base, size, [("fo-peft", "prefix"), ("hybrid", "prefix"), ("fo-full", "")], "sst2-more")
    queue += _tasks(base, size)
    queue += _figures_2_3(base, size)
    queue += _figure_1(size, options, ("zo",), size.seeds[:1], "fig1-more")
    queue += _figure_1(size, options, ("fo-peft", "hybrid"), size.seeds[1:], "fig1-more")
    return queue


def short_name(method: str, module: str) -> str:
    """Name of a method in names of runs: fo-lora, hybrid-lora, zo, fo-full."""
    if method in ("zo", "fo-full"):
        return method
    return f"{method.removesuffix('-peft')}-{module}"


def _method(base: Finetune, method: str, module: str, seed: int, steps: int | None = None) -> Finetune:
    """A run of a method at its middle rates."""
    experiment = replace(base, method=method, seed=seed)
    if steps is not None:
        experiment = replace(experiment, steps=steps)
    if method in ("zo", "hybrid"):
        experiment = replace(experiment, eta_x=RATES["zo"][1])
    if method == "fo-full":
        experiment = replace(experiment, eta_x=RATES["full"][1])
    if module:
        experiment = replace(experiment, peft=module, eta_y=RATES[module][1])
    if method == "hybrid":
        # A one-sided difference shares f(x, y) with the exact gradient: two evaluations a step instead of three.
        experiment = replace(experiment, sides=1)
    return experiment


def _table(base: Finetune, size: Size, methods: Sequence[tuple[str, str]], part: str) -> Iterator[Run]:
    """Every method with every seed, seed by seed, so that a queue that ends early holds whole comparisons."""
    first = size.seeds[0]
    for seed in size.seeds:
        for method, module in methods:
            short = short_name(method, module)
            experiment = _method(base, method, module, seed)
            takes = {rate: f"sst2-{short}-seed{first}" for rate in RATE_OF[method]}
            if seed == first:
                takes = {}
                if method == "hybrid":
                    takes = {"eta_y": f"sst2-fo-{module}-seed{first}"}
                if size.tries > 1:
                    experiment = replace(experiment, search=(_search(method, module),))
            yield Run(f"sst2-{short}-seed{seed}", part, experiment, takes)
        for method, module in methods:
            evaluations = _method(base, method, module, seed).evaluations
            if evaluations > 1:
                short = short_name(method, module)
                fewer = _method(base, method, module, seed, steps=size.steps // evaluations)
                takes = {rate: f"sst2-{short}-seed{first}" for rate in RATE_OF[method]}
                yield Run(f"sst2-{short}-forwards-seed{seed}", part, fewer, takes)


def _search(method: str, module: str) -> str:
    """The three points of a method: rates of the zeroth-order part where it has one, else of what is trained."""
    axis, rates = "eta_y", RATES.get(module, RATES["full"])
    if method in ("zo", "hybrid"):
        axis, rates = "eta_x", RATES["zo"]
    if method == "fo-full":
        axis = "eta_x"
    return f"{axis}=" + ",".join(f"{rate:g}" for rate in rates)


def _tasks(base: Finetune, size: Size) -> Iterator[Run]:
    """COPA and WiC at the rates that SST-2 has selected: nothing is tried on them."""
    for task in ("copa", "wic"):
        for seed in size.seeds:
            for method in ("fo-peft", "hybrid"):
                short = short_name(method, "lora")
                experiment = replace(_method(base, method, "lora", seed), data=task)
                takes = {rate: f"sst2-{short}-seed{size.seeds[0]}" for rate in RATE_OF[method]}
                yield Run(f"{task}-{short}-seed{seed}", "tasks", experiment, takes)


def _figures_2_3(base: Finetune, size: Size) -> Iterator[Run]:
    """Fig. 2: prompt tuning with one small rate, one large rate, and two. Fig. 3: longer runs on more items."""
    seed = size.seeds[0]
    small, large = RATES["zo"][1], RATES["prompt"][1]
    for name, eta_x, eta_y in (("small", small, small), ("large", large, large), ("two", small, large)):
        experiment = replace(_method(base, "hybrid", "prompt", seed), eta_x=eta_x, eta_y=eta_y)
        yield Run(f"fig2-{name}", "fig2-3", experiment)
    for method, module in (("zo", ""), ("fo-peft", "lora"), ("hybrid", "lora")):
        short = short_name(method, module)
        experiment = replace(_method(base, method, module, seed, steps=size.longer), train=5000)
        takes = {rate: f"sst2-{short}-seed{seed}" for rate in RATE_OF[method]}
        yield Run(f"fig3-{short}", "fig2-3", experiment, takes)


def _figure_1(
    size: Size, options: Mapping[str, Any], methods: Sequence[str], seeds: Sequence[int], part: str
) -> Iterator[Run]:
    """Curvature of the base model and of LoRA along a method's own run, by both protocols, at the middle rates."""
    for seed in seeds:
        for method in methods:
            module, blocks, peft, sides = "lora", ("base", "peft"), "lora", 1
            if method == "zo":  # there is no module to measure, and no exact gradient to share f(x, y) with
                module, blocks, peft, sides = "", ("base",), "none", 2
            experiment = Smoothness(
                data="sst2", head="lm", train=1000, method=method, peft=peft, optimizer="adam", eta_x=RATES["zo"][1],
                eta_y=RATES["lora"][1], sides=sides, steps=size.steps, batch=8, measure=blocks, points=size.points,
                protocol="both", precision=0.1, probes=size.probes, seed=seed, **options,
            )  # fmt: skip
            yield Run(f"fig1-{short_name(method, module)}-seed{seed}", part, experiment)
