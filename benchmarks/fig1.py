"""The measurements behind Figure 1: `python -m benchmarks.fig1 --data-dir DIR [--only NAME ...]`.

DIR holds sst2/train.jsonl.gz. Each run is a grid of one: `smoothlab smoothness` with fixed settings, recorded as
benchmarks/results/NAME.jsonl, continued where it was stopped. figures/draw.py draws them.

The 125M run needs a CUDA device and, with --model DIR, real weights (facebook/opt-125m saved as safetensors); without
them it takes random weights of that shape, which show cost and rounding floor but not the trajectory of the paper.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from smoothlab.experiments.smoothness import Smoothness
from smoothlab.records import environment, run

RESULTS = Path(__file__).with_name("results")

# Appendix D.4: 5,000 SGD steps, learning rate 5e-5, batch 8, 100 unit vectors, h = 1e-5; LoRA r = 16, alpha = 32.
D4 = Smoothness(model="micro", data="sst2", protocol="both", rank=16)

RUNS: dict[str, Smoothness] = {
    "fig1a_micro_sst2": replace(D4, method="fo-full", rank=None),
    "fig1b_micro_sst2": replace(D4, peft="lora"),
    # One minibatch at all points tells what the trajectory changes from what the draw of the minibatch does.
    "fixed_1a_micro_sst2": replace(D4, method="fo-full", rank=None, minibatch="fixed", protocol="estimated"),
    # A rate at which 5,000 steps do train: at 5e-5 the weights hardly move.
    "fast_1a_micro_sst2": replace(
        D4, method="fo-full", rank=None, eta_x=5e-3, eta_y=5e-3, protocol="estimated", minibatch="fixed"
    ),
    "fast_1b_micro_sst2": replace(D4, peft="lora", eta_x=5e-3, eta_y=5e-3, protocol="estimated", minibatch="fixed"),
    # Cost and rounding floor at 125M parameters, random weights: two points, the base model alone.
    "cost_opt125m_random": replace(
        D4, model="random:opt-125m", peft="lora", steps=2, points=2, probes=4, measure=("base", "peft"), precision=0.2
    ),
    "fig1a_opt125m": replace(D4, model="random:opt-125m", method="fo-full", rank=None, device="cuda"),
    "fig1b_opt125m": replace(D4, model="random:opt-125m", peft="lora", device="cuda"),
}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=["fig1a_micro_sst2", "fig1b_micro_sst2"])
    parser.add_argument("--model", help="other model than the run's, e.g. a directory with real OPT-125M weights")
    parser.add_argument("--device", help="other device than the run's")
    parser.add_argument("--steps", type=int, help="other number of steps, to try a run out")
    parser.add_argument("--points", type=int, help="other number of points, to try a run out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the records (default benchmarks/results)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    args = parser.parse_args()
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.only:
        options = {f: getattr(args, f) for f in ("model", "device", "steps", "points") if getattr(args, f) is not None}
        experiment = replace(RUNS[name], data_dir=args.data_dir, **options)
        machine = {"device": experiment.device, "threads": torch.get_num_threads()}
        if experiment.device.startswith("cuda"):
            machine["gpu"] = torch.cuda.get_device_name(experiment.device)
        run(experiment, args.out / f"{name}.jsonl", environment=environment(**machine))


if __name__ == "__main__":
    main()
