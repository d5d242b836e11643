"""The rates of Theorem 3.4 on grids of minutes, or of an hour: `python -m benchmarks.rates [--grid GRID] [--jobs N]`.

`smoothlab rates` with fixed settings, recorded as benchmarks/results/rates.jsonl, rates_full.jsonl or
rates_curved.jsonl, continued where it was stopped; figures/draw.py draws it. Points go through joblib: see
`smoothlab.experiments.grid` for a cluster.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from smoothlab.experiments.rates.experiment import Rates
from smoothlab.records import environment, load, run
from smoothlab.report.comparisons import text

RESULTS = Path(__file__).with_name("results")

# A few minutes on two cores; the counterexample of theory.md pathwise is the longest point.
MINUTES = Rates(
    parts=("theorem", "exponents", "counterexample", "speedup_of_two_rates", "reshuffling"),
    eps=(1.0, 0.7, 0.5), ns=(2, 8, 32), dims=(2, 5, 10, 100), deltas=(0.5, 0.3, 0.1), ratios=(1.0, 10.0, 100.0),
    sigmas=(0.2, 1.0, 30.0), families=("quadratic", "cosh-y", "cosh-x", "oscillating", "cosine"),
    oracles=("two-sided", "one-sided", "exact"), epochs=(100, 1000), instances=("small", "large"),
    fit_eps=(0.4, 0.3, 0.2, 0.14, 0.1), fit_dims=(5, 10, 20, 40), fit_deltas=(0.5, 0.3, 0.2, 0.1, 0.05),
    speedup_dims=(10, 100), shuffle_ns=(2, 8, 32, 128), shuffle_scales=(1.0, 0.3, 0.1, 0.03),
    shuffle_dims=(1, 3, 10, 30, 100, 300), shuffle_qs=(2, 4, 16, 64), max_steps=70_000,
)  # fmt: skip

# An hour on two cores: all combinations of what the theorem's rows vary, more replicas, longer runs.
FULL = replace(
    MINUTES, eps=(1.0, 0.7), ns=(2, 8), dims=(2, 10), deltas=(0.5, 0.1), ratios=(1.0, 30.0), sigmas=(0.2, 3.0),
    families=("quadratic", "cosh-y"), oracles=("two-sided", "exact"), orders=("reshuffle", "replace"), rules=("two",),
    all_combinations=True, epochs=(), fit_eps=(0.4, 0.3, 0.2, 0.14, 0.1, 0.07), replicas=200, max_steps=130_000,
)  # fmt: skip


# Minutes on one core: sums whose components curve differently, with averaged and with low-rank directions.
CURVED = Rates(parts=("curved", "budget"), fit_eps=(0.4, 0.3, 0.2, 0.14), max_steps=70_000)
GRIDS = {"rates": MINUTES, "full": FULL, "curved": CURVED}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, default="rates", help="full takes an hour (default: rates)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, help="record file (default benchmarks/results/rates*.jsonl)")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be measured, and stop")
    args = parser.parse_args()
    import joblib

    experiment = GRIDS[args.grid]
    if args.dry_run:
        print(experiment.plan())
        return
    out = args.out or RESULTS / ("rates.jsonl" if args.grid == "rates" else f"rates_{args.grid}.jsonl")
    with joblib.parallel_config(n_jobs=args.jobs):
        run(experiment, out, environment=environment(device="cpu", jobs=args.jobs, threads=1))
    print("\n".join([str(out), *text(load(out))]))


if __name__ == "__main__":
    main()
