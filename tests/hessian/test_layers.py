"""Row norms, traces and diagonal norms of layers against dense matrices: exactness, no bias, coverage, budgets."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian import deflation
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.layers import LayerRows, Layers
from tests.cases import SPECTRA, DenseHessian, Tied
from tests.hessian.test_norms import covers, least, one_thread, simulated, symmetric, z_score
from tests.hessian.test_products import dense

__all__ = ["one_thread"]
SIZES = (10, 15, 30, 5, 20)
"""Sizes of the block's parameters, of 80 entries together."""
NAMES = ("early", "late", "middle")


class Layered(DenseHessian):
    """A dense Hessian on one block "a" of five parameters in three layers, and its truth by layer."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__(matrix)
        params = tuple(torch.zeros(size, dtype=torch.float64) for size in SIZES)
        self.blocks = {"a": Block("a", params)}
        # The first layer holds the first and the last parameter, as tied embeddings and heads may lie.
        self.layers = [Block("early", (params[0], params[4])), Block("late", params[1:2]), Block("middle", params[2:4])]
        edges = np.cumsum([0, *SIZES]).tolist()
        ranges = [[*range(edges[i], edges[i + 1])] for i in range(5)]
        self.places = {"early": ranges[0] + ranges[4], "late": ranges[1], "middle": ranges[2] + ranges[3]}

    def truth(self, quantity: str, wrt: str = "a", along: str = "a") -> float:
        if wrt == "a":
            return super().truth(quantity, wrt, along)
        rows = self.matrix[self.places[wrt]]
        own = rows[:, self.places[wrt]]
        if quantity == "trace":
            return float(own.trace())
        return float(torch.linalg.matrix_norm(own if along == wrt else rows))


def layered(spectrum: str, seed: int = 1) -> Layered:
    """A spectrum in random directions, the layers of which are of different size."""
    values = SPECTRA[spectrum]
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    scale = np.linspace(0.3, 2.0, len(values))
    return Layered(scale[:, None] * (turn @ np.diag(values) @ turn.T) * scale)


def key(e: Any) -> tuple[str, str, str]:
    return e.quantity, e.wrt, e.block


def test_layers_of_a_block_within_the_basis_are_exact_and_add_up() -> None:
    w = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 2, 4)]
    a = torch.from_numpy(symmetric(9, 0))
    layers = [Block("p", (w[0], w[2])), Block("q", (w[1],))]
    hessian = ExactHessian(lambda: torch.cat(w) @ a @ torch.cat(w) / 2, [Block("all", tuple(w))])
    rows = {key(e): e for e in hessian.norms(rows=layers)}
    p = [0, 1, 2, 5, 6, 7, 8]
    assert rows["frobenius", "p", "all"].value == pytest.approx(float(a[p].norm()))
    assert rows["frobenius", "q", "all"].value == pytest.approx(float(a[3:5].norm()))
    assert rows["trace", "p", "p"].value == pytest.approx(float(a[p][:, p].trace()))
    assert rows["trace", "q", "q"].value == pytest.approx(float(a[3:5, 3:5].trace()))
    squares = rows["frobenius", "p", "all"].value ** 2 + rows["frobenius", "q", "all"].value ** 2
    assert squares == pytest.approx(rows["frobenius", "all", "all"].value ** 2)
    assert rows["trace", "p", "p"].needed is None


def test_layers_cost_no_product_and_change_no_norm() -> None:
    hessian = layered("power law")
    plain = hessian.norms()
    before = hessian.products
    split = hessian.norms(rows=hessian.layers)
    for norm, other in zip(
        split, plain, strict=False
    ):  # probes are projected there, and here what is known is subtracted
        fields = ("value", "low", "high")
        assert norm.hvps == other.hvps
        assert [getattr(norm, f) for f in fields] == pytest.approx([getattr(other, f) for f in fields], rel=1e-10)
    assert hessian.products == 2 * before


class Recorded(LayerRows):
    """Keeps the probes' images as they were."""

    def add_probe(self, v: Tensor, image: Tensor, basis: Tensor, earlier: Sequence[Any]) -> None:
        self.kept = [*getattr(self, "kept", []), image.clone()]
        super().add_probe(v, image, basis, earlier)


@pytest.mark.parametrize("removed", [False, True])
def test_gram_matrices_by_layer_are_those_of_the_whole_images(removed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if removed:  # as where hardly anything is left to probe
        monkeypatch.setattr(deflation, "_PYTHAGORAS", 2.0)
    hessian = layered("ten equal")
    rows = Recorded(hessian.blocks["a"], hessian.layers)
    run = Deflation(hessian, "a", [0], {}, rows)
    run.krylov(6)
    for _ in range(18):  # two more than are kept: the last has no entry
        run.probe()
    for number, name in enumerate(rows.layers.names):
        images = torch.stack([image[hessian.places[name]] for image in rows.kept[:17]])
        assert np.allclose(rows.grams[number], (images @ images.T).numpy())
    assert [bool(image.removed.any()) for image in run.images] == [removed] * 16


def test_probes_are_forgotten_where_their_images_join_the_basis() -> None:
    hessian = layered("ten equal")
    rows = LayerRows(hessian.blocks["a"], hessian.layers)
    run = Deflation(hessian, "a", [0], {}, rows)
    run.krylov(4)
    for _ in range(3):
        run.probe()
    run.extend()
    assert (rows.squares, rows.forms, rows.grams.shape) == ([], [], (3, 0, 0))
    q = run.basis.rows
    for number, name in enumerate(rows.layers.names):
        images = hessian.matrix[hessian.places[name]] @ q.T
        assert rows.known[number] == pytest.approx(float(images.square().sum()))
        assert rows.traces[number] == pytest.approx(float((images * q.T[hessian.places[name]]).sum()))


@pytest.mark.parametrize("spectrum", ["ten equal", pytest.param("flat", marks=pytest.mark.check)])
def test_estimates_have_no_bias(spectrum: str) -> None:
    hessian = layered(spectrum)
    squares: dict[str, list[float]] = {name: [] for name in NAMES}
    traces: dict[str, list[float]] = {name: [] for name in NAMES}
    for seed in range(150):
        rows = LayerRows(hessian.blocks["a"], hessian.layers)
        run = Deflation(hessian, "a", [seed], {}, rows)
        run.krylov(3)
        for _ in range(4):
            run.probe()
        for number, name in enumerate(rows.layers.names):
            squares[name].append(rows.known[number] + np.mean([square[number] for square in rows.squares]))
            traces[name].append(rows.traces[number] + np.mean([form[number] for form in rows.forms]))
    for name in NAMES:
        assert abs(z_score(np.array(squares[name]), hessian.truth("frobenius", name) ** 2)) < 4
        assert abs(z_score(np.array(traces[name]), hessian.truth("trace", name, name))) < 4


@simulated(40, 1000)
@pytest.mark.parametrize("spectrum", ["power law", *(pytest.param(s, marks=pytest.mark.check) for s in SPECTRA)])
def test_intervals_of_layers_cover(spectrum: str, runs: int) -> None:
    hessian = layered(spectrum)
    held: Counter[tuple[str, str, str]] = Counter()
    for seed in range(runs):
        for e in hessian.norms(seed=(seed,), precision=0.1, lanczos=6, rows=hessian.layers):
            held[key(e)] += covers(e, hessian.truth(*key(e)))
    assert len(held) == 3 + 2 * len(NAMES)
    assert min(held.values()) >= least(runs), held


@simulated(25, 500)
@pytest.mark.parametrize("spectrum", ["power law", *(pytest.param(s, marks=pytest.mark.check) for s in SPECTRA)])
def test_intervals_of_diagonal_norms_cover_within_the_budget(spectrum: str, runs: int) -> None:
    hessian = layered(spectrum)
    held: Counter[str] = Counter()
    for seed in range(runs):
        own = [e for e in hessian.norms(seed=(seed,), precision=0.1, lanczos=6, rows=hessian.layers, diagonal=60)
               if e.quantity == "frobenius" and e.block == e.wrt != "a"]  # fmt: skip
        assert len(own) == len(NAMES)
        assert sum(e.hvps for e in own) <= 60
        for e in own:
            held[e.block] += covers(e, hessian.truth(*key(e)))
    assert min(held.values()) >= least(runs), held


def test_the_budget_goes_to_the_widest_interval() -> None:
    # Three equal eigenvalues and a small rest: a Krylov space holds one, and few probes see the others well.
    matrix = np.eye(80)
    matrix[10:25, 10:25] = np.diag([50.0] * 3 + [1e-3] * 12)
    hessian = Layered(matrix)
    own = {e.block: e for e in hessian.norms(precision=0.2, rows=hessian.layers, diagonal=80)
           if e.quantity == "frobenius" and e.block == e.wrt}  # fmt: skip
    assert own["late"].hvps > 2 * own["early"].hvps
    assert own["late"].flag is None
    widths = {name: (e.high - e.low) / (2 * e.value) for name, e in own.items()}
    assert max(widths.values()) < 0.21


def test_diagonal_norms_of_a_loss_agree_with_its_dense_hessian() -> None:
    torch.manual_seed(0)
    module = Tied().double()
    block = Block("all", tuple(module.parameters()))
    layers = [Block("tied", (module.output.weight,)), Block("mix", tuple(module.mix.parameters()))]
    matrix = dense(module, [block])
    split = Layers(block, layers)
    assert sum(split.dims) == block.dim == len(matrix)  # the tied matrix counts once
    for kind in (ExactHessian, FiniteDifferenceHessian):
        for e in kind(module, [block]).norms(lanczos=27, rows=layers, diagonal=200, precision=0.02):
            if e.block == "all" and e.wrt == "all":
                continue
            number = split.names.index(e.wrt)
            rows = torch.cat([matrix[first:last] for first, last in split.ranges[number]])
            own = torch.cat([rows[:, first:last] for first, last in split.ranges[number]], 1)
            truth = {"trace": own.trace(), "frobenius": own.norm()}[e.quantity]
            if e.block != e.wrt:
                truth = rows.norm()
            assert e.value == pytest.approx(float(truth), rel=0.05), e  # 2.5 times the half-width
            if e.block != e.wrt or e.quantity == "trace":  # the basis spans the block
                assert e.value == pytest.approx(float(truth), rel=1e-6), e


def test_gather_and_scatter_are_inverse() -> None:
    hessian = layered("flat")
    split = Layers(hessian.blocks["a"], hessian.layers)
    w = torch.arange(80.0)
    parts = [split.scatter(number, split.gather(number, w)) for number in range(3)]
    assert torch.equal(sum(parts), w)
    assert split.gather(0, w).tolist() == [float(i) for i in hessian.places["early"]]


def refused(hessian: Layered, **options: Any) -> str:
    with pytest.raises(BadInput) as error:
        hessian.norms(**options)
    return str(error.value)


def test_mistakes_are_named() -> None:
    hessian = layered("flat")
    early, late, middle = hessian.layers
    assert "is in no layer" in refused(hessian, rows=[early, late])
    assert "share a parameter of shape (15,)" in refused(
        hessian, rows=[early, late, middle, Block("twice", late.params)]
    )
    assert "holds more than one layer" in refused(hessian, rows=list(hessian.blocks.values()))
    assert "use at least 30" in refused(hessian, rows=hessian.layers, diagonal=29)
    assert "give the layers" in refused(hessian, diagonal=100)
    assert "precision 1.5 of the trace" in refused(hessian, trace=1.5)
