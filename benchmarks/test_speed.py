"""What products and norms cost on `micro`, in gradients, beside three other Hessian tools.

`make bench` runs it in full and writes benchmarks/results/speed_micro.jsonl; `python -m benchmarks.test_speed
--repetitions 2 --out FILE` is a short look. Everything is a ratio within one run: one repetition times every item once,
gradients before and after, so that what else the machine does meets all alike; the medians of the ratios are reported
with their quartiles. Times are kept in the records and held against nothing.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.coverage import Diagonal, spectra
from benchmarks.timing import Ratios, ratio_row, recorded, table, timed
from smoothlab.blocks import Block, Loss, fixed_loss, norm
from smoothlab.hessian.deflation import gram_matrix
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.gradients import gradient
from smoothlab.llm.adapters import attach
from smoothlab.llm.models import load_classifier
from smoothlab.llm.partition import partition
from smoothlab.records import Row
from smoothlab.stats.probes import effective_rank
from smoothlab.zeroth.distributions import draw

BATCH, LENGTH = 8, 32
TARGETS = {
    "exact product": 2.2,
    "forward difference": 1.15,
    "measuring point, base + LoRA + cross": 100.0,
    "memory of exact products": 2.6,
}
"""Largest ratios allowed, to a gradient's time or memory."""


class Logits(nn.Module):
    """The classifier as other tools want it: token ids [B, T] in, logits [B, 2] out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """No padding, hence no mask."""
        return self.model(input_ids=tokens).logits


@dataclass(frozen=True)
class Bench:
    """`micro` on one batch of random tokens: time and memory do not ask what they say."""

    network: Logits
    tokens: Tensor
    labels: Tensor
    loss: Loss
    blocks: dict[str, Block]

    @classmethod
    def load(cls, peft: str = "none", dtype: torch.dtype = torch.float32) -> "Bench":
        """The model with its adapter; by parts, and with all live parameters as block "all" where there is none."""
        model = attach(load_classifier("micro", 2, seed=0).model, peft, seed=0)
        network = Logits(model).to(dtype).eval()  # converted here, so that the new head is the same in each precision
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(3, 4000, (BATCH, LENGTH), generator=generator)
        labels = torch.arange(BATCH) % 2
        loss = fixed_loss(lambda: nn.functional.cross_entropy(network(tokens), labels), network)
        blocks = partition(model)
        if peft == "none":
            blocks = {"all": Block("all", tuple(p for b in blocks.values() for p in b.params))}
        return cls(network, tokens, labels, loss, blocks)


def products_of_other_packages(bench: Bench) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """The same product by curvlinops, hessian-eigenthings and PyHessian, as far as they are installed.

    All run on the MATH attention kernel, without which double backward fails on a CPU. PyHessian keeps its graph, the
    other two make it anew for each product.
    """
    batch, criterion = (bench.tokens, bench.labels), nn.CrossEntropyLoss()
    (block,) = bench.blocks.values()
    params = list(block.params)

    def on_math(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def wrapped(v: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return product(v)

        return wrapped

    if find_spec("curvlinops"):
        import curvlinops

        operator = curvlinops.HessianLinearOperator(
            bench.network, criterion, params, [batch], check_deterministic=False, num_data=BATCH
        )
        yield "curvlinops", on_math(lambda v: operator @ v)
    if find_spec("hessian_eigenthings"):
        import hessian_eigenthings

        loss = hessian_eigenthings.supervised_loss(criterion)
        eigen = hessian_eigenthings.HessianOperator(bench.network, [batch], loss)
        yield "hessian-eigenthings", on_math(eigen.matvec)
    if find_spec("pyhessian"):
        import pyhessian

        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on backward with create_graph, its way
            hessian = pyhessian.hessian(bench.network, criterion, data=batch, cuda=False)

        def product(v: Tensor) -> Tensor:
            images = pyhessian.hessian_vector_product(hessian.gradsH, hessian.params, block.views(v))
            return torch.cat([h.reshape(-1) for h in images])

        yield "PyHessian", product


def _row(what: str, ratios: Sequence[float], seconds: Sequence[float], **more: Any) -> Row:
    blank = {"target": TARGETS.get(what), "error": None, "hvps": None, "plain_hvps": None}
    return ratio_row(what, ratios, seconds, **blank | more)


def _products(repetitions: int) -> Iterator[Row]:
    """One product in gradients, by each way, with its relative error against fp64."""
    exact64 = Bench.load(dtype=torch.float64)
    v = draw(exact64.blocks["all"], "gaussian", [0])
    (truth,) = ExactHessian(exact64.loss, list(exact64.blocks.values())).product(v, "all", ["all"])
    del exact64
    bench = Bench.load()
    blocks, v = list(bench.blocks.values()), v.float()
    length = 1e-4 * norm(torch.cat([p.detach().reshape(-1) for p in blocks[0].params]))

    def by(hessian: ExactHessian | FiniteDifferenceHessian) -> Callable[[Tensor], Tensor]:
        return lambda v: hessian.product(v, "all", ["all"])[0]

    products: dict[str, Callable[[Tensor], Any]] = {
        "exact product": by(ExactHessian(bench.loss, blocks)),
        "forward difference": by(FiniteDifferenceHessian(bench.loss, blocks, h=length, scheme="forward")),
        "central difference": by(FiniteDifferenceHessian(bench.loss, blocks, h=10 * length)),
        **dict(products_of_other_packages(bench)),
    }
    errors: dict[str, float | None] = {}
    for name, product in list(products.items()):
        try:
            errors[name] = norm(product(v).detach().double() - truth) / norm(truth)
        except Exception as reason:  # another tool may fail in any way: that is a result, too
            print(f"{name} does not run here: {' '.join(str(reason).split())[:200]}", file=sys.stderr)
            del products[name]
    products["graph of the exact products, once a point"] = lambda v: ExactHessian(bench.loss, blocks)
    products["drawing one probe"] = lambda v: draw(blocks[0], "gaussian", [1])
    times: dict[str, list[float]] = {name: [] for name in products}
    ratios: dict[str, list[float]] = {name: [] for name in products}
    gradients: list[float] = []
    for _ in range(repetitions):
        for name, product in products.items():
            gradient_seconds = [timed(lambda: gradient(bench.loss, bench.blocks))]
            times[name].append(timed(lambda product=product: product(v)))  # type: ignore[misc]
            gradient_seconds.append(timed(lambda: gradient(bench.loss, bench.blocks)))
            ratios[name].append(times[name][-1] / statistics.mean(gradient_seconds))
            gradients += gradient_seconds
    yield _row("gradient", [1.0], gradients)
    for name in products:
        yield _row(name, ratios[name], times[name], error=errors.get(name))


def _point(repetitions: int) -> Row:
    """A whole measuring point: every norm of base, LoRA module and their cross block; graph and gradient included."""
    bench = Bench.load("lora")
    blocks = {name: bench.blocks[name] for name in ("base", "peft")}
    ratios, times, hvps = [], [], []
    for seed in range(repetitions):
        estimates = []

        def point(seed: int = seed, estimates: list[Any] = estimates) -> None:
            hessian = ExactHessian(bench.loss, list(blocks.values()))
            estimates += hessian.norms(cross=[("base", "peft")], seed=(seed,))

        before = [timed(lambda: gradient(bench.loss, blocks)) for _ in range(3)]
        times.append(timed(point))
        after = [timed(lambda: gradient(bench.loss, blocks)) for _ in range(3)]
        ratios.append(times[-1] / statistics.median(before + after))
        hvps.append(estimates[-1].hvps)
    return _row("measuring point, base + LoRA + cross", ratios, times, hvps=statistics.median(hvps))


class _Peak:
    """Largest resident memory of this process while the context lasts, sampled every millisecond."""

    def __enter__(self) -> "_Peak":
        self._process, self._on = psutil.Process(), True
        self.bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            time.sleep(1e-3)

    def __exit__(self, *error: object) -> None:
        self._on = False
        self._thread.join()


def memory(what: str) -> dict[str, int]:
    """In a fresh process: bytes of the parameters, and by how much one kind of work raises the peak above the model."""
    bench = Bench.load()
    blocks = list(bench.blocks.values())
    v = draw(blocks[0], "gaussian", [0])
    with torch.no_grad():
        bench.loss()  # libraries take their own memory at the first call
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory must not hide what comes
    baseline = psutil.Process().memory_info().rss
    with _Peak() as peak:
        for _ in range(3):
            if what == "gradient":
                gradient(bench.loss, bench.blocks)
            elif what == "exact":
                hessian = ExactHessian(bench.loss, blocks)
                for _ in range(2):
                    hessian.product(v, "all", ["all"])
                del hessian
            elif what == "central":
                FiniteDifferenceHessian(bench.loss, blocks, h=1e-2).product(v, "all", ["all"])
    parameters = sum(p.numel() * p.element_size() for p in blocks[0].params)
    return {"parameters": parameters, "increase": peak.bytes - baseline}


RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc: give freed memory back at once, so that resident memory is what tensors hold."""


def _memory(repetitions: int) -> Iterator[Row]:
    """Peak memory of products relative to a gradient's, the model counted in both; each in processes of its own.

    Once as tensors hold it, and once with the allocator's own habits, which keep freed memory for later.
    """
    for settings, suffix in ((RETURNED, ""), ({}, ", default allocator")):
        bytes_by_job: dict[str, list[int]] = {"gradient": [], "exact": [], "central": []}
        for _ in range(min(repetitions, 3)):
            for what in bytes_by_job:
                command = [sys.executable, "-m", "benchmarks.test_speed", "--memory", what]
                root = Path(__file__).parents[1]
                completed = subprocess.run(
                    command, check=True, capture_output=True, text=True, cwd=root, env={**os.environ, **settings}
                )
                counted = json.loads(completed.stdout.splitlines()[-1])
                bytes_by_job[what].append(counted["parameters"] + counted["increase"])
        for what, name in (("exact", "memory of exact products"), ("central", "memory of central differences")):
            ratios = [a / b for a, b in zip(bytes_by_job[what], bytes_by_job["gradient"], strict=True)]
            mib = {"mib": [round(x / 2**20, 1) for x in bytes_by_job[what]]}
            mib["gradient_mib"] = [round(x / 2**20, 1) for x in bytes_by_job["gradient"]]
            yield _row(name + suffix, ratios, [], unit="memory", **mib)


def _needed(repetitions: int) -> Iterator[Row]:
    """Products for the Frobenius norm within 5 %, beside plain probing's 2 (1.96 / (2 * .05))^2 / nu (Gaussian probes).

    That number follows from the relative variance 2 / nu of one ||Hv||^2, nu = ||H||_F^4 / tr H^4.
    """
    for name, eigenvalues in spectra().items():
        hessian = Diagonal(eigenvalues)
        nu = float((eigenvalues**2).sum() ** 2 / (eigenvalues**4).sum())
        products = [float(hessian.norms(seed=(i,))[0].hvps) for i in range(2 * repetitions)]
        yield _needed_row(name, products, nu)
    bench = Bench.load("lora")
    hessian = ExactHessian(bench.loss, [bench.blocks["base"], bench.blocks["peft"]])
    for name in ("base", "peft"):
        images = [hessian.product(draw(bench.blocks[name], "gaussian", [1, i]), name, [name])[0] for i in range(16)]
        nu = effective_rank(gram_matrix(images), cautious=False)
        products = [float(hessian.norms([name], seed=(i,))[0].hvps) for i in range(min(repetitions, 3))]
        yield _needed_row(f"micro, {name} block", products, nu)


def _needed_row(name: str, products: list[float], nu: float) -> Row:
    plain = 2 * (1.96 / (2 * 0.05)) ** 2 / nu
    return _row(
        f"products for 5 %: {name}", products, [], unit="products", hvps=statistics.median(products), plain_hvps=plain
    )


@dataclass(frozen=True)
class Speed(Ratios):
    """Cost of products and norms on `micro`.

    Attributes:
        repetitions: interleaved repetitions of every item.
    """

    name: ClassVar[str] = "speed"
    repetitions: int = 45

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Times, then memory, then numbers of products."""
        yield from _products(self.repetitions)
        yield _point(max(2, self.repetitions // 5))
        yield from _memory(self.repetitions)
        yield from _needed(self.repetitions)


def measure(repetitions: int, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    packages = ("curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")
    return recorded(Speed(repetitions), out, batch=[BATCH, LENGTH], others={name: _version(name) for name in packages})


show = partial(table, names=("what",), number=".3g", more={"error": ".1e", "hvps": "g", "plain_hvps": ".0f"})
"""The rows as a table."""


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


@pytest.mark.slow
def test_costs_in_gradients_stay_within_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(__file__).with_name("results") / "speed_micro.jsonl"
    rows = measure(Speed.repetitions, out)
    with capsys.disabled():
        print("\n" + show(rows))
    by_name = {row["what"]: row for row in rows}
    missed = {name: by_name[name]["value"] for name, target in TARGETS.items() if not by_name[name]["value"] <= target}
    assert not missed, f"above target: {missed}"
    assert by_name["exact product"]["error"] < 1e-4 and by_name["central difference"]["error"] < 1e-2
    assert np.isfinite([row["value"] for row in rows]).all()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=Speed.repetitions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_micro.jsonl"))
    parser.add_argument("--memory", choices=["gradient", "exact", "central"], help="one measurement, printed as JSON")
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args.memory)))
    else:
        print(show(measure(args.repetitions, args.out)))


if __name__ == "__main__":
    main()
