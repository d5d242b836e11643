"""The exact spectrum of a trained block: `python -m benchmarks.trained_block --data-dir DIR`.

Trains `micro` on SST-2 for 500 steps at rate 5e-3, forms the exact fp64 Hessian of all LayerNorm weights (d = 2,496)
column by column, checks its symmetry, and writes its eigenvalues to
benchmarks/results/trained_block_spectrum.txt, where benchmarks/coverage.py finds them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from smoothlab.experiments.smoothness import Smoothness
from smoothlab.hessian.exact import ExactHessian
from smoothlab.records import environment


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "trained_block_spectrum.txt")
    args = parser.parse_args()
    run = Smoothness(
        model="micro", data="sst2", data_dir=args.data_dir, method="fo-full", blocks=r"norm=layer_norm\.weight",
        eta_x=5e-3, dtype="float64",
    )  # fmt: skip
    setup = run.setup()
    trainer = setup.trainer()
    while trainer.step < args.steps:
        trainer.update()
    block = next(block for block in setup.measured if block.name == "norm")
    exact = ExactHessian(trainer.minibatch_loss(args.steps), [block])
    columns = []
    for i in range(block.dim):
        v = torch.zeros(block.dim, dtype=torch.float64)
        v[i] = 1.0
        columns.append(exact.product(v, "norm", ["norm"])[0].numpy())
    hessian = np.stack(columns)
    asymmetry = float(np.abs(hessian - hessian.T).max() / np.abs(hessian).max())
    if asymmetry > 1e-9:
        raise SystemExit(f"the Hessian is not symmetric: {asymmetry:.1e} relative")
    environment_text = environment(device="cpu", dtype="float64", threads=torch.get_num_threads(), steps=args.steps)
    header = f"eigenvalues of the Hessian of micro's LayerNorm weights; asymmetry {asymmetry:.1e}\n{environment_text}"
    np.savetxt(args.out, np.linalg.eigvalsh(hessian), fmt="%.9e", header=header)
    print(args.out)


if __name__ == "__main__":
    main()
