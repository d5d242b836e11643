"""Steps of public packages, as their users get them: each function makes one for `smoothlab verify`.

A package is imported when its function is called, as each one is in an environment of its own. What a setting does that
is no zeroth-order gradient by design, such as ranks of losses, is turned off where the package has a setting for it.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.verify import flat

Step = Callable[[flat.Closure], Any]


def torchzero_mezo(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Any:
    """torchzero's MeZO module; it takes no seed."""
    import torchzero as tz

    return tz.Optimizer(list(params), tz.m.MeZO(h=mu), tz.m.LR(lr))


def torchzero_spsa(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Any:
    """torchzero's SPSA module."""
    import torchzero as tz

    return tz.Optimizer(list(params), tz.m.SPSA(h=mu, seed=seed), tz.m.LR(lr))


def zotitan(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """ZOTitan's ZOOptimizer, plain MeZO; its Philox kernel needs a GPU, so torch's generator stands in for it here."""
    from zotitan import train_zo
    from zotitan.schedule import BaseTrainConfig

    def randn(key: int, n: int, device: torch.device) -> Tensor:
        return torch.randn(n, generator=torch.Generator().manual_seed(key))

    train_zo._philox_randn = randn
    config = train_zo.ZOConfig(base=BaseTrainConfig(lr=lr), eps=mu)
    named = [(f"p{i}", nn.Parameter(p.data)) for i, p in enumerate(params)]  # the same memory

    def score(model: Any, batch: Any) -> SimpleNamespace:
        return SimpleNamespace(value=batch["closure"]().detach(), metrics={})

    optimizer = train_zo.ZOOptimizer(named, config, score)

    def step(closure: flat.Closure) -> None:
        optimizer.step(None, [{"closure": closure}])

    return step


def zosolvers(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """ZoSolvers' Gaussian oracle with central differences."""
    from ZoSolvers.minimisation import ZO_gauss_min

    np.random.seed(seed)

    def step(closure: flat.Closure) -> None:
        x = flat.read(params)
        solver = ZO_gauss_min(flat.function(params, closure), x, h=lr, mu=mu)
        flat.write(params, solver.step(x, "center", 1))

    return step


def eggroll_es(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """eggroll-es' trainer: rank 2, one antithetic pair, raw fitness."""
    from eggroll.core import EggrollConfig
    from eggroll.trainer import EggrollTrainer

    config = EggrollConfig(
        population_size=1, rank=2, sigma=mu, lr=lr, generations=1, device="cpu", seed=seed, fitness_shaping="raw"
    )
    module = nn.Module()
    for i, p in enumerate(params):
        module.register_parameter(f"p{i}", p)
    losses: list[flat.Closure] = []
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = EggrollTrainer(module, config, lambda model, batch: -float(losses[-1]()))

    def step(closure: flat.Closure) -> None:
        losses.append(closure)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.evolve([torch.zeros(1)])

    return step


def torcheggroll(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """torcheggroll's functions for use without a module: rank 2, one antithetic pair; they take no seed."""
    from torcheggroll import es

    shapes = {f"p{i}": tuple(p.shape) for i, p in enumerate(params)}
    ranks = {name: 2 if len(shape) == 2 else None for name, shape in shapes.items()}
    epoch = [0]

    def step(closure: flat.Closure) -> None:
        dtype = params[0].dtype
        noise = es.generate_noise_for_shapes(shapes, ranks, 2, mu, epoch[0], torch.device("cpu"), dtype)
        home, rewards = [p.detach().clone() for p in params], []
        with torch.no_grad():
            for member in range(2):
                for p, value, z in zip(params, home, noise.values(), strict=True):
                    p.copy_(value + z[member])
                rewards.append(-float(closure()))
            gradients = es.compute_es_gradient(noise, torch.tensor(rewards, dtype=torch.float64), False)
            for p, value, g in zip(params, home, gradients.values(), strict=True):
                p.copy_(value + lr * g)
        epoch[0] += 1

    return step


def evotorch_pgpe(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """evotorch's PGPE: one symmetric pair, raw losses, no optimizer, fixed standard deviation."""
    from evotorch import Problem
    from evotorch.algorithms import PGPE

    torch.manual_seed(seed)

    def step(closure: flat.Closure) -> None:
        x, calls = torch.from_numpy(flat.read(params)), [0]
        f = flat.function(params, closure)

        def objective(point: Tensor) -> float:
            calls[0] += 1
            # the second generation is sampled only to make the step; its losses are not used
            return f(point.numpy()) if calls[0] <= 2 else 0.0

        problem = Problem("min", objective, solution_length=len(x), initial_bounds=(-1, 1), dtype=torch.float64)
        searcher = PGPE(
            problem, popsize=2, center_learning_rate=lr, stdev_learning_rate=0.0, stdev_init=mu, optimizer=None,
            ranking_method="raw", center_init=x,
        )  # fmt: skip
        searcher.step()
        searcher.step()
        flat.write(params, searcher.status["center"].numpy())

    return step


def nevergrad_spsa(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """nevergrad's SPSA, the point t that its next question is asked around; a and c set for the rate and mu."""
    import nevergrad as ng

    random = np.random.RandomState(seed)

    def step(closure: flat.Closure) -> None:
        x = flat.read(params)
        array = ng.p.Array(init=x)
        array.random_state = np.random.RandomState(random.randint(2**31))
        optimizer = ng.optimizers.registry["SPSA"](array)
        inner = optimizer
        inner.c, inner.a = mu, lr * (2 + inner.A) ** 0.602
        f = flat.function(params, closure)
        for _ in range(2):
            question = optimizer.ask()
            optimizer.tell(question, f(question.value))
        optimizer.ask()  # makes the step
        flat.write(params, x + inner.t)

    return step


def noisyopt_spsa(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """noisyopt's minimizeSPSA, one iteration, a and c set for the rate and mu."""
    from noisyopt import minimizeSPSA

    np.random.seed(seed)

    def step(closure: flat.Closure) -> None:
        x, calls, f = flat.read(params), [0], flat.function(params, closure)

        def limited(point: flat.Array) -> float:
            calls[0] += 1
            # after the iteration the result's loss is computed, which is no part of the step
            return f(point) if calls[0] <= 2 else 0.0

        result = minimizeSPSA(limited, x.copy(), niter=1, paired=False, a=lr * 1.01**0.602, c=mu)
        flat.write(params, result.x)

    return step


def gaussianzeroorder(params: Sequence[Tensor], lr: float, seed: int) -> Step:
    """gaussianzeroorder's optimizer, one iteration; constants such that eta |u|^2 = lr d and alpha = 1e-3."""
    from gaussianzeroorder.optimizer.core import TwoPointGaussianOptimizer
    from gaussianzeroorder.optimizer.direction import GaussianDirectionSampler
    from gaussianzeroorder.optimizer.step_size import StepSizeSchedule
    from gaussianzeroorder.oracle.config import ProblemConfig

    d = len(flat.read(params))
    sampler = GaussianDirectionSampler(d, seed)

    def step(closure: flat.Closure) -> None:
        x = flat.read(params)
        smooth = 1 / (8 * max(lr, 1e-300) * d)
        convex = 32 * d * smooth / (1e6 / d - 1)
        config = ProblemConfig(d, smooth, convex, 1.0, 1.0, 0.1)
        oracle = SimpleNamespace(evaluate=flat.function(params, closure))
        optimizer = TwoPointGaussianOptimizer(oracle, config, StepSizeSchedule(d, smooth, convex), sampler)
        flat.write(params, optimizer.optimize(x, 1))

    return step


def mezo(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """The package mezo: its update, with seeds from its get_random_seeds."""
    from mezo.mezo import get_random_seeds, update

    seeds = iter(get_random_seeds(seed, 10_000))

    def step(closure: flat.Closure) -> None:
        update(nn.Module(), None, lambda model, inputs: closure(), mu, lr, next(seeds), lambda model: params)

    return step


def evostra(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """evostra's EvolutionStrategy, one iteration of four members."""
    from evostra import EvolutionStrategy

    np.random.seed(seed)

    def step(closure: flat.Closure) -> None:
        f = flat.function(params, closure)
        home = flat.read(params)
        strategy = EvolutionStrategy([home], lambda weights: -f(weights[0]), 4, mu, lr, 1.0)
        strategy.run(1, print_step=10)
        flat.write(params, strategy.get_weights()[0])

    return step


def grad_free_optim(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> Step:
    """grad-free-optim's NESAdam: two members, a new Adam each step, no weight decay."""
    from grad_free_optim.NES import NESAdam

    torch.manual_seed(seed)

    def step(closure: flat.Closure) -> Any:
        net = SimpleNamespace(parameters=lambda: iter(params))
        return NESAdam(net, lr=lr, pop_size=2).step(closure, std=mu, weight_decay=0.0)

    return step


CLAIMS = {
    "torchzero_mezo": {"distribution": "rademacher"},
    "torchzero_spsa": {"distribution": "rademacher"},
    "zotitan": {"distribution": "gaussian"},
    "zosolvers": {"distribution": "gaussian"},
    "eggroll_es": {"distribution": "lowrank(2)"},
    "torcheggroll": {"distribution": "lowrank(2)"},
    "evotorch_pgpe": {"distribution": "gaussian"},
    "nevergrad_spsa": {"distribution": "rademacher"},
    "noisyopt_spsa": {"distribution": "rademacher"},
    "mezo": {"distribution": "gaussian"},
    "evostra": {"distribution": "gaussian"},
    "grad_free_optim": {"distribution": "gaussian"},
}
