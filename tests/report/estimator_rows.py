"""Records of `smoothlab estimators` whose every number is made up."""

import numpy as np
import pandas as pd

MUS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


def row(part, setting, quantity, measured, spread=0.1, **told):
    name = told.get("estimator", "two-sided gaussian")
    return {
        "kind": "row",
        "part": part,
        "setting": f"{part}/{setting}",
        "quantity": quantity,
        "estimator": name,
        "distribution": "gaussian",
        "sides": 2,
        "q": 1,
        "average": "plain",
        "mu": 0.1,
        "dtype": "float64",
        "d": 9,
        "draws": 100,
        "measured": measured,
        "low": measured * (1 - spread),
        "high": measured * (1 + spread),
        "reference": None,
        "predicted": None,
        "stream": "cpu/AVX512/torch-2.13.0/chunk-131072",
        "function": "cosh",
        "block": "theta",
    } | told


def bias_rows():
    for distribution, factor in (("gaussian", 1.0), ("rademacher", 0.5)):
        for mu in MUS:
            found = row(
                "bias",
                f"cosh/{distribution}",
                "bias",
                1.05 * factor * mu**2,
                distribution=distribution,
                mu=mu,
                exact=True,
                reference=factor * mu**2,
            )
            yield found | ({"measured": -3e-12, "low": -8e-12, "high": 2e-12} if mu == 1e-6 else {})
            if distribution == "gaussian":
                yield row("bias", f"cosh/{distribution}", "bias", mu**2, 2.0, mu=mu, dtype="float32", reference=mu**2)


def variance_rows():
    for d in (4, 16):
        for sides in (2, 1):
            exact = d + 1 + (sides == 1) * d**2 / 40
            yield row("variance", "gaussian", "error", 1.02 * exact, d=d, sides=sides, reference=exact)
    for average, sides, exact in (("plain", 2, 65), ("antithetic", 1, 130), ("orthogonal", 2, 63)):
        for q in (2, 8):
            yield row("averages", average, "error", exact / q, average=average, sides=sides, q=q, d=64,
                      reference=exact / q)  # fmt: skip


def curve_rows(part, block, dtypes):
    for dtype, noise in dtypes.items():
        for sides in (1, 2):
            for mu in MUS:
                predicted = float(np.hypot(mu**sides, noise / mu))
                yield row(part, f"{block}/{dtype}", "derivative error", 1.1 * predicted, dtype=dtype, sides=sides,
                          block=block, mu=mu, predicted=predicted)  # fmt: skip
            best = row(part, f"{block}/{dtype}", "best mu", 1e-3, 0.5, dtype=dtype, sides=sides, block=block,
                       predicted=2e-3, edge=dtype == "float64")  # fmt: skip
            yield best | ({"low": 0.0} if dtype == "float64" else {})


def model_rows():
    for kind, estimator in (("gaussian", "two-sided gaussian"), ("one-sided", "one-sided gaussian")):
        told = {"estimator": estimator, "d": 1000, "block": "base", "function": "micro", "mu": 1e-3}
        yield row("model-variance", kind, "error", 900.0, 0.2, reference=1001.0, **told)
    for kind, cost in (("gaussian", 0.62), ("kept", 0.31)):
        told = {"block": "base", "function": "micro", "d": 1000}
        yield row("model-cost", kind, "pass in forwards", cost, **told)
        yield row("model-cost", kind, "share of a step", cost / (1 + cost), **told)


def all_rows():
    yield from bias_rows()
    yield from variance_rows()
    yield from curve_rows("curve", "theta", {"float64": 1e-16, "float32": 1e-7})
    for block in ("base", "peft"):
        yield from curve_rows("model-curve", block, {"float32": 1e-7, "bfloat16": 1e-3})
    yield from model_rows()


def table(found=None):
    return pd.DataFrame(all_rows() if found is None else found).drop(columns="kind").assign(path="run.jsonl")
