"""PEFT methods, attached so that the base model x and the module y train jointly.

Every method of ADAPTERS passes the same tests on OPT and Llama, as sequence classifiers and as causal language models
(tests/llm/test_adapters.py, test_adapters_lm.py): gradients and exact Hessian-vector products of all blocks agree with
differences of the loss. Where curvature is measured, no list says so: `check_derivatives` looks at the very model, and
MEASURED_TOO can be attached for it to look at. The others are in REFUSED; some of these may be trained all the same,
where no curvature is measured: TRAINED_ONLY.
"""

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.products import ExactHessian
from smoothlab.hessian.selfchecks import check_gradient, check_plainly
from smoothlab.llm.partition import unfreeze

REFUSED = {
    # Gradients or Hessian-vector products that are not those of the loss:
    "hra": "the base weights under it move the loss but get no gradient from autograd",
    "shira": "the base weights under it move the loss but get no gradient from autograd",
    "dora": "it holds the norm of the weights constant when it differentiates, so its gradient is not the loss's",
    "c3a": "its backward pass is not the derivative of its forward pass",
    "frod": "its second derivatives are not those of its forward pass",
    "osf": "its hooks project the gradient, which is then not the loss's",
    "delora": "its gradient and Hessian products are not finite or wrong at its initial weights",
    "lily": "its routing averages over the batch, so that padding, which gets no gradient, moves the loss",
    # Nothing that could be attached to a sequence classifier and trained with it:
    "adaption_prompt": "peft does not support it on OPT",
    "adamss": "peft needs scikit-learn for it, which smoothlab does not install",
    "cpt": "peft supports it for causal language models only",
    "poly": "its forward pass needs the number of a task beside the sentence",
    "multitask_prompt": "its forward pass needs the number of a task beside the sentence",
    "xlora": "it mixes LoRA modules that were trained before, and brings none of its own",
    "shadow": "it adds a second model beside the base, with parameters that never reach the loss",
    "trainable_tokens": "it trains rows of the embedding, which are the base model's own",
    "bone": "peft has removed it; miss is its successor",
}
"""Methods that cannot be trained and measured jointly with the base model, with the reason."""


def _config(name: str, *, lm: dict[str, Any] | None = None, **defaults: Any) -> Callable[..., Any]:
    """A builder of peft's `name` config; options override `defaults`, as does `lm` for causal language models."""

    def build(model: nn.Module, **options: Any) -> Any:
        import peft

        speaks = generates(model)
        given: dict[str, Any] = {"task_type": "CAUSAL_LM" if speaks else "SEQ_CLS"} | defaults
        given |= (lm or {} if speaks else {}) | options
        if given.get("adapter_layers") == "all":
            config: Any = model.config
            given["adapter_layers"] = config.num_hidden_layers
        if given.get("target_modules") == "auto":
            given["target_modules"] = _targets(model)
        elif given.get("target_modules") == "norms":
            given["target_modules"] = _norms(model)
        return getattr(peft, name)(**given)

    return build


LORA = {"r": 8, "lora_alpha": 16}
ADAPTERS: dict[str, Callable[..., Any]] = {
    "lora": _config("LoraConfig", lm=LORA, r=16, lora_alpha=32, target_modules="auto"),
    "rslora": _config("LoraConfig", lm=LORA, r=16, lora_alpha=32, use_rslora=True, target_modules="auto"),
    "adalora": _config("AdaLoraConfig", init_r=12, target_r=8, total_step=10_000, target_modules="auto"),
    "loha": _config("LoHaConfig", r=8, target_modules="auto"),
    "lokr": _config("LoKrConfig", r=8, target_modules="auto"),
    "ia3": _config("IA3Config"),
    "oft": _config("OFTConfig", oft_block_size=4, target_modules="auto"),
    "boft": _config("BOFTConfig", boft_block_size=4, target_modules="auto"),
    "vera": _config("VeraConfig", r=64, target_modules="auto"),
    "randlora": _config("RandLoraConfig", r=8, target_modules="auto"),
    "fourierft": _config("FourierFTConfig", n_frequency=100, target_modules="auto"),
    "waveft": _config("WaveFTConfig", n_frequency=100, target_modules="auto"),
    "miss": _config("MissConfig", r=8, target_modules="auto"),
    "road": _config("RoadConfig", group_size=8, target_modules="auto"),
    "gralora": _config("GraloraConfig", r=8, target_modules="auto"),
    "hira": _config("HiraConfig", r=8, target_modules="auto"),
    "glora": _config("GloraConfig", target_modules="auto"),
    "pvera": _config("PveraConfig", r=64, target_modules="auto"),
    "vblora": _config("VBLoRAConfig", r=4, num_vectors=64, vector_length=8, target_modules="auto"),
    "unilora": _config("UniLoraConfig", target_modules="auto"),
    "tinylora": _config("TinyLoraConfig", target_modules="auto"),
    "psoft": _config("PsoftConfig", r=8, target_modules="auto"),
    "peanut": _config("PeanutConfig", target_modules="auto"),
    "deft": _config("DeftConfig", target_modules="auto"),
    "supertuning": _config("SupertuningConfig", target_modules="auto"),
    "beft": _config("BeftConfig"),
    "ln_tuning": _config("LNTuningConfig", target_modules="norms"),
    "prompt": _config("PromptTuningConfig", num_virtual_tokens=10, prompt_tuning_init="SAMPLE_VOCAB"),
    "ptuning": _config("PromptEncoderConfig", num_virtual_tokens=10, encoder_hidden_size=128),
    "prefix": _config("PrefixTuningConfig", num_virtual_tokens=5),
    "cartridge": _config("CartridgeConfig", num_virtual_tokens=5, num_frozen_tokens=0),
}
"""Name -> function of the model that builds the peft config. lora has the paper's r = 16, alpha = 32 on q and v for the
classifiers of Fig. 1 and r = 8, alpha = 16 for language models; prompt 10 virtual tokens that start as random
vocabulary embeddings; prefix 5 tokens, without re-parametrization, which start as keys and values of random tokens in
language models."""

TRAINED_ONLY: dict[str, Callable[..., Any]] = {
    "dora": _config("LoraConfig", lm=LORA, r=16, lora_alpha=32, use_dora=True, target_modules="auto"),
    "delora": _config("DeloraConfig", r=8, target_modules="auto"),
    "hra": _config("HRAConfig", r=8, target_modules="auto"),
    "shira": _config("ShiraConfig", r=8, target_modules="auto"),
    "adaption_prompt": _config("AdaptionPromptConfig", adapter_len=10, adapter_layers="all"),
}
"""Refused where curvature is measured, and good for training language models. DoRA's gradient takes the norms of the
weights as constants, by its authors' design; DeLoRA's is right, but very large at its initial weights; those of HRA and
SHiRA are right for the module, and the base gets none under them (ONE_SIDED); AdaptionPrompt fits Llama only."""

MEASURED_TOO: dict[str, Callable[..., Any]] = {
    **{name: TRAINED_ONLY[name] for name in ("dora", "delora", "hra", "shira")},
    "c3a": _config("C3AConfig", block_size=4, target_modules="auto"),
    "frod": _config("FrodConfig", target_modules="auto"),
    "osf": _config("OSFConfig", target_modules="auto"),
    "lily": _config("LilyConfig", target_modules="auto"),
}
"""Attached where curvature is to be measured, and refused there by what `check_derivatives` and the padding check see;
with another version of peft they may pass."""

ONE_SIDED = ("hra", "shira")
"""Methods under which some base weights get no gradient from autograd: they can be trained by zeroth order or not at
all."""


PROJECTIONS = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q", "v"))
"""Names of query and value projections, for model types that peft has no default targets for (DistilBERT, ALBERT)."""


def attach(model: nn.Module, method: str, *, seed: int, measured: bool = True, **options: Any) -> nn.Module:
    """The model with the method's module y, initialized by `seed`; all live parameters of x and y require gradients.

    Args:
        model: a transformers sequence classifier or causal language model.
        method: a key of ADAPTERS, or "none" for the model alone.
        seed: seed of y's initial values; the global RNG is left as it was.
        measured: whether curvature is to be measured: MEASURED_TOO are then attached, for `check_derivatives` to look
            at; else TRAINED_ONLY.
        options: of the peft config, instead of this module's defaults.

    Raises:
        BadInput: unknown or refused method, or one that peft cannot attach to this model.
    """
    if method == "none":
        unfreeze(model)
        return model
    known = ADAPTERS | (MEASURED_TOO if measured else TRAINED_ONLY)
    if method in REFUSED and method not in known:
        raise BadInput(f"--peft {method} is refused: {REFUSED[method]}; use one of {', '.join(known)}")
    if method not in known:
        near = difflib.get_close_matches(method, known)
        near.sort(key=lambda name: sorted(name) != sorted(method))  # two letters in the wrong order come first
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(f"--peft {method} is unknown: {hint}use none or one of {', '.join(known)}")
    from peft import get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, known[method](model, **options))
            if method == "prefix" and generates(model):
                start_as_real_tokens(wrapped)
        except (ValueError, TypeError, AssertionError, RuntimeError, LookupError, AttributeError) as error:
            if "out of memory" in str(error) or "can't allocate memory" in str(error):
                raise
            reason, kind = " ".join(str(error).split())[:160], getattr(model.config, "model_type", "unknown")
            raise BadInput(
                f"--peft {method} does not fit this model of type {kind} ({reason}): use another method"
            ) from error
    if wrapped.active_peft_config.is_prompt_learning and not generates(model):
        pool_at_last_token(wrapped)
    unfreeze(wrapped)
    return wrapped.train(model.training)


def check_derivatives(loss: Loss, blocks: Mapping[str, Block], method: str) -> None:
    """Refuse a method under which a gradient or product by autograd is not the loss's, at its initial weights or near.

    Modules start where a factor is 0, which hides much: y is looked at once more with noise of 0.05 added to each
    entry. Costs a few gradients of a small minibatch.

    Raises:
        BadInput: tells which block, and what was seen.
    """
    y = blocks.get("peft")
    try:
        check_gradient(loss, list(blocks.values()))
        if y is not None:
            with standing_at(y, _nearby(y)):
                check_gradient(loss, list(blocks.values()))
                check_plainly(ExactHessian(loss, [y]), y.name)
    except WrongProducts as error:
        raise BadInput(f"--peft {method} cannot be measured: {error}") from error


def _nearby(block: Block) -> list[Tensor]:
    """The block's weights with seeded noise of 0.05 added."""
    generator = torch.Generator().manual_seed(3)
    noise = (torch.randn(p.shape, generator=generator).to(p) for p in block.params)
    return [p.detach() + 0.05 * z for p, z in zip(block.params, noise, strict=True)]


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
        kept = base.eval()(input_ids=tokens, use_cache=True).past_key_values
        pairs = [part[0] for layer in kept.layers for part in (layer.keys, layer.values)]  # each [heads, tokens, size]
        weight.copy_(torch.stack(pairs).permute(2, 0, 1, 3).reshape(weight.shape))
    base.train(mode)


def virtual_tokens(model: nn.Module) -> int:
    """Positions that a prompt method takes from the model's longest input."""
    config = getattr(model, "active_peft_config", None)
    return int(getattr(config, "num_virtual_tokens", 0) or 0)


def _targets(model: nn.Module) -> list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in known:
        return list(known[kind])
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear) and "." in n}
    found = next((list(pair) for pair in PROJECTIONS if linear.issuperset(pair)), None)
    if found is None:
        raise BadInput(f"no default target modules for model type {kind}: attach with target_modules=[...] from Python")
    return found


def _norms(model: nn.Module) -> list[str]:
    layers = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    return sorted(layers)


def pool_at_last_token(wrapped: nn.Module) -> None:
    """Let a classifier under a prompt method read the last real token; `attach` does it, a reloaded model needs it.

    With prompt methods, transformers' sequence classifiers see `inputs_embeds` alone, cannot tell padding, and read the
    logits of the last position, a padding token in all but the longest sentence: the loss then depends on padding, and
    the padding embedding, whose gradient torch.nn.Embedding drops, moves it. Here the score of the last position is
    replaced by that of the last position that the attention mask holds. Classifiers that keep their head elsewhere than
    in `score` read the first token, or find the last one by other means, and are left as they are.
    """
    base: Any = wrapped.base_model
    seen: dict[str, Tensor | None] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alone = kwargs.get("inputs_embeds") is not None and kwargs.get("input_ids") is None
        seen["mask"] = kwargs.get("attention_mask") if alone else None

    def pick(module: nn.Module, args: tuple[Any, ...], scores: Tensor) -> Tensor | None:
        mask = seen.pop("mask", None)
        if mask is None or mask.shape != scores.shape[:2]:
            return None
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask.to(places.dtype) * places).argmax(1)
        picked = scores[torch.arange(len(scores), device=scores.device), last]
        return torch.cat([scores[:, :-1], picked[:, None]], 1)

    if "score" in base._modules:
        base.register_forward_pre_hook(watch, with_kwargs=True)
        base.score.register_forward_hook(pick)
