"""Tables 1 and 2, Fig. 2 and 3: `python -m benchmarks.table1 --data-dir DIR [--part sst2 copa ...] [--jobs N]`.

Every cell is one run of `smoothlab finetune`, recorded as benchmarks/results/table1/NAME.jsonl; finished ones are not
run again. By default `micro` at a budget of minutes a cell: ZO-FT, and FO and hybrid with prompt, prefix and LoRA; SGD
at constant rates as in the paper. On SST-2 each method tries four points on dev, for each of three seeds; COPA and
WinoGrande have one seed and the middle points. "adam" is SST-2 again with more data, and Adam's steps of y, by which
`micro` leaves chance with LoRA. figures/table1.py makes tables and figures of them.

The paper's own models, on a GPU, at its budget (hours a cell; stopped cells go on from their checkpoints):

    python -m benchmarks.table1 --data-dir DIR --full --model facebook/opt-1.3b --device cuda
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.records import environment, run

RESULTS = Path(__file__).with_name("results") / "table1"
PEFT = ("prompt", "prefix", "lora")
METHODS = [("zo", "auto"), *((method, peft) for peft in PEFT for method in ("fo-peft", "hybrid"))]
SEEDS = (0, 1, 2)
PARTS = ("sst2", "adam", "copa", "winogrande", "fig2", "fig3")

MICRO = Finetune(optimizer="sgd", steps=200, eval_every=50, patience=0, batch=16)
RATES: dict[str, tuple[float, ...]] = {
    "zo": (1e-4, 3e-4),
    "prompt": (3.0, 10.0),
    "prefix": (3.0, 10.0),
    "lora": (0.3, 1.0),
}
"""For micro: two values of a rate; the four points are these and, for methods with one rate, their neighbors."""
ADAM: dict[str, tuple[float, ...]] = {
    "zo": (1e-4, 3e-4),
    "prompt": (0.03, 0.1),
    "prefix": (0.03, 0.1),
    "lora": (2e-3, 6e-3),
}
"""The same for Adam's steps of y."""
# Table 2: 20,000 steps at most with early stopping, batch 16; rates of the order of its legible cells.
FULL = Finetune(optimizer="sgd", steps=20_000, eval_every=500, patience=8, batch=16, mu=1e-3)
FULL_RATES: dict[str, tuple[float, ...]] = {
    "zo": (1e-7, 1e-6), "prompt": (1e-3, 1e-2), "prefix": (2e-3, 8e-3), "lora": (1e-4, 1e-3),
}  # fmt: skip


def searched(method: str, peft: str, rates: dict[str, tuple[float, ...]]) -> tuple[str, ...]:
    """Four points for every method: two of eta_x times two of eta_y, or four of the one rate there is."""
    if method == "hybrid":
        return (_values("eta_x", rates["zo"]), _values("eta_y", rates[peft]))
    low, high = rates["zo" if method == "zo" else peft]
    middle = (low * high) ** 0.5
    values = (low, middle, high, high * (high / low) ** 0.5)
    return (_values("eta_x" if method == "zo" else "eta_y", values),)


def _values(name: str, values: tuple[float, ...]) -> str:
    return f"{name}=" + ",".join(f"{value:.3g}" for value in values)


def cells(
    base: Finetune, rates: dict[str, tuple[float, ...]], parts: list[str], seeds: tuple[int, ...]
) -> dict[str, Finetune]:
    """Every run by name."""
    by_name: dict[str, Finetune] = {}
    for part in parts:
        if part == "fig2":  # Fig. 2: one small rate, one large rate, two rates; prompt tuning
            small, large = rates["zo"][-1], rates["prompt"][-1]
            for name, x, y in (("small", small, small), ("large", large, large), ("two", small, large)):
                by_name[f"fig2-{name}"] = replace(base, data="sst2", method="hybrid", peft="prompt", eta_x=x, eta_y=y)
            continue
        if part == "fig3":  # Fig. 3: enough steps, data and Adam's steps of y for micro to leave chance
            longer = replace(
                base, data="sst2", train=5000, dev=400, steps=1000, eval_every=100, optimizer="adam", eta_y=2e-3
            )
            for name, method in (("zo", "zo"), ("fo-lora", "fo-peft"), ("hybrid-lora", "hybrid")):
                by_name[f"fig3-{name}"] = replace(longer, method=method, eta_x=rates["zo"][0])
            continue
        shared, grid, task = base, rates, part
        if part == "adam":
            shared = replace(base, train=5000, dev=200, steps=300, eval_every=100, optimizer="adam")
            grid, task = ADAM, "sst2"
        for method, peft in METHODS:
            short = method if method == "zo" else f"{method.removesuffix('-peft')}-{peft}"
            for seed in seeds if task == "sst2" else seeds[:1]:
                experiment = replace(shared, data=task, method=method, peft=peft, seed=seed)
                if task == "sst2":
                    experiment = replace(experiment, search=searched(method, peft, grid))
                else:
                    experiment = replace(experiment, eta_x=grid["zo"][-1], eta_y=grid.get(peft, (1.0,))[0])
                by_name[f"{part}-{short}-seed{seed}"] = experiment
    return by_name


def cell(name: str, experiment: Finetune, out: Path, checkpoints: Path | None) -> str:
    """Run one cell; what it says if it fails, so that the others go on."""
    import torch

    if experiment.device == "cpu":
        torch.set_num_threads(1)
    if checkpoints is not None:
        experiment = replace(experiment, checkpoint=checkpoints / name)
    machine: dict[str, Any] = {"device": experiment.device, "threads": torch.get_num_threads()}
    if experiment.device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(experiment.device)
    try:
        run(experiment, out / f"{name}.jsonl", environment=environment(**machine))
        return f"{name}: done"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with sst2/, copa/, winogrande/; without it the hub")
    parser.add_argument("--part", nargs="+", choices=PARTS, help="default: all, with --full all but adam")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--full", action="store_true", help="the paper's budget and rates, with checkpoints")
    parser.add_argument("--model", default="micro", help="hub name or directory of another model than micro")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, help="other number of steps, to try it out")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default benchmarks/results/table1)")
    args = parser.parse_args()
    import joblib

    base, rates = (FULL, FULL_RATES) if args.full else (MICRO, RATES)
    parts = args.part or [part for part in PARTS if part != "adam" or not args.full]
    base = replace(base, model=args.model, device=args.device, dtype=args.dtype, data_dir=args.data_dir)
    if args.steps is not None:
        base = replace(base, steps=args.steps, eval_every=min(base.eval_every, max(args.steps, 1)))
    chosen = {
        name: experiment
        for name, experiment in cells(base, rates, parts, tuple(args.seeds)).items()
        if args.only in name
    }
    checkpoints = args.out / "checkpoints" if args.full else None
    work = (joblib.delayed(cell)(name, experiment, args.out, checkpoints) for name, experiment in chosen.items())
    for line in joblib.Parallel(n_jobs=args.jobs, return_as="generator")(work):
        print(line, flush=True)


if __name__ == "__main__":
    main()
