"""PEFT methods, attached so that the base model x and the module y train jointly.

Every method of `peft_methods.MEASURABLE` passes the same tests on OPT and Llama, as sequence classifiers and as causal
language models (tests/llm/test_adapters.py, test_adapters_lm.py): gradients and exact Hessian-vector products of all
blocks agree with differences of the loss. Where curvature is measured, the table alone decides nothing:
`check_derivatives` looks at the very model.
"""

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput, out_of_memory
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.selfchecks import check_gradient, check_plainly
from smoothlab.llm.caches import accept_past_key_values, cache_of
from smoothlab.llm.gradient_start import start_from_gradient
from smoothlab.llm.partition import unfreeze
from smoothlab.llm.peft_methods import PEFT_METHODS, PeftMethod, attachable

PROJECTIONS = (
    ("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q", "v"),
    ("qkv_proj",), ("query_key_value",), ("q_b_proj", "kv_b_proj"), ("q_proj", "kv_b_proj"),
)  # fmt: skip
"""Names of query and value projections, for model types that peft has no default targets for (DistilBERT, ALBERT); one
name where a layer makes query, key and value together (Phi-3), and those behind a latent (DeepSeek)."""


def attach(
    model: nn.Module,
    method: str,
    *,
    seed: int,
    measured: bool = True,
    rank: int | None = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
    plain_where_zero: bool = False,
    **options: Any,
) -> nn.Module:
    """The model with the method's module y, initialized by `seed`; all live parameters of x and y require gradients.

    Args:
        model: transformers sequence classifier or causal language model.
        method: name of PEFT_METHODS, or "none" for the model alone.
        seed: seed of y's initial values; the global RNG is left as it was.
        measured: whether curvature is to be measured; methods whose derivatives are wrong are then refused.
        rank: rank of the module; the table's default where it is None.
        loss: mean loss of a minibatch as a function of the model, for methods that start from its gradient (lora-ga,
            boft-ga); computed once, in eval mode.
        plain_where_zero: let a method that starts from the gradient start as plain LoRA in layers whose gradient is
            zero, instead of refusing them.
        options: options of peft's configuration, instead of the table's.

    Raises:
        BadInput: unknown or refused method, a rank for a method that has none, or one that peft cannot attach to this
            model; no loss, or one without gradient, for a method that starts from its gradient.
    """
    if method == "none":
        unfreeze(model)
        return model
    entry = _chosen(method, measured, rank)
    if entry.from_gradient and loss is None:
        raise BadInput(
            f"--peft {method} starts from the gradient of a minibatch: give attach(..., loss=lambda model: ...), or "
            "use lora"
        )
    from peft import get_peft_model

    # peft draws the initial values from the global generator, and warns of defaults that the table chose.
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, _config(entry, model, entry.settings(rank) | options))
            if method == "prefix" and generates(model):
                start_as_real_tokens(wrapped)
        except (ValueError, TypeError, AssertionError, RuntimeError, LookupError, AttributeError) as error:
            if out_of_memory(error):  # a RuntimeError of torch, which no other method helps
                raise
            reason, kind = " ".join(str(error).split())[:160], getattr(model.config, "model_type", "unknown")
            raise BadInput(
                f"--peft {method} does not fit this model of type {kind} ({reason}): use another method"
            ) from error
    if entry.from_gradient and loss is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            start_from_gradient(wrapped, loss, method, plain_where_zero=plain_where_zero)
        # The name says, as peft's own do, that the base model's weights have moved and belong to the module.
        if entry.config == "LoraConfig":
            wrapped.active_peft_config.init_lora_weights = "lora_ga"
    accept_past_key_values(wrapped)
    if wrapped.active_peft_config.is_prompt_learning and not generates(model):
        pool_at_last_token(wrapped)
    # peft freezes the base model, which is trained here too; a new wrapper is in train mode.
    unfreeze(wrapped)
    return wrapped.train(model.training)


def _chosen(method: str, measured: bool, rank: int | None) -> PeftMethod:
    """The method's entry of the table.

    Raises:
        BadInput: there is none, it is refused, or it has no rank.
    """
    methods = attachable(measured=measured)
    if method not in PEFT_METHODS:
        hint, matches = "", difflib.get_close_matches(method, methods)
        matches.sort(key=lambda name: sorted(name) != sorted(method))  # two letters in the wrong order come first
        if matches:
            hint = f"did you mean {matches[0]}? "
        raise BadInput(f"--peft {method} is unknown: {hint}use none or one of {', '.join(methods)}")
    entry = PEFT_METHODS[method]
    if method not in methods:
        raise BadInput(f"--peft {method} is refused: {entry.refusal}; use one of {', '.join(methods)}")
    if rank is not None and not entry.ranked:
        raise BadInput(f"--rank {rank} with --peft {method}, which has no rank: leave --rank out")
    return entry


def _config(entry: PeftMethod, model: Any, options: Mapping[str, Any]) -> Any:
    """Peft's configuration of a method for the model."""
    import peft

    settings: dict[str, Any] = {"task_type": "SEQ_CLS"}
    if generates(model):
        settings["task_type"] = "CAUSAL_LM"
    if entry.targets == "linear":
        settings["target_modules"] = "auto"
    elif entry.targets == "norms":
        settings["target_modules"] = _norms(model)
    settings |= options
    if settings.get("target_modules") == "auto":  # not looked up where the caller names modules
        settings["target_modules"] = _targets(model)
    if settings.get("adapter_layers") == "all":
        settings["adapter_layers"] = model.config.num_hidden_layers
    if hasattr(peft, entry.config):
        return getattr(peft, entry.config)(**settings)
    from smoothlab.llm import own_methods

    own_methods.register()
    return own_methods.CONFIGS[entry.config](**settings)


def check_derivatives(loss: Loss, blocks: Mapping[str, Block], method: str) -> None:
    """Refuse a method under which autograd's gradient or Hessian-vector product is not that of the loss.

    Checked at the initial weights and near them: modules start with a factor of 0, which hides errors, so that y is
    checked once more with noise of 0.05 added to each entry. Costs a few gradients of a small minibatch.

    Raises:
        BadInput: names the block and the derivative that is wrong.
    """
    y = blocks.get("peft")
    try:
        check_gradient(LossAtPoint(loss, list(blocks.values())))
        if y is not None:
            generator = torch.Generator().manual_seed(3)
            nearby = [p.detach() + 0.05 * torch.randn(p.shape, generator=generator).to(p) for p in y.params]
            with standing_at(y, nearby):
                check_gradient(LossAtPoint(loss, list(blocks.values())))
                hessian = ExactHessian(loss, [y])
                check_plainly(hessian, y, lambda v: hessian.product(v, y.name, [y.name])[0])
    except WrongProducts as error:
        raise BadInput(f"--peft {method} cannot be measured: {error}") from error


def generates(model: nn.Module) -> bool:
    """Whether the model is a language model: it has a head that scores its vocabulary."""
    head = getattr(model, "get_output_embeddings", None)
    return head is not None and head() is not None


def start_as_real_tokens(wrapped: nn.Module) -> None:
    """Let a prefix start as the keys and values of random vocabulary tokens at the first positions.

    The model then computes what it would behind a text of these tokens, as Li and Liang (2021) start it with words.
    """
    base: Any = wrapped.get_base_model()  # type: ignore[operator]
    weight = wrapped.prompt_encoder[wrapped.active_adapter].embedding.weight  # type: ignore[union-attr, index]
    rows = base.get_input_embeddings().weight
    tokens = torch.randint(0, len(rows), (1, len(weight))).to(rows.device)
    mode = base.training
    with torch.no_grad():
        cache = cache_of(base.eval()(input_ids=tokens, use_cache=True))
        pairs = []
        for layer in cache.layers:
            pairs += [layer.keys[0], layer.values[0]]  # each [heads, tokens, size]
        # peft reads a row of the weight as the keys and values of all layers at one position.
        weight.copy_(torch.stack(pairs).permute(2, 0, 1, 3).reshape(weight.shape))
    base.train(mode)


def virtual_tokens(model: nn.Module) -> int:
    """Positions that a prompt method takes from the model's longest input."""
    config = getattr(model, "active_peft_config", None)
    return int(getattr(config, "num_virtual_tokens", 0) or 0)


def _targets(model: nn.Module) -> list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as targets_by_type

    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in targets_by_type:
        return list(targets_by_type[kind])
    # A linear layer without a dot in its name is the model's head.
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear) and "." in n}
    for names in PROJECTIONS:
        if linear.issuperset(names):
            return list(names)
    raise BadInput(f"no default target modules for model type {kind}: attach with target_modules=[...] from Python")


def _norms(model: nn.Module) -> list[str]:
    # By class, because models call them ln_1, input_layernorm, LayerNorm, norm.
    layers = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    return sorted(layers)


def pool_at_last_token(wrapped: nn.Module) -> None:
    """Let a classifier under a prompt method read the last real token; `attach` does it, a reloaded model needs it.

    With prompt methods, transformers' sequence classifiers get `inputs_embeds` alone, find no padding, and read the
    logits of the last position, a padding token in all but the longest sentence: the loss then depends on padding, and
    the padding embedding, whose gradient torch.nn.Embedding drops, moves it. Here the score of the last position is
    replaced by that of the last position that the attention mask holds. Classifiers whose head is not named `score`
    read the first token, or find the last one by other means, and are left as they are.
    """
    base: Any = wrapped.base_model
    masks: dict[str, Tensor | None] = {}

    # The head sees scores alone: the mask of the same forward pass is kept for it.
    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks["mask"] = None
        if kwargs.get("inputs_embeds") is not None and kwargs.get("input_ids") is None:
            masks["mask"] = kwargs.get("attention_mask")

    def pick(module: nn.Module, args: tuple[Any, ...], scores: Tensor) -> Tensor | None:
        mask = masks.pop("mask", None)
        if mask is None or mask.shape != scores.shape[:2]:
            return None
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask.to(positions.dtype) * positions).argmax(1)
        picked = scores[torch.arange(len(scores), device=scores.device), last]
        return torch.cat([scores[:, :-1], picked[:, None]], 1)

    if "score" in base._modules:
        base.register_forward_pre_hook(watch, with_kwargs=True)
        base.score.register_forward_hook(pick)
