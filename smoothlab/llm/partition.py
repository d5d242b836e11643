"""Blocks of a transformers model, wrapped by any peft method or none: base, PEFT module and head; layers; modules.

Structure decides wherever it can: the headless body that a transformers model declares, classes of modules, peft's own
layers and wrappers, numbered layers. Names decide only where a model declares no body, and for projections of
embeddings.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from os.path import commonprefix

from torch import Tensor, nn

from smoothlab.blocks import Block, check_partition
from smoothlab.errors import BadInput

RULES = ("part", "layer", "module")
HEADS = ("score", "classifier", "classification_head", "qa_outputs")
"""Attributes that hold the head of a model that does not declare its headless body."""
Stack = tuple[str, ...]
"""Name of a list of layers, cut at its dots."""


def live_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Named parameters that the model computes with and can train: ties once, `dead_copies` left out."""
    dead = dead_copies(model)
    for name, p in model.named_parameters():
        if id(p) not in dead:
            yield name, p


def dead_copies(model: nn.Module) -> set[int]:
    """The ids of parameters that peft keeps beside those in use, by peft's structure, not by their gradients.

    They are originals whose trained copy is in use (`modules_to_save`, norms under LN tuning), adapters that are not
    active, and counters stored as parameters (AdaLoRA's `ranknum`). What is tied to a live parameter is alive.
    """
    if "peft" not in sys.modules:  # importing it takes seconds, and nothing here is of its making
        return set()
    idle: set[tuple[int, str]] = set()
    for module in model.modules():
        idle.update((id(holder), name) for holder, name in _idle(module))
    # All that is reached from the model without an idle attribute is alive, a tied parameter by any of its names.
    live: set[int] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        live.update(id(p) for name, p in module._parameters.items() if (id(module), name) not in idle)
        stack += [child for name, child in module.named_children() if (id(module), name) not in idle]
    return set(map(id, model.parameters())) - live


def _idle(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(holder, attribute) of what the forward of one of peft's modules does not use, or uses as a constant."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper | BaseTunerLayer):
        return
    active = module.active_adapters
    if module.disable_adapters:  # the original is computed with then, and no adapter is
        active = []
    copies: Iterable[str] = ("modules_to_save",)
    original = "original_module"
    if isinstance(module, BaseTunerLayer):
        copies, original = module.adapter_layer_names, "base_layer"
        for name in module.other_param_names:  # constants, such as random projections and counters
            yield module, name
    # Under other methods the original is computed with beside the adapter.
    if active and isinstance(module, ModulesToSaveWrapper | LNTuningLayer):
        yield module, original
    for copy in copies:
        adapters = getattr(module, copy, None)
        if isinstance(adapters, nn.ModuleDict | nn.ParameterDict):
            for name in adapters:
                if name not in active:
                    yield adapters, name


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters that a peft method added, by peft's own structure; the head's copy is not one."""
    if "peft" not in sys.modules:
        return set()
    from peft import PeftModel
    from peft.tuners.adaption_prompt.layer import _BaseAdaptedAttention
    from peft.tuners.tuners_utils import BaseTunerLayer

    added: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                part = getattr(module, name, None)  # the class names attributes that this layer may not have
                if isinstance(part, nn.Parameter):
                    added.append(part)
                elif isinstance(part, nn.Module):
                    added += part.parameters()
        elif isinstance(module, _BaseAdaptedAttention):
            added += module.parameters(recurse=False)
        elif isinstance(module, PeftModel) and "prompt_encoder" in module._modules:
            added += module.prompt_encoder.parameters()
    return set(map(id, added))


def head_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters outside the headless body (`base_model`) that a transformers model declares.

    A language model has none: the weights that score its vocabulary are trained with its body, and often tied to it.
    """
    if "transformers" in sys.modules:
        from transformers import PreTrainedModel

        for module in model.modules():
            if not isinstance(module, PreTrainedModel):
                continue
            if module.get_output_embeddings() is not None:
                return set()
            if module.base_model is not module:  # transformers returns the model itself where it declares no body
                return set(map(id, module.parameters())) - set(map(id, module.base_model.parameters()))
            break  # parts of it are models of their own
    return {id(p) for name, p in model.named_parameters() if set(HEADS) & set(name.split("."))}


def unfreeze(model: nn.Module) -> None:
    """Let every live parameter require a gradient, the adapter's and the base model's; dead copies are frozen."""
    model.requires_grad_(False)
    for _, p in live_parameters(model):
        p.requires_grad_(p.is_floating_point())  # quantized weights are integers, which have no gradient


def partition(model: nn.Module, by: str = "part", patterns: Mapping[str, str] | None = None) -> dict[str, Block]:
    """Group all parameters that the model computes with into blocks, in the order of their first parameter.

    >>> from smoothlab import partition
    >>> from smoothlab.llm.models import load_lm
    >>> list(partition(load_lm("micro", seed=0).model))
    ['base']

    Args:
        model: a transformers model, wrapped by a peft method or not.
        by: "part" (base, peft, head), "layer" (embedding, layer.0, ..., final, peft, head; encoder.layer.0 and
            decoder.layer.0 where there are two stacks), "module" (attention, mlp, embedding, norm, rest, peft, head),
            or patterns "name=regex,name=regex" searched in parameter names; what none matches is block "rest".
        patterns: the same as a mapping, instead of `by`.

    Raises:
        BadInput: unknown rule, a pattern that is no regex or matches nothing, a parameter in two blocks or in none.
    """
    named = list(live_parameters(model))
    if patterns is not None:
        placed = _by_patterns(named, patterns.items())
    elif "=" in by:
        placed = _by_patterns(named, _parsed(by))
    elif by in RULES:
        placed = _by_rule(model, named, by)
    else:
        raise BadInput(f"--blocks {by} is unknown: use {', '.join(RULES)}, or patterns name=regex,name=regex")
    members: dict[str, list[Tensor]] = {}
    for name, p in placed:
        members.setdefault(name, []).append(p)
    blocks = {name: Block(name, tuple(params)) for name, params in members.items()}
    check_partition(blocks.values(), named)
    return blocks


def _parsed(text: str) -> Iterator[tuple[str, str]]:
    for rule in re.split(r",(?=[\w.-]+=)", text):  # a comma inside a regex, as in x{1,2}, does not separate
        name, _, pattern = rule.partition("=")
        yield name, pattern


def _by_patterns(named: list[tuple[str, Tensor]], pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Tensor]]:
    """(block, parameter) by (block, pattern)."""
    rules = _compiled(pairs)
    used: set[str] = set()
    for name, p in named:
        hits = [block for block, pattern in rules.items() if pattern.search(name)]
        if len(hits) > 1:
            raise BadInput(
                f"parameter {name} is in blocks '{hits[0]}' and '{hits[1]}': make the patterns exclude each other"
            )
        used.update(hits)
        yield (hits or ["rest"])[0], p
    for block, pattern in rules.items():
        if block not in used:
            examples = ", ".join(name for name, _ in named[:3])
            raise BadInput(f"pattern {block}={pattern.pattern} matches no parameter; names look like {examples}")


def _compiled(pairs: Iterable[tuple[str, str]]) -> dict[str, re.Pattern[str]]:
    rules: dict[str, re.Pattern[str]] = {}
    for name, pattern in pairs:
        if not name or not pattern or name == "rest" or name in rules:
            raise BadInput(
                f"pattern '{name}={pattern}' needs a name of its own, other than rest (what no pattern matches), and "
                "a regular expression"
            )
        try:
            rules[name] = re.compile(pattern)
        except re.error as error:
            raise BadInput(f"pattern {name}={pattern} is no regular expression: {error}") from None
    if not rules:
        raise BadInput("no pattern is given: write name=regex,name=regex")
    return rules


def _by_rule(model: nn.Module, named: list[tuple[str, Tensor]], by: str) -> Iterator[tuple[str, Tensor]]:
    """(block, parameter) by one of RULES."""
    adapter, head = adapter_parameters(model), head_parameters(model)
    prefixes: dict[Stack, str] = {}
    if by == "layer":
        stacks = [_stack(model, name) for name, p in named if id(p) not in adapter]
        prefixes = _prefixes({stack for stack in stacks if stack is not None})
    for name, p in named:
        if id(p) in adapter:  # before all else: it lies within the layers and modules that it adapts
            yield "peft", p
        elif id(p) in head:
            yield "head", p
        elif by == "part":
            yield "base", p
        elif by == "module":
            yield _kind(model, name), p
        else:
            yield _layer(model, name, prefixes), p


def _layer(model: nn.Module, name: str, prefixes: Mapping[Stack, str]) -> str:
    """Block of a parameter of the body by layers."""
    stack = _stack(model, name)
    if stack is not None:
        return f"{prefixes[stack]}layer.{name.split('.')[len(stack)]}"
    if _embeds(model, name):
        return "embedding"
    return "final"


def _kind(model: nn.Module, name: str) -> str:
    """Kind of the module that a parameter of the body or of a vocabulary head belongs to."""
    chain = _chain(model, name)
    if "norm" in type(chain[-1]).__name__.lower():
        return "norm"
    stack = _stack(model, name)
    if stack is None:
        if _embeds(model, name):
            return "embedding"
        return "rest"
    layer, *submodules = chain[len(stack) + 1 :]
    if any(map(_attends, submodules)):
        return "attention"
    # What a layer holds beside its attention is its MLP, under whatever name: fc1, mlp.gate_proj, output.dense.
    if any(map(_attends, layer.modules())):
        return "mlp"
    return "rest"


def _stack(model: nn.Module, name: str) -> Stack | None:
    """Name of the outermost list of numbered layers that a parameter lies in; None outside of all."""
    for depth, module in enumerate(_chain(model, name)):
        if isinstance(module, nn.ModuleList):
            return tuple(name.split(".")[:depth])
    return None


def _prefixes(stacks: Collection[Stack]) -> dict[Stack, str]:
    """What distinguishes each stack of layers from the others, as "encoder." and "decoder."; "" where there is one."""
    # What all names share at their start and at their end is left out; commonprefix takes any sequences.
    start = len(commonprefix(list(stacks)))
    end = len(commonprefix([stack[start:][::-1] for stack in stacks]))
    prefixes = {}
    for stack in stacks:
        prefixes[stack] = "".join(f"{part}." for part in stack[start : len(stack) - end])
    return prefixes


def _attends(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return "attention" in kind or "attn" in kind


def _embeds(model: nn.Module, name: str) -> bool:
    """Whether a parameter outside the layers makes their input; names alone show projections of embeddings."""
    if "embed" in name or "project_in" in name.split("."):
        return True
    return any("embedding" in type(module).__name__.lower() for module in _chain(model, name))


def _chain(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that the parts of a parameter's name lead through from the model on, one for each part."""
    chain = [model]
    for part in name.split(".")[:-1]:
        chain.append(chain[-1].get_submodule(part))
    return chain
