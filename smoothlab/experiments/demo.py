"""All experiments in small, on the built-in model and data: sections side by side, a thread each."""

import contextlib
import io
import multiprocessing
import os
import queue
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput, Unfinished
from smoothlab.experiments.advise.experiment import Advise
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.config import Method
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.records import Experiment, Row, run

# So few steps move the weights only with a rate well above that of Appendix D.4 (5e-5 over 5,000 steps).
STEPS, POINTS, PROBES, RATE = 150, 4, 10, 2e-2

# Estimators: few enough directions for half a minute.
ESTIMATORS = Estimators(
    functions=("cosh",), distributions=("gaussian", "rademacher", "lowrank"), draws=3000, dims=(4, 16, 64),
    qs=(1, 2, 4, 8), mus=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), curve_draws=400, measure=("base",),
    model_draws=12, kinds=("gaussian", "rademacher", "one-sided"), model_mus=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    model_curve_draws=6, rounds=6,
)  # fmt: skip
# Rates: on components of one Hessian, in half a minute.
RATES = Rates(
    parts=("theorem", "exponents", "counterexample", "speedup_of_two_rates", "reshuffling"),
    eps=(1.0,), deltas=(0.5,), families=("quadratic", "cosh-y"), orders=("reshuffle", "replace"),
    fit_eps=(0.4, 0.3, 0.2), fit_ns=(2, 4, 8), fit_deltas=(0.5, 0.2), replicas=60, max_steps=13_000,
)  # fmt: skip
# Fine-tuning: enough steps for the methods to part, and curvature along each of them, on one minibatch. Zeroth-order
# steps alone learn nothing in so few.
FINETUNE = Finetune(
    steps=120, eval_every=30, test=300, patience=0, measure=("base", "peft"), points=3, minibatch="fixed", path=False,
    precision=0.1,
)  # fmt: skip
# Advice on one rate, whose predicted limit is soon known; short runs around it, in the time of some steps.
ADVISE = Advise(method="fo-peft", by="confirm", batch=8, budget=150, try_steps=10)
METHODS: dict[str, Method] = {"fo-lora": "fo-peft", "hybrid-lora": "hybrid", "zo": "zo"}
SECONDS = {"finetune-hybrid-lora": 65, "fig1b": 52, "fig1a": 35, "finetune-fo-lora": 45, "estimators": 38,
           "rates": 36, "finetune-zo": 36, "advise": 12}  # fmt: skip
"""CPU seconds of each section on one thread, roughly; the longest begin first, so that none is waited for alone."""
PROGRESS = re.compile(r" \d+ of \d+,|\d+ s left")
"""A line of a section's own progress."""
PATIENCE = 30.0  # seconds between lines where stderr is no terminal


def sections(seed: int) -> dict[str, Experiment]:
    """The runs by the names of their record files."""
    fo_full = Smoothness(
        model="micro", data="builtin", method="fo-full", steps=STEPS, points=POINTS, eta_x=RATE,
        protocol="both", probes=PROBES, seed=seed, measure=("base",),
    )  # fmt: skip
    runs: dict[str, Experiment] = {
        "fig1a": fo_full, "fig1b": replace(fo_full, method="fo-joint", eta_y=RATE, measure=("base", "peft")),
        "estimators": replace(ESTIMATORS, seed=seed), "rates": replace(RATES, seed=seed),
        "advise": replace(ADVISE, seed=seed),
    }  # fmt: skip
    for name, method in METHODS.items():
        measured = ("base",) if method == "zo" else FINETUNE.measure  # without a PEFT module
        runs[f"finetune-{name}"] = replace(FINETUNE, method=method, measure=measured, seed=seed)
    return runs


def measure(folder: Path, seed: int, environment: Row, overwrite: bool) -> list[Path]:
    """Measure all sections into `folder`, continuing what was stopped, in as many processes as there are cores.

    Returns:
        The record files.

    Raises:
        BadInput: `folder` cannot be written, or holds records of other settings.
        Unfinished: a process was ended by the system.
    """
    runs = sections(seed)
    context = multiprocessing.get_context("spawn")
    tasks, news = context.Queue(), context.Queue()
    for name in sorted(runs, key=lambda name: -SECONDS[name]):
        tasks.put((name, runs[name], folder / f"{name}.jsonl", environment, overwrite))
    count = min(len(runs), os.cpu_count() or 1)
    processes = [context.Process(target=_work, args=(tasks, news), daemon=True) for _ in range(count)]
    for _ in processes:
        tasks.put(None)
    try:
        for process in processes:
            process.start()
        _watch(news, processes, len(runs))
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    return [folder / f"{name}.jsonl" for name in runs]


def _work(tasks: Any, news: Any) -> None:
    """One process: sections one after another, until none is left; whatever they print goes to the first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one; every row is on disk
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, which the first section does
    for name, experiment, out, environment, overwrite in iter(tasks.get, None):
        news.put(("begin", name, ""))
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed):
                run(experiment, out, environment=environment, overwrite=overwrite)
        except BadInput as error:
            news.put(("refused", name, str(error)))
            return
        news.put(("end", name, printed.getvalue()))


def _watch(news: Any, processes: list[Any], count: int) -> None:
    """Follow the sections to their end, with a bar that names the running ones and estimates the time left."""
    from tqdm import tqdm

    bar = tqdm(total=100, desc="demo", unit="%", disable=not sys.stderr.isatty(),
               bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix}")  # fmt: skip
    started, last_line = time.monotonic(), time.monotonic()
    running: dict[str, float] = {}
    finished: list[str] = []
    notes: list[str] = []
    while len(finished) < count:
        kind, name, text = "", "", ""
        with contextlib.suppress(queue.Empty):
            kind, name, text = news.get(timeout=1.0)
        if kind == "refused":
            raise BadInput(text)
        if kind == "begin":
            running[name] = time.monotonic()
        if kind == "end":
            del running[name]
            finished.append(name)
            for line in text.splitlines():
                # the bar shows the progress of all sections, and two of them say the same of the model
                if not PROGRESS.search(line) and line not in notes:
                    notes.append(line)
                    bar.write(line, file=sys.stderr)
        if not kind and any(process.exitcode for process in processes):
            raise Unfinished(f"a process that measured {', '.join(running)} was ended; start the same command again")
        elapsed = time.monotonic() - started
        fraction = _fraction(finished, running)
        seconds_left = elapsed * (1 - fraction) / fraction if fraction else sum(SECONDS.values()) / len(processes)
        bar.n = round(100 * fraction)
        bar.set_postfix_str(f"{', '.join(running)}; about {seconds_left:.0f} s left")
        if bar.disable and time.monotonic() - last_line > PATIENCE:
            last_line = time.monotonic()
            progress = f"{100 * fraction:.0f} % done, running {', '.join(running)}, about {seconds_left:.0f} s left"
            print(f"smoothlab: demo: {progress}", file=sys.stderr)
    bar.close()


def _fraction(finished: list[str], running: dict[str, float]) -> float:
    """Fraction of all work that is done; a section that runs counts by its time, up to nine tenths of itself."""
    work = float(sum(SECONDS[name] for name in finished))
    for name, started in running.items():
        work += min(time.monotonic() - started, 0.9 * SECONDS[name])
    return work / sum(SECONDS.values())
