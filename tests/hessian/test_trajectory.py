"""Points, the two protocols, path quotients and the hook, against closed forms on a quadratic."""

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.trajectory import PAPER_H, PathSmoothness, estimated, has_kinks, paper, schedule


class Quadratic(nn.Module):
    """f(z) = z'Az/2 with blocks x and y of z, and A known: every norm has a closed form."""

    def __init__(self, dx: int = 30, dy: int = 10, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        a = torch.randn(dx + dy, dx + dy, generator=generator, dtype=dtype)
        self.register_buffer("a", (a + a.T) / 2)
        self.x = nn.Parameter(torch.randn(dx, generator=generator, dtype=dtype))
        self.y = nn.Parameter(torch.randn(dy, generator=generator, dtype=dtype))
        self.blocks = [Block("x", (self.x,)), Block("y", (self.y,))]

    def loss(self) -> Tensor:
        z = torch.cat([self.x, self.y])
        return z @ self.a @ z / 2

    def part(self, b: str, c: str) -> Tensor:
        at = {"x": slice(0, len(self.x)), "y": slice(len(self.x), None)}
        return self.a[at[b], at[c]]


@pytest.mark.parametrize(
    ("steps", "points", "kind", "expected"),
    [
        (100, 5, "linear", [0, 25, 50, 75, 100]),
        (5000, 20, "linear", [round(i * 5000 / 19) for i in range(20)]),
        (1000, 5, "log", [0, 1, 10, 100, 1000]),
        (2, 20, "linear", [0, 1, 2]),
        (0, 7, "log", [0]),
        (9, 1, "linear", [0]),
    ],
)
def test_schedule_holds_both_ends_once(steps: int, points: int, kind: str, expected: list[int]) -> None:
    assert schedule(steps, points, kind) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "points"), [(-1, 5), (10, 0)])
def test_schedule_refuses_nonsense(steps: int, points: int) -> None:
    with pytest.raises(BadInput, match=str(points)):
        schedule(steps, points)


@pytest.mark.parametrize("product", ["exact", "central", "forward"])
def test_careful_rows_hold_the_truth(product: str) -> None:
    model = Quadratic()
    rows = list(estimated(model.loss, model.blocks, cross=[("x", "y")], product=product))  # type: ignore[arg-type]
    truth = {("x", "x"): model.part("x", "x"), ("y", "y"): model.part("y", "y"), ("x", "y"): model.part("y", "x")}
    for row in rows:
        h = truth[row["block"], row["wrt"]]
        value = {
            "frobenius": lambda h=h: h.norm(),
            "spectral": lambda h=h: torch.linalg.matrix_norm(h, 2),
            "trace": lambda h=h: h.trace(),
        }[row["quantity"]]()
        assert row["low"] <= float(value) <= row["high"], row
        assert row["protocol"] == "estimated" and row["normalized"] is None
    gradient = model.a @ torch.cat([model.x, model.y]).detach()
    assert rows[0]["grad_norm"] == pytest.approx(float(gradient[:30].norm()), rel=1e-12)
    assert rows[0]["grad_norm_total"] == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert len(rows) == 7


def test_paper_rows_are_appendix_d4() -> None:
    """sqrt(mean ||sum over the batch Hv||^2) with unit v and h = 1e-5: B ||H||_F / sqrt(d), in fp64 without a floor."""
    model = Quadratic()
    (x, y) = list(paper(model.loss, model.blocks, batch=8, probes=400))
    for row, name in ((x, "x"), (y, "y")):
        norm = float(model.part(name, name).norm())
        dim = row["dim"]
        printed = 8 * norm / dim**0.5
        assert row["low"] <= printed <= row["high"]
        assert row["value"] == pytest.approx(printed, rel=0.1)
        assert row["normalized"] == pytest.approx(row["value"] * dim**0.5 / 8, rel=1e-12)
        assert row["h"] == PAPER_H and row["flag"] is None and row["floor"] < 1e-3 * row["value"]


def test_paper_settings_in_fp32_lie_under_their_floor() -> None:
    """A huge gradient beside a small Hessian: along h = 1e-5 it does not change by an ulp, and the row says so."""
    scale = torch.linspace(1, 2, 200)
    x = nn.Parameter(torch.ones(200))

    def loss() -> Tensor:
        return (scale * (x * 1000 + 1e-4 * x**2)).sum()

    (row,) = paper(loss, [Block("x", (x,))], batch=1, probes=20)
    assert row["flag"] == "below floor"
    assert row["floor"] > 2e-4 * float(scale.norm()) / 200**0.5  # the truth, ||H||_F / sqrt(d)


def test_kinks_are_flagged_for_relu_and_only_there() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 10, dtype=torch.float64), torch.randint(0, 3, (64,))
    for activation, expected in ((nn.ReLU(), True), (nn.GELU(), False), (nn.Tanh(), False)):
        net = nn.Sequential(nn.Linear(10, 60), activation, nn.Linear(60, 60), activation, nn.Linear(60, 3)).double()

        def loss(net: nn.Module = net) -> Tensor:
            return nn.functional.cross_entropy(net(inputs), labels)

        block = Block("net", tuple(net.parameters()))
        assert has_kinks(loss, block) is expected, activation
        rows = list(estimated(loss, [block], kinks=expected))
        assert all(("kinks" in (row["flag"] or "")) is expected for row in rows)


def test_quotient_is_the_matrix_acting_on_the_move() -> None:
    model = Quadratic()
    quotient = PathSmoothness(model.loss, model.blocks)
    move = torch.linspace(-1, 1, 40, dtype=torch.float64)
    with torch.no_grad():
        model.x += move[:30]
        model.y += move[30:]
    rows = {row["block"]: row for row in quotient.rows()}
    change = model.a @ move
    assert rows["x"]["value"] == pytest.approx(float(change[:30].norm() / move[:30].norm()), rel=1e-9)
    assert rows["y"]["value"] == pytest.approx(float(change[30:].norm() / move[30:].norm()), rel=1e-9)
    assert rows["x"]["low"] is None and rows["x"]["flag"] is None


def test_quotient_without_a_move_is_null() -> None:
    model = Quadratic()
    assert [row["value"] for row in PathSmoothness(model.loss, model.blocks).rows()] == [None, None]


def test_unknown_product_is_refused() -> None:
    model = Quadratic()
    with pytest.raises(BadInput, match="'vjp' is unknown: use exact, central or forward"):
        list(estimated(model.loss, model.blocks, product="vjp"))  # type: ignore[arg-type]


def test_difference_products_name_their_step() -> None:
    model = Quadratic()
    rows = list(estimated(model.loss, model.blocks, product="central"))
    hessian = FiniteDifferenceHessian(model.loss, model.blocks)
    assert all(row["h"] > 0 for row in rows) and hessian.steps == {}
