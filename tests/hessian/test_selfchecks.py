"""Products that are not the loss's are flagged or refused, sound ones are left alone, and a look costs little."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smoothlab.blocks import Block, Loss, fixed_loss
from smoothlab.errors import BadInput
from smoothlab.hessian import selfchecks
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.exact import ExactHessian, frobenius
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.line_check import LineCheck
from smoothlab.hessian.loss_graph import read_graph
from smoothlab.hessian.norms import Hessian
from smoothlab.hessian.selfchecks import check_gradient
from tests.cases import PROBLEMS
from tests.lying import LIES, DetachedNorm, Lie, half_double, once, spectral_norm

MESSAGES = {
    "products": "products of block 'base' are not its loss's",
    "gradient": "gradient of block 'base' is not its loss's",
    "repeats": "at the same parameters: switch off dropout",
    "infinite": "of block 'base' is not finite",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_exact_products_that_are_not_the_losss_are_flagged_or_refused(lie: Lie) -> None:
    loss, blocks = lie.build()
    if lie.kind == "flagged":
        assert {e.flag for e in ExactHessian(loss, blocks).norms()} == {"products disagree with the loss"}
        return
    with pytest.raises(BadInput, match=MESSAGES[lie.kind]):
        ExactHessian(loss, blocks).norms()


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.kind in ("products", "flagged")], ids=lambda lie: lie.name)
def test_where_only_double_backward_is_wrong_central_differences_give_the_dense_truth(lie: Lie) -> None:
    loss, blocks = lie.build()
    found = {e.quantity: e for e in FiniteDifferenceHessian(loss, blocks).norms()}
    dense = _dense(loss, blocks[0])
    assert float((dense - dense.T).norm()) < 1e-5 * float(dense.norm())
    assert found["frobenius"].low <= float(dense.norm()) <= found["frobenius"].high
    assert found["frobenius"].flag is None
    wrong = ExactHessian(loss, blocks)
    columns = [wrong.product(v, "base", ["base"])[0] for v in torch.eye(blocks[0].dim, dtype=torch.float64)]
    assert float((torch.stack(columns) - dense).norm()) > 0.01 * float(dense.norm())  # the lie is no small one


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.kind == "gradient"], ids=lambda lie: lie.name)
def test_a_wrong_gradient_is_refused_with_differences_too(lie: Lie) -> None:
    loss, blocks = lie.build()
    with pytest.raises(WrongProducts, match="not even by differences"):
        FiniteDifferenceHessian(loss, blocks).norms()
    with pytest.raises(WrongProducts, match=MESSAGES["gradient"]):
        check_gradient(LossAtPoint(loss, blocks))


def test_a_detached_norm_of_long_rows_is_seen_along_the_rows() -> None:
    """There a gradient is almost at right angles with its row: what is wrong is 1/features of a slope along it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 40, bias=False), nn.Tanh(), nn.Linear(40, 1))
    parametrize.register_parametrization(net[0], "weight", DetachedNorm())
    x, y = torch.randn(16, 400), torch.randn(16)
    blocks = [Block("base", tuple(net.parameters()))]

    def loss() -> Tensor:
        return (net(x)[:, 0] - y).square().mean()

    with pytest.raises(WrongProducts, match="along rows of weights along themselves"):
        ExactHessian(loss, blocks).norms()
    with pytest.raises(WrongProducts, match="gradient of block 'base'"):
        check_gradient(LossAtPoint(loss, blocks))


def test_entries_without_gradient_that_move_the_loss_are_seen_beside_sound_rows() -> None:
    """One evaluation moves both: what the silent entries do to the loss is not lost among the rows' slope."""
    module, blocks = PROBLEMS["tanh"].build(dtype=torch.float32)
    silent = nn.Parameter(torch.ones(50))
    block = Block("base", (*blocks[0].params, silent))

    def loss(part: float) -> Tensor:
        return module() + (0 * silent).sum() + part * silent.detach().pow(2).mean()

    for part in (0.0, 0.01):
        hessian = ExactHessian(lambda part=part: loss(part), [block])
        run = Deflation(hessian, "base", [0], [])
        run.krylov(12)
        if part:
            with pytest.raises(WrongProducts, match="along the entries whose gradient is 0"):
                selfchecks.check_products(run)
        else:
            assert all(gap.size < 0.005 for gap in selfchecks.check_products(run))


def test_reversible_layers_that_hide_their_weights_are_refused_however_flat_the_loss() -> None:
    """A small slope where autograd says 0 is known to 6 % only; it is 17 times its error away from 0 all the same."""
    from transformers import ReformerConfig, ReformerModelWithLMHead

    config = ReformerConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=32,
        axial_pos_embds_dim=(16, 16), axial_pos_shape=(4, 8), attn_layers=["local", "local"], is_decoder=True,
        max_position_embeddings=32, local_attn_chunk_length=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ReformerModelWithLMHead(config).eval()
        tokens = torch.randint(50, (2, 32))
    layers = [p for name, p in model.named_parameters() if "embeddings" not in name and "lm_head" not in name]

    def loss() -> Tensor:
        value: Tensor = model(input_ids=tokens, labels=tokens).loss
        return value

    with pytest.raises(WrongProducts, match=r"a slope is 0 by autograd, .* reversible layers \(Reformer\)"):
        frobenius(fixed_loss(loss, model), layers)


def test_a_strong_third_derivative_takes_two_evaluations_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 + u/6 + 9 u^2/2 + 100 u^3 along a unit vector: Taylor's next term is why first differences are off."""
    w = nn.Parameter(torch.ones(20))
    v = torch.full((20,), 20**-0.5)

    def loss() -> Tensor:
        u = ((w - 1) * v).sum()
        return 10 + u / 6 + 4.5 * u**2 + 100 * u**3

    blocks = [Block("base", (w,))]
    point, made = LossAtPoint(loss, blocks), []
    check = LineCheck(point, blocks[0])
    monkeypatch.setattr(check, "_evaluate", lambda: made.append(0) or point.evaluate())
    assert check.agrees(v, 9.0) and len(made) == 4
    assert not check.agrees(v, 9.5)
    check.compare(v, "here", 9.5)
    assert check.gaps["curvature"].size == pytest.approx(0.5 / 9.5, rel=0.2) and check.gaps["gradient"].size == 0.0


def test_a_hessian_that_is_infinite_has_no_unflagged_number_by_differences() -> None:
    loss, blocks = next(lie for lie in LIES if lie.kind == "infinite").build()
    try:
        found = FiniteDifferenceHessian(loss, blocks).norms()
    except BadInput:
        return
    assert all(e.flag for e in found)


def test_spectral_norm_whose_buffers_are_held_still_is_seen_by_its_products() -> None:
    loss, blocks = spectral_norm()
    net = loss.__closure__[0].cell_contents  # type: ignore[attr-defined]
    with pytest.raises(WrongProducts):
        ExactHessian(fixed_loss(loss, net, train=True), blocks).norms()


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in ("relu", "unused", "opt")])
def test_sound_losses_are_left_alone(name: str) -> None:
    module, blocks = PROBLEMS[name].build()
    for product in (ExactHessian, FiniteDifferenceHessian):
        found = product(module, blocks).norms()
        assert not any("disagree" in (e.flag or "") or "asymmetric" in (e.flag or "") for e in found)
    check_gradient(LossAtPoint(module, blocks))


def test_kinks_are_flagged_and_not_refused() -> None:
    module, blocks = PROBLEMS["relu"].build()
    assert read_graph(module()).nonsmooth == ("Relu",)
    ExactHessian(module, blocks).norms()


def rounded(step: float) -> tuple[Loss, Block]:
    """A layer whose outputs are rounded to multiples of a step, which stops gradients, beside a residual connection."""
    generator = torch.Generator().manual_seed(0)
    inputs, outer = (torch.randn(shape, generator=generator) for shape in ((50, 8), (6, 3)))
    weight = nn.Parameter(0.3 * torch.randn(8, 6, generator=generator))

    def loss() -> Tensor:
        hidden = inputs @ weight
        return (((hidden.detach() / step).round() * step + 0.3 * hidden) @ outer - 1).square().mean()

    return loss, Block("base", (weight,))


def test_a_loss_with_steps_that_hide_its_slopes_is_flagged() -> None:
    """As over int8 activations: a gradient that is wrong cannot be told from one that is right."""
    loss, block = rounded(0.05)
    with pytest.warns(UserWarning, match=r"of block 'base' jumps by \d+ times its rounding, .*before it is quantized"):
        flags = {e.flag for e in ExactHessian(loss, [block]).norms()}
    assert flags == {"loss too rough to check"}


@pytest.mark.parametrize("kind", ["householder", "cayley"])
def test_an_orthogonal_weight_whose_parameter_holds_signs_is_flagged(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 4, bias=False), orthogonal_map=kind)
    inputs, outer = torch.randn(50, 8), torch.randn(4, 3)
    told = pytest.warns(UserWarning, match=r"of block 'base' jumps by .* orthogonal\(\), .* orthogonal_map='cayley'")
    with told if kind == "householder" else nullcontext():
        block = Block("base", tuple(layer.parameters()))
        flags = {e.flag for e in ExactHessian(lambda: (layer(inputs).tanh() @ outer).square().mean(), [block]).norms()}
    assert flags == ({"loss too rough to check"} if kind == "householder" else {None})


def test_steps_that_hide_no_slope_are_no_excuse() -> None:
    loss, block = rounded(1e-5)
    with pytest.raises(WrongProducts, match=MESSAGES["gradient"]):
        ExactHessian(loss, [block]).norms()


class _Asymmetric(Hessian):
    """Products with A, which is not symmetric."""

    def __init__(self, size: float) -> None:
        generator = torch.Generator().manual_seed(3)
        a = torch.randn(60, 60, generator=generator, dtype=torch.float64)
        b = torch.randn(60, 60, generator=generator, dtype=torch.float64)
        self.matrix = (a + a.T) / 2 + size * (b - b.T) / 2
        w = nn.Parameter(torch.zeros(60, dtype=torch.float64))
        self.blocks, self.loss, self.gradients = {"a": Block("a", (w,))}, 0.0, {"a": torch.zeros_like(w)}

    def product(self, v: Tensor, along: str, wrt: list[str]) -> tuple[Tensor, ...]:
        return tuple(self.matrix @ v for _ in wrt)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        return 1e-15, 1


@pytest.mark.parametrize("size, flag", [(0.0, None), (0.05, "asymmetric products"), (0.3, "refused")])
def test_asymmetry_needs_no_product_and_is_that_of_the_matrix(size: float, flag: str | None) -> None:
    hessian = _Asymmetric(size)
    run = Deflation(hessian, "a", [0], [])
    run.krylov(12)
    spent = run.hvps
    q = run.basis.rows[:, :]
    t = q @ hessian.matrix @ q.T
    truth = float(torch.triu(t - t.T, 1).norm()) / run.captured**0.5
    assert run.asymmetry() == pytest.approx(truth, rel=0.05, abs=1e-12) and run.hvps == spent
    if flag == "refused":
        with pytest.raises(WrongProducts, match="u'Hv and v'Hu differ"):
            hessian.norms()
    else:
        assert {e.flag for e in hessian.norms(precision=0.2)} == {flag}


def test_a_product_of_the_self_check_is_not_lost_and_few_evaluations_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most five evaluations, a quarter of a product each, and one product that joins Q: 10 % of 19 products."""
    module, blocks = PROBLEMS["gelu"].build(dtype=torch.float32)
    hessian = ExactHessian(module, blocks[:1])
    made = []
    honest = ExactHessian.evaluate
    monkeypatch.setattr(ExactHessian, "evaluate", lambda self: made.append(0) or honest(self))
    run = Deflation(hessian, blocks[0].name, [0], [])
    run.krylov(min(12, run.block.dim - 2))
    before = run.hvps
    selfchecks.check_products(run)
    assert run.hvps == before + 1 and run.basis.size == run.lanczos + 1
    assert len(made) <= 5


def test_the_checks_read_the_parameters_only() -> None:
    module, blocks = PROBLEMS["tanh"].build()
    kept = [p.detach().clone() for p in module.parameters()]
    state = torch.random.get_rng_state()
    ExactHessian(module, blocks).norms()
    check_gradient(LossAtPoint(module, blocks))
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), kept, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state) and all(p.grad is None for p in module.parameters())


def test_the_graph_names_operations_padding_rows_and_parameters_that_nothing_reads() -> None:
    embedding, linear = nn.Embedding(9, 4, padding_idx=1), nn.Linear(4, 2)
    unused = nn.Parameter(torch.zeros(3))
    graph = read_graph(linear(embedding(torch.tensor([2, 1, 3]))).sum())
    assert graph.padded == {id(embedding.weight): 1} and id(unused) not in graph.readers
    assert graph.readers[id(embedding.weight)] == "Embedding" and graph.nonsmooth == ()
    assert read_graph(linear(embedding(torch.tensor([2, 3]))).sum()).padded == {}


@pytest.mark.parametrize("build", [once, half_double])
def test_without_the_check_the_numbers_would_be_wrong_without_a_word(build: object, monkeypatch: object) -> None:
    """What the checks are for: with them taken out, intervals are narrow, unflagged, and miss."""
    monkeypatch.setattr("smoothlab.hessian.norms.check_products", lambda run: [])  # type: ignore[attr-defined]
    loss, blocks = build()  # type: ignore[operator]
    found = ExactHessian(loss, blocks).norms()[0]
    truth = float(_dense(loss, blocks[0]).norm())
    assert found.flag is None and not found.low <= truth <= found.high


def _dense(loss: object, block: Block) -> Tensor:
    """The Hessian by central differences of gradients that are right, [dim, dim]."""
    hessian = FiniteDifferenceHessian(loss, [block], h=1e-4)  # type: ignore[arg-type]
    columns = [hessian.product(v, block.name, [block.name])[0] for v in torch.eye(block.dim, dtype=torch.float64)]
    return torch.stack(columns)
