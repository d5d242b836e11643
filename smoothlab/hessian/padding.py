"""Padding and neighbors: the outputs of a row must be those that it has by itself.

Rows of a minibatch are padded to one length. A model that reads the padding, counts it, or looks at the longest row has
another loss for every composition of the minibatch: its curvature is measured, and its training runs, on a function
that nobody means. So a row by itself, unpadded, is compared with the same row in a minibatch, and the difference with
what rounding can do.

Rounding is measured, not assumed: the row by itself is computed again with the output y of every module replaced by
y (1 + s xi), xi standard normal. A sum of n terms, computed in any order, is off by at most lambda sqrt(n) u relative
to its terms with probability 1 - 2 exp(-lambda^2 / 2), u the unit roundoff (Higham and Mary 2019, SIAM J. Sci.
Comput. 41(5), Theorem 2.4); so s = sqrt(n) u, n the longest sum of the weights, or the roundoff of the type that y is
kept in where that is larger. The root mean square R of what this moves the outputs by is one standard deviation of
rounding, amplified as this model amplifies it; the row in the minibatch may stand LIMIT of them away, which is lambda.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.blocks import Loss
from smoothlab.errors import BadInput

LIMIT = 8.0
"""Standard deviations of rounding, lambda: exceeded with probability 2 exp(-32) = 3e-14 an operation."""
RUNS = 4
"""Repetitions with noise. R from 8 normal deviates, of two outputs, is 10 times too small with probability 1e-7."""
GROUP = 4
"""Rows compared: a shortest one of each remainder of its length by this, at most so many. Models that take tokens in
groups, as CANINE takes four, are right for the lengths that fill them."""
POSITIONS = 16
"""Tokens of a row whose outputs are compared, evenly spaced: a vocabulary's logits are large."""

Outputs = Callable[[], Tensor]


@dataclass(frozen=True)
class Distance:
    """Distance of a row's outputs in a minibatch from those that it has by itself.

    Attributes:
        change: largest absolute difference of an output.
        times: the difference in standard deviations of rounding, or a bound of that where it is below LIMIT; infinite
            where one side is not finite.
    """

    change: float
    times: float


def distances(model: nn.Module, alone: Outputs, among: Mapping[str, Outputs]) -> dict[str, Distance]:
    """Compare a row's outputs among others with those by itself.

    Args:
        model: the module whose modules round; its modes should be those of evaluation.
        alone: outputs [..., C] of the row by itself, not padded.
        among: the same outputs from minibatches.

    Returns:
        For each of `among` the largest ||among - alone|| / R over the positions `...` of the row.
    """
    with torch.no_grad():
        reference = alone().double()
        # The outputs themselves are rounded, whatever happens inside: R is no smaller than that.
        output_rounding = torch.finfo(torch.float32).eps * reference.square().mean(-1).sqrt()
        output_rounding = output_rounding.clamp_min(torch.finfo(torch.float64).tiny)

        @functools.cache
        def rounding() -> Tensor:
            squares = output_rounding.square()
            for seed in range(RUNS):
                with noise(model, seed):
                    squares = squares + (alone().double() - reference).square().mean(-1) / RUNS
            return squares.sqrt()

        by_name = {}
        for name, outputs in among.items():
            deviations = outputs().double() - reference
            by_name[name] = Distance(0.0, 0.0)
            if bool(torch.isfinite(deviations).all()) and bool(deviations.any()):
                rms, scale = deviations.square().mean(-1).sqrt(), output_rounding
                if bool((rms > LIMIT * output_rounding).any()):  # most rows spare the repetitions with noise
                    scale = rounding()
                by_name[name] = Distance(float(deviations.abs().max()), float((rms / scale).max()))
            elif bool(deviations.any() and torch.isfinite(reference).all()):  # else the weights are broken
                by_name[name] = Distance(math.inf, math.inf)
        return by_name


@contextmanager
def noise(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside the context each module's output is off by one standard deviation of its rounding."""
    terms = max([1, *(p.shape[-1] for p in model.parameters() if p.ndim > 1)])
    generators: dict[torch.device, torch.Generator] = {}

    def rounded(y: Any) -> Any:
        if type(y) is tuple:  # not a named one, which is made from its fields one by one
            return tuple(rounded(part) for part in y)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return y
        if y.device not in generators:
            generators[y.device] = torch.Generator(y.device).manual_seed(seed)
        xi = torch.randn(y.shape, generator=generators[y.device], device=y.device, dtype=torch.float32)
        return (y * (1 + _roundoff(y, terms) * xi.double())).to(y.dtype)

    with ExitStack() as hooks:
        for module in model.modules():
            if module is not model:  # whose output, a ModelOutput or the logits, its last modules have rounded
                hooks.enter_context(module.register_forward_hook(lambda _module, _args, output: rounded(output)))
        yield


def _roundoff(y: Tensor, terms: int) -> float:
    """Standard deviation of the relative rounding of a module's output; parts of fp64 models compute in fp32."""
    output_roundoff = torch.finfo(y.dtype).eps / 2
    if y.is_cuda and y.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        output_roundoff = 2.0**-11  # TF32 has ten bits behind the point
    return max(output_roundoff, math.sqrt(terms) * torch.finfo(torch.float32).eps / 2)


def check(model: nn.Module, alone: Outputs, among: Mapping[str, Outputs], subject: str, fix: str) -> None:
    """Refuse a model whose row has other outputs among others than by itself.

    Args:
        model: see `distances`.
        alone: outputs of the row by itself, not padded.
        among: the same outputs from minibatches; the name says what happens to the row there.
        subject: the subject of the message, e.g. "model type rwkv".
        fix: what can be done.

    Raises:
        BadInput: one line with the change, rounding's share of it, and the fix.
    """
    for circumstance, distance in distances(model, alone, among).items():
        if distance.times > LIMIT:
            size = f"{distance.change:.2g}, {distance.times:.2g} times its rounding"
            raise BadInput(f"{subject}: the scores of a row change when it is {circumstance} (by {size}): {fix}")


@contextmanager
def checked_calls(model: nn.Module) -> Iterator[None]:
    """Inside the context every call of the model, which should be in eval mode, is checked as `check_batch` does.

    Raises:
        BadInput: as `check_batch`, out of the call.
    """
    busy = False  # the check calls the model itself

    def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        if busy or args:
            return
        busy = True
        try:
            check_batch(module, kwargs, output)
        finally:
            busy = False

    with model.register_forward_hook(compare, with_kwargs=True):
        yield


def checked_at_first_call(loss: Loss, model: nn.Module) -> Loss:
    """`loss`, whose first evaluation runs inside `checked_calls`, so that the check costs no evaluation of its own."""
    first = True

    def evaluate() -> Tensor:
        nonlocal first
        if not first:
            return loss()
        first = False
        with checked_calls(model):
            return loss()

    return evaluate


def check_batch(model: nn.Module, inputs: Mapping[str, Any], output: Any = None) -> None:
    """Refuse a minibatch of a row that has other logits there than by itself, without its padding.

    Models and arguments must be like those of transformers: input_ids [B, T], attention_mask [B, T] or none, logits
    [B, C] or [B, T, C]; others are not checked. The rows that `compared_rows` names are compared, at POSITIONS tokens
    each.

    Args:
        model: called as `model(**inputs)`, in eval mode.
        inputs: its arguments.
        output: what it gave for them, if that is known.

    Raises:
        BadInput: the padding or the other rows move a row's logits by more than rounding does.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = _unpadded(ids, getattr(getattr(model, "config", None), "pad_token_id", None))
    if mask.shape != ids.shape or len(ids) == 1 and bool(mask.all()):
        return
    if output is None:
        output = model(**inputs)
    logits = getattr(output, "logits", None)
    # A caller that gathers positions on the way, as `smoothlab.llm.evaluate` does, has logits of other rows.
    if not isinstance(logits, Tensor) or logits.ndim > 3 or len(logits) != len(ids):
        return
    for row in compared_rows(mask.bool().sum(1).tolist())[:-1]:
        _check_row(model, inputs, logits, mask[row].bool(), row)


def _check_row(model: nn.Module, inputs: Mapping[str, Any], logits: Tensor, real: Tensor, row: int) -> None:
    """Compare one row's logits [B, C] or [B, T, C] with its own; `real` [T] says which of its tokens are text."""
    config = getattr(model, "config", None)
    pairs = bool(getattr(config, "is_encoder_decoder", False))
    shape = inputs["input_ids"].shape
    single = {}
    for name, value in inputs.items():
        if pairs or name not in ("labels", "num_items_in_batch"):  # of pairs the answers are read, too
            single[name] = _argument_of_row(value, shape, row, real, name, pairs)
    at_alone: Any = slice(None)
    at_among: Any = slice(None)
    if logits.ndim == 3 and not pairs:
        positions = real.nonzero().flatten()
        positions = positions[torch.linspace(0, len(positions) - 1, min(POSITIONS, len(positions))).round().long()]
        # Counted from the end: virtual tokens of a PEFT method stand before the T, here and there.
        at_alone, at_among = (real.cumsum(0) - 1)[positions] - int(real.sum()), positions - shape[1]

    def alone() -> Tensor:
        logits: Tensor = model(**single).logits[0]
        return logits[at_alone]

    method = getattr(getattr(model, "active_peft_config", None), "peft_type", None)
    subject = f"model type {getattr(config, 'model_type', type(model).__name__)}"
    if method is not None:
        subject += f" with {getattr(method, 'value', method)}"
    fix = "pad on the other side, use rows of equal length or single ones, or another PEFT method"
    check(model, alone, {"padded and beside others": lambda: logits[row][at_among]}, subject, fix)


def compared_rows(lengths: Sequence[int]) -> list[int]:
    """Numbers of the rows to compare, a shortest one first, then of a longest row, which is put beside them."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    first: dict[int, int] = {}
    for n in order:
        if lengths[n] < lengths[order[-1]]:
            first.setdefault(lengths[n] % GROUP, n)
    return [*(first.values() or order[:1]), order[-1]]


def _unpadded(ids: Tensor, pad: int | None) -> Tensor:
    """Mask [B, T] of text where none is given: all but padding tokens at an end where the longest row has none."""
    if pad is None:
        return torch.ones_like(ids)
    filled, position = ids == pad, torch.arange(ids.shape[1], device=ids.device)
    lead, trail = filled.cumprod(1).sum(1, keepdim=True), filled.flip(1).cumprod(1).sum(1, keepdim=True)
    # What all rows begin or end with is text that happens to be the pad token, as eos often is.
    return ((position >= lead - lead.min()) & (position < ids.shape[1] - trail + trail.min())).long()


def _argument_of_row(value: Any, shape: torch.Size, row: int, real: Tensor, name: str, pairs: bool) -> Any:
    """One row of an argument, without padding; the answers of pairs are of another length."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != shape[0]:
        return value
    part = value[row : row + 1]
    if value.shape[:2] == shape and not (pairs and (name == "labels" or name.startswith("decoder"))):
        part = part[:, real]
    return part
