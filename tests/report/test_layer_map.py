"""The map of layers against steps: which rows it shows, in which order, with which colors and marks."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm

from smoothlab.errors import BadInput
from smoothlab.report import draw
from smoothlab.report.layer_map import layers_of

LAYERS = ("layer.1", "embedding", "layer.0")
STEPS = (0, 20, 60)


def row(step: int, block: str, wrt: str, quantity: str, value: float, flag: str | None = None) -> dict[str, Any]:
    return {
        "step": step, "protocol": "estimated", "block": block, "wrt": wrt, "quantity": quantity, "value": value,
        "low": value, "high": value, "floor": 0.0, "flag": flag, "grad_norm": 1.0,
    }  # fmt: skip


def table(*, diagonal: bool = True) -> pd.DataFrame:
    rows = []
    for step in STEPS:
        for quantity in ("frobenius", "spectral", "trace"):
            rows += [row(step, "base", "base", quantity, 9.0), row(step, "peft", "peft", quantity, 2.0)]
        rows.append(row(step, "base", "peft", "frobenius", 5.0))
        for i, layer in enumerate(LAYERS):
            flag = "precision not reached" if layer == "embedding" else None
            rows.append(row(step, "base", layer, "frobenius", 10.0 ** (i + 1) + step, flag))
            rows.append(row(step, layer, layer, "trace", float(i - 1) - step))
            if diagonal:
                rows.append(row(step, layer, layer, "frobenius", 10.0**i))
    return pd.DataFrame(rows)


def maps(figure: Any) -> list[Any]:
    return [ax for ax in figure.get_axes() if ax.images]


def test_rows_and_diagonal_norms_stand_side_by_side_in_the_order_of_the_forward_pass() -> None:
    rows, own = maps(draw("layers", table()))
    assert [tick.get_text() for tick in rows.get_yticklabels()] == ["embedding", "layer.0", "layer.1"]
    assert [tick.get_text() for tick in rows.get_xticklabels()] == ["0", "20", "60"]
    np.testing.assert_allclose(rows.images[0].get_array(), [[100, 120, 160], [1000, 1020, 1060], [10, 30, 70]])
    np.testing.assert_allclose(own.images[0].get_array(), [[10] * 3, [100] * 3, [1] * 3])
    assert isinstance(rows.images[0].norm, LogNorm)


def test_flagged_values_are_in_parentheses() -> None:
    (rows,) = maps(draw("layers", table(diagonal=False)))
    texts = [text.get_text() for text in rows.texts]
    assert texts == ["(100)", "(120)", "(160)", "1,000", "1,020", "1,060", "10", "30", "70"]


def test_traces_have_signs_and_0_in_the_middle() -> None:
    (ax,) = maps(draw("layers", table(), "trace"))
    norm = ax.images[0].norm
    assert norm(0.0) == 0.5 and norm(-61.0) == 0.0


def test_layers_are_chosen_by_name() -> None:
    rows, _ = maps(draw("layers", table(), "frobenius", ["layer.0"]))
    assert [tick.get_text() for tick in rows.get_yticklabels()] == ["layer.0"]
    with pytest.raises(BadInput, match="--block base: layers were measured of layer.1, embedding, layer.0"):
        draw("layers", table(), "frobenius", ["base"])


def test_whole_blocks_are_no_layers() -> None:
    assert layers_of(table()) == LAYERS
    whole = table()[lambda df: df["wrt"].isin(["base", "peft"])]
    with pytest.raises(BadInput, match="measure with --block-rows layer"):
        draw("layers", whole)
    with pytest.raises(BadInput, match="no gauss_newton_trace of layers"):
        draw("layers", table(), "gauss_newton_trace")
