"""Where the time of one measuring point goes: `python -m benchmarks.point_ledger [--model FOLDER --batch 2]`.

CPU seconds on one thread, and calls, of the parts of a point of base + LoRA + cross block: products by the block that
they are along, evaluations of the loss, projections, what self-checks do beside both. A part's time leaves out that of
the parts inside it. The gradient of the loss is given as a unit.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.point import estimates, language_model, micro
from smoothlab.hessian import norms
from smoothlab.hessian.basis import Basis
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian

PARTS: tuple[tuple[Any, str], ...] = (
    (ExactHessian, "_differentiate"), (ExactHessian, "product"), (ExactHessian, "evaluate"), (Deflation, "_draw"),
    (Deflation, "probe"), (Deflation, "_deflate"), (Basis, "project_out"), (Basis, "coefficients"), (Basis, "add"),
    (norms, "check_products"),
)  # fmt: skip


class Ledger:
    """CPU seconds and calls of parts, by name; calls that are made inside a part are not the part's own time."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work` wrapped so that its calls are counted and timed."""

        def call(*args: Any, **options: Any) -> Any:
            key = f"{name} along {args[2]} by {', '.join(args[3])}" if name == "product" else name
            started = time.process_time()
            self._inner.append(0.0)
            try:
                return work(*args, **options)
            finally:
                seconds = time.process_time() - started
                self.seconds[key] += seconds - self._inner.pop()
                self.calls[key] += 1
                if self._inner:
                    self._inner[-1] += seconds

        return call


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a folder with a causal language model")
    parser.add_argument("--batch", type=int, default=2, help="items of a folder's model, up to 8")
    parser.add_argument("--precision", type=float, default=0.05)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loss, blocks = micro() if args.model == "micro" else language_model(Path(args.model), args.batch, None)[1:]
    params = [p for block in blocks for p in block.params]
    for _ in range(2):  # memory is taken before the clock runs
        started = time.process_time()
        torch.autograd.grad(loss(), params, allow_unused=True)
        gradient = time.process_time() - started
    ledger = Ledger()
    for owner, name in PARTS:
        setattr(owner, name, ledger.timed(name, getattr(owner, name)))
    started = time.process_time()
    estimates(loss, blocks, args.precision, 0)
    total = time.process_time() - started
    print(f"{'gradient':40s}            {gradient:8.3f} s")
    for name, seconds in ledger.seconds.most_common():
        print(f"{name:40s} {ledger.calls[name]:4d} x {seconds / ledger.calls[name]:8.3f} s {seconds / total:6.1%}")
    print(f"{'point':40s}            {total:8.3f} s")


if __name__ == "__main__":
    main()
