"""Cases as data: to add one is an entry here, and every test that takes its list then runs on it.

PROBLEMS are tiny modules whose forward is the loss on data of their own, so that dense Hessians can be formed.
SPECTRA are eigenvalues for the norms. `DenseHessian` is the Hessian protocol on a matrix that is known.
ESTIMATORS are zeroth-order estimators on blocks of any shapes, `Polynomial` a loss whose derivatives are known.
OBJECTIVES are synthetic finite sums, E1 to E9 those of theory.md E; FAMILIES and COUPLINGS is what they are made of.
CURVED are finite sums whose components have Hessians of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from smoothlab.blocks import Block
from smoothlab.hessian.norms import Hessian
from smoothlab.llm.peft_methods import PEFT_METHODS
from smoothlab.objectives import (
    Barrier,
    Cosh,
    CosineCoupling,
    Coupling,
    Exponential,
    FiniteSum,
    LogCoshCoupling,
    Objective,
    Oscillating,
    Power,
    ProductCoupling,
    Psi,
    QuadraticCoupling,
    exponential_sum,
    log_cosh_sum,
    objective,
    quadratic_sum,
)
from smoothlab.objectives import Quadratic as QuadraticPsi
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sparse, Sphere
from smoothlab.zeroth.estimators import Average, Sides, ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.moments import Taylor
from smoothlab.zeroth.scaled import Masked, Preconditioned


@dataclass(frozen=True)
class AdapterCase:
    """How an accepted PEFT method is tested.

    Attributes:
        quick: in the default run; the others run under the slow marker.
        single: peft computes a part of it in fp32 whatever the weights are, so it agrees to fp32's rounding only.
        options: of peft's config, for a hidden size of 16.
    """

    quick: bool = False
    single: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def start_loss(model: Any) -> Tensor:
    """Loss of a padded minibatch, for methods that start from its gradient: a classifier's, or a language model's."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 1, 1, 1]])
    labels = torch.tensor([0, 1])
    if model.get_output_embeddings() is not None:
        labels = ids.masked_fill(ids == 1, -100)
    loss: Tensor = model(input_ids=ids, attention_mask=(ids != 1).long(), labels=labels).loss
    return loss


START = {"loss": start_loss}
"""Options of `attach` for methods that start from a gradient."""


def started(method: str) -> Mapping[str, Any]:
    """What `attach` needs for a method on any tiny model, whose values may be 8 wide."""
    if PEFT_METHODS[method].from_gradient:
        return {"rank": 4, **START}
    return {}


ADAPTER_CASES: dict[str, AdapterCase] = {
    "lora": AdapterCase(quick=True),
    "rslora": AdapterCase(),
    "adalora": AdapterCase(),
    "loha": AdapterCase(),
    "lokr": AdapterCase(),
    "ia3": AdapterCase(quick=True),
    "oft": AdapterCase(),
    "boft": AdapterCase(),
    "vera": AdapterCase(),
    "randlora": AdapterCase(),
    "fourierft": AdapterCase(single=True),
    "waveft": AdapterCase(),
    # Llama's values may be 8 wide, which has 2 x 4 singular vectors.
    "lora-ga": AdapterCase(quick=True, options={"r": 4, "lora_alpha": 8, **START}),
    "boft-ga": AdapterCase(quick=True, options={"r": 4, "lora_alpha": 8, **START}),
    "unitary": AdapterCase(quick=True),
    "miss": AdapterCase(),
    "road": AdapterCase(),
    "gralora": AdapterCase(),
    "hira": AdapterCase(),
    "glora": AdapterCase(),
    "pvera": AdapterCase(),
    "vblora": AdapterCase(),
    "unilora": AdapterCase(),
    "tinylora": AdapterCase(),
    "psoft": AdapterCase(),
    "peanut": AdapterCase(),
    "deft": AdapterCase(single=True),
    "supertuning": AdapterCase(options={"sparsity": 0.9}),
    "beft": AdapterCase(),
    "ln_tuning": AdapterCase(quick=True),
    "prompt": AdapterCase(quick=True),
    "ptuning": AdapterCase(quick=True),
    "prefix": AdapterCase(quick=True),
    "cartridge": AdapterCase(),
}
# Refused methods whose derivatives are not the loss's, with the config that shows it on a tiny OPT.
WRONG_DERIVATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "hra": ("HRAConfig", {"r": 4}),
    "shira": ("ShiraConfig", {"r": 4}),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True}),
    "c3a": ("C3AConfig", {"block_size": 8}),
    "frod": ("FrodConfig", {}),
    "osf": ("OSFConfig", {}),
    "delora": ("DeloraConfig", {"r": 4}),
}


class Quadratic(nn.Module):
    """f = w'Aw/2 + b'w with w = (x, y) and a symmetric indefinite A."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3))
        a = torch.randn(7, 7)
        self.register_buffer("a", a + a.T)
        self.register_buffer("b", torch.randn(7))

    def forward(self) -> Tensor:
        w = torch.cat([self.x, self.y])
        return w @ self.a @ w / 2 + self.b @ w


class Cubic(nn.Module):
    """f = T[w, w, w]/6 with a symmetric T: H = T[w], and T is all that finite differences leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))
        t = torch.randn(5, 5, 5)
        orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        self.register_buffer("t", sum(t.permute(order) for order in orders) / 6)

    def forward(self) -> Tensor:
        w = torch.cat([self.x, self.y])
        return torch.einsum("ijk,i,j,k->", self.t, w, w, w) / 6


class Classifier(nn.Module):
    """Softmax regression of random labels on what `body` makes of random features."""

    def __init__(self, body: nn.Module, features: Tensor, classes: int = 3) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("features", features)
        self.register_buffer("labels", torch.randint(0, classes, (len(features),)))
        with torch.no_grad():
            self.head = nn.Linear(body(features).shape[-1], classes)

    def forward(self) -> Tensor:
        return functional.cross_entropy(self.head(self.body(self.features)), self.labels)


class Attention(nn.Module):
    """One layer of causal scaled dot-product attention with LayerNorm, mean over positions: [n, t, 4] -> [n, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(4), nn.Linear(4, 12)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (s.view(*s.shape[:2], 2, 2).transpose(1, 2) for s in self.qkv(self.norm(h)).split(4, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (h + mixed.transpose(1, 2).flatten(2)).mean(1)


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("tokens", torch.randint(0, 5, (6,)))

    def forward(self) -> Tensor:
        return functional.cross_entropy(self.output(torch.tanh(self.mix(self.embedding(self.tokens)))), self.tokens)


class Unused(nn.Module):
    """A block where one parameter does not reach the loss, and a second one enters linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.dead, self.y = (nn.Parameter(torch.randn(n)) for n in (3, 2, 2))
        self.linear = nn.Parameter(torch.randn(2))

    def forward(self) -> Tensor:
        return torch.cosh(self.x).sum() * (self.y**2).sum() + self.linear.sum()


class OptClassifier(nn.Module):
    """A transformers OPT sequence classifier with padding; x = query and value projections, y = the score head."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import OPTConfig, OPTForSequenceClassification

        config = OPTConfig(
            vocab_size=12, hidden_size=4, word_embed_proj_dim=4, num_hidden_layers=1, num_attention_heads=2,
            ffn_dim=8, max_position_embeddings=8, activation_function="gelu", dropout=0.0, pad_token_id=1,
            attn_implementation="sdpa",
        )  # fmt: skip
        self.model = OPTForSequenceClassification(config).eval()
        tokens = torch.randint(2, 12, (3, 6))
        tokens[0, 4:] = 1
        self.register_buffer("tokens", tokens)
        self.register_buffer("labels", torch.tensor([0, 1, 1]))

    def forward(self) -> Tensor:
        mask = (self.tokens != 1).long()
        return self.model(input_ids=self.tokens, attention_mask=mask, labels=self.labels).loss


def _mlp(activation: Callable[[], nn.Module], *, layer_norm: bool = False) -> nn.Module:
    middle = [nn.LayerNorm(5)] if layer_norm else []
    return Classifier(
        nn.Sequential(nn.Linear(4, 5), *middle, activation(), nn.Linear(5, 4), activation()), torch.randn(8, 4)
    )


@dataclass(frozen=True)
class Problem:
    """A tiny loss on two blocks, "x" and "y", whose dense Hessian can be formed.

    Attributes:
        make: makes the module; its forward is the loss.
        in_y: a parameter is in block y if its name starts with one of these.
        only: and in block x if it starts with one of these (all others by default).
        kinks: the gradient has jumps.
    """

    make: Callable[[], nn.Module]
    in_y: tuple[str, ...] = ("head",)
    only: tuple[str, ...] = ("",)
    kinks: bool = False

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Block]]:
        """The module, with weights and data fixed by `seed`, and blocks x and y."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = self.make().to(dtype)
        finally:
            torch.set_default_dtype(before)
        names = [name for name, _ in module.named_parameters()]
        y = [name for name in names if name.startswith(self.in_y)]
        x = [name for name in names if name not in y and name.startswith(self.only)]
        return module, [Block(b, tuple(module.get_parameter(n) for n in part)) for b, part in (("x", x), ("y", y))]


_OPT_LAYER = "model.model.decoder.layers.0.self_attn."

PROBLEMS: dict[str, Problem] = {
    "quadratic": Problem(Quadratic, ("y",)),
    "cubic": Problem(Cubic, ("y",)),
    "tanh": Problem(lambda: _mlp(nn.Tanh)),
    "gelu": Problem(lambda: _mlp(nn.GELU)),
    "layer norm": Problem(lambda: _mlp(nn.GELU, layer_norm=True)),
    "attention": Problem(lambda: Classifier(Attention(), torch.randn(3, 4, 4))),
    "tied": Problem(Tied, ("mix",)),
    "unused parameter": Problem(Unused, ("y",)),
    "opt": Problem(OptClassifier, ("model.score",), (_OPT_LAYER + "q_proj", _OPT_LAYER + "v_proj")),
    "relu": Problem(lambda: _mlp(nn.ReLU), kinks=True),
}  # fmt: skip


def wide(activation: Callable[[], nn.Module]) -> Problem:
    """An MLP large enough (1,700 parameters, 64 examples) that its gradient crosses many kinks, if there are any."""

    def make() -> nn.Module:
        body = nn.Sequential(nn.Linear(16, 32), activation(), nn.Linear(32, 32), activation())
        return Classifier(body, torch.randn(64, 16))

    return Problem(make, kinks=activation is nn.ReLU)


WIDE: dict[str, Problem] = {"tanh": wide(nn.Tanh), "gelu": wide(nn.GELU), "silu": wide(nn.SiLU), "relu": wide(nn.ReLU)}


_I = np.arange(1, 81)
SPECTRA: dict[str, np.ndarray] = {
    "flat": np.where(_I % 2, 1.0, -1.0),
    "power law": 1.0 / _I,
    "one outlier": np.where(_I == 1, 1.0, 0.03),
    "low rank": np.where(_I <= 3, -1.0 / _I, 0.0),
    "ten equal": np.where(_I <= 10, 1.0, 0.05),
}


class DenseHessian(Hessian):
    """Products with a known symmetric matrix, cut into the blocks "a" (first rows), "b", ... by `sizes`."""

    def __init__(self, matrix: np.ndarray | Tensor, *sizes: int, dtype: torch.dtype = torch.float64) -> None:
        self.matrix = torch.as_tensor(matrix, dtype=dtype)
        sizes = sizes or (len(self.matrix),)
        edges = np.cumsum([0, *sizes])
        zeros = {name: torch.zeros(n, dtype=dtype) for name, n in zip("abcdef", sizes, strict=False)}
        self.blocks = {name: Block(name, (values,)) for name, values in zeros.items()}
        self.loss, self.gradients = 0.0, zeros
        self._spans = {name: slice(*edges[i : i + 2]) for i, name in enumerate(self.blocks)}
        self.products = 0

    def part(self, wrt: str, along: str) -> Tensor:
        """The block H_bc, b = `wrt`, c = `along`."""
        return self.matrix[self._spans[wrt], self._spans[along]]

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        self.products += 1
        return tuple(self.part(b, along) @ v for b in wrt)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        return 1e-15, 0

    def truth(self, quantity: str, wrt: str = "a", along: str = "a") -> float:
        part = self.part(wrt, along).double()
        if quantity == "trace":
            return float(part.trace())
        return float(torch.linalg.matrix_norm(part, "fro" if quantity == "frobenius" else 2))


def diagonal(spectrum: str) -> DenseHessian:
    """A spectrum as a matrix; probes and starts are rotation invariant, so a diagonal one serves for all."""
    return DenseHessian(np.diag(SPECTRA[spectrum]))


Shapes = tuple[tuple[int, ...], ...]


class Part(nn.Module):
    """Holds one parameter, and reads it in its own forward call, as layers do."""

    def __init__(self, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(rng.normal(size=shape)))

    def forward(self) -> Tensor:
        return self.weight.reshape(-1).clone()


class Polynomial(nn.Module):
    """f(x + s) = 1 + g's + A[s, s]/2 + T[s, s, s]/6 + Q[s, s, s, s]/24 with random g, A, T, Q about a random x.

    Attributes:
        taylor: g, A, T, Q and the shapes.
        block: the parameters, one a shape; fp64.
    """

    def __init__(self, shapes: Shapes, degree: int, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        rng = np.random.default_rng([seed, degree])
        self.parts = nn.ModuleList(Part(shape, rng) for shape in shapes)
        self.block = Block("polynomial", tuple(self.parameters()))
        d = self.block.dim
        derivatives = [scale * symmetric(rng, d, k) for k in range(1, degree + 1)]
        self.taylor = Taylor(*derivatives, *([None] * (4 - degree)), shapes=shapes)
        self._derivatives = [torch.from_numpy(t) for t in derivatives]
        self._home = self._position().detach()

    def _position(self) -> Tensor:
        return torch.cat([part() for part in self.parts])

    def forward(self) -> Tensor:
        s, value, factorial = self._position() - self._home, torch.ones((), dtype=torch.float64), 1
        for k, tensor in enumerate(self._derivatives, 1):
            factorial *= k
            for _ in range(k):
                tensor = tensor @ s
            value = value + tensor / factorial
        return value


def moved(f: Taylor, s: np.ndarray) -> Taylor:
    """The same cubic about x + s."""
    if f.third is None:
        return Taylor(f.gradient + f.hessian @ s, f.hessian, shapes=f.shapes)
    bent = f.third @ s
    return Taylor(f.gradient + f.hessian @ s + bent @ s / 2, f.hessian + bent, f.third, shapes=f.shapes)


def symmetric(rng: np.random.Generator, dim: int, order: int) -> np.ndarray:
    """A random symmetric array [dim, ..., dim] with entries of size dim^((1 - order)/2): all derivatives act."""
    t = rng.normal(size=(dim,) * order) * dim ** ((1 - order) / 2)
    orders = list(permutations(range(order)))
    return sum(t.transpose(p) for p in orders) / len(orders)


@dataclass(frozen=True)
class EstimatorCase:
    """A zeroth-order estimator for a block of any shapes of at least `q` entries."""

    distribution: Distribution | Callable[[Shapes], Distribution] = Gaussian()
    sides: Sides = 2
    q: int = 1
    average: Average = "plain"
    keep: bool = False
    layers: bool = False

    def build(self, shapes: Shapes, mu: float, module: nn.Module | None = None, **more: Any) -> ZerothOrder:
        """The estimator; `module` is what runs the loss, for those that move layer by layer."""
        distribution = self.distribution if isinstance(self.distribution, Distribution) else self.distribution(shapes)
        layers = module if self.layers else None
        settings = {"keep": self.keep, "layers": layers, **more}
        return ZerothOrder(mu, self.sides, distribution, self.q, self.average, **settings)


def _masked(shapes: Shapes) -> Masked:
    return Masked(tuple(torch.arange(np.prod(s)).reshape(s) % 3 != 1 for s in shapes))


def _preconditioned(shapes: Shapes) -> Preconditioned:
    return Preconditioned(
        tuple(
            torch.tensor(1.5) if t % 2 else torch.linspace(0.5, 2, int(np.prod(s))).reshape(s)
            for t, s in enumerate(shapes)
        )
    )


ESTIMATORS: dict[str, EstimatorCase] = {
    "two-sided gaussian": EstimatorCase(),
    "one-sided gaussian": EstimatorCase(sides=1),
    "two-sided sphere": EstimatorCase(Sphere()),
    "one-sided sphere": EstimatorCase(Sphere(), 1),
    "two-sided rademacher": EstimatorCase(Rademacher()),
    "one-sided rademacher": EstimatorCase(Rademacher(), 1),
    "two-sided coordinate": EstimatorCase(Coordinate()),
    "one-sided coordinate": EstimatorCase(Coordinate(), 1),
    "two-sided sparse": EstimatorCase(Sparse(0.6)),
    "one-sided sparse": EstimatorCase(Sparse(0.6), 1),
    "two-sided masked": EstimatorCase(_masked),
    "one-sided masked": EstimatorCase(_masked, 1),
    "two-sided preconditioned": EstimatorCase(_preconditioned),
    "one-sided preconditioned": EstimatorCase(_preconditioned, 1),
    "two-sided low rank": EstimatorCase(LowRank(1)),
    "one-sided low rank": EstimatorCase(LowRank(2), 1),
    "three averaged": EstimatorCase(q=3),
    "three averaged, one-sided rademacher": EstimatorCase(Rademacher(), 1, 3),
    "antithetic": EstimatorCase(sides=1, q=4, average="antithetic"),
    "antithetic sphere": EstimatorCase(Sphere(), 1, 2, "antithetic"),
    "orthogonal": EstimatorCase(q=3, average="orthogonal"),
    "orthogonal, one-sided": EstimatorCase(sides=1, q=2, average="orthogonal"),
    "kept": EstimatorCase(keep=True),
    "kept, two averaged": EstimatorCase(sides=1, q=2, keep=True),
    "layers": EstimatorCase(layers=True),
    "layers, kept orthogonal": EstimatorCase(q=2, average="orthogonal", keep=True, layers=True),
}


FAMILIES: dict[str, Psi] = {
    "quadratic": QuadraticPsi(2.0),
    "cosh": Cosh(1.0, 0.5),
    "power": Power(1.0, 4.0),
    "low power": Power(0.7, 2.5),
    "oscillating": Oscillating(0.3, 1.75),
    "exponential": Exponential(),
    "barrier": Barrier(1.3),
}
COUPLINGS: dict[str, Coupling | None] = {
    "none": None,
    "cosine": CosineCoupling(1.5, 1.0, 2.0),
    "log cosh": LogCoshCoupling(1.5, 1.0, 2.0),
    "quadratic": QuadraticCoupling(2.0, 1.0, 0.5),
    "product": ProductCoupling(1.0),
}


def _sum(x: Psi, y: Psi, coupling: Coupling | None = None, **more: Any) -> Objective:
    return objective(x, y, coupling, **{"n": 8, "sigma": 2.0, **more})


_E3, _E4 = (Cosh(1.0, 0.5), QuadraticPsi(3.0)), (Cosh(1.0, 0.5), Cosh(0.1, 2.0))
OBJECTIVES: dict[str, Objective] = {
    "E1": _sum(QuadraticPsi(10.0), QuadraticPsi(0.5)),
    "E2": _sum(QuadraticPsi(10.0), QuadraticPsi(0.5), QuadraticCoupling(2.0)),
    "E3": _sum(*_E3),
    "E4": _sum(*_E4),
    "E5": _sum(Power(1.0, 4.0), Cosh(1.0, 0.5)),
    "E5b": _sum(Power(1.0, 2.5), QuadraticPsi(3.0)),
    "E6": _sum(Oscillating(0.3, 1.75), QuadraticPsi(3.0)),
    "E6b": _sum(Exponential(), Cosh(1.0, 0.5)),
    "E7": _sum(*_E3, CosineCoupling(1.5)),
    "E8": _sum(*_E4, LogCoshCoupling(1.5)),
    "E9": _sum(QuadraticPsi(2.0), QuadraticPsi(0.5), ProductCoupling(1.0)),
    "barrier": _sum(Barrier(1.0), Cosh(1.0, 0.5), LogCoshCoupling(1.5), sigma=(1.0, 0.5)),
    "powers, coupled": _sum(Power(1.0, 4.0), Power(0.5, 3.0), QuadraticCoupling(2.0), d_x=2, d_y=3),
    "powers, product": _sum(Power(1.0, 4.0), Power(0.5, 3.0), ProductCoupling(0.5), d_x=1, d_y=1),
    # Where the coupling's gradient hides psi's own: far out along y, at a small ||grad f||.
    "log cosh, hidden": _sum(Cosh(1.0, 5.0), QuadraticPsi(0.01), LogCoshCoupling(2.0, 1.0, 0.1), d_x=1, d_y=1),
    "quadratic, hidden": _sum(Cosh(1.0, 5.0), QuadraticPsi(0.01), QuadraticCoupling(1.0, 1.0, 0.1), d_x=1, d_y=1),
    "cosh alone": _sum(Cosh(1.0, 1.0), Cosh(1.0, 1.0), n=1, sigma=0.0, d_x=1, d_y=1),
}

CURVED: dict[str, FiniteSum] = {
    "log cosh": log_cosh_sum(0.1, (1.0, 0.3), 2.0, n=4),
    "quadratics": quadratic_sum(3.0, 0.5, 0.8, sigma=0.7, n=3),
    "indefinite quadratics": quadratic_sum(1.0, 1.0, 2.0, sigma=0.5, d_x=2, d_y=1, n=4),
    "exponentials": exponential_sum((1.0, 0.3), (0.3, 0.6), n=4),
    "exponentials, one pair": exponential_sum(1.0, (0.2, 0.2), d_x=2, d_y=1, n=2),
}
