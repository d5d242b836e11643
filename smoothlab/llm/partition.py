"""Rules that name the blocks of a transformers model, wrapped by any peft method or none.

Structure decides wherever it can: the headless body that a transformers model declares, classes of modules, peft's own
layers and wrappers, numbered layers. Names decide only where a model declares no body, and for projections of
embeddings.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import takewhile

from torch import Tensor, nn

from smoothlab.blocks import Block, check_partition
from smoothlab.errors import BadInput

RULES = ("part", "layer", "module")
# Attributes that hold the head of a model that does not declare its headless body.
HEADS = ("score", "classifier", "classification_head", "qa_outputs")


def live_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Named parameters that the model computes with and can train: ties once, `dead_copies` left out."""
    dead = dead_copies(model)
    for name, p in model.named_parameters():
        if id(p) not in dead:
            yield name, p


def dead_copies(model: nn.Module) -> set[int]:
    """The ids of parameters that peft keeps beside those in use, found by peft's structure, not by their gradients.

    They are originals whose trained copy is in use (`modules_to_save`, norms under LN tuning), adapters that are not
    active, and counters stored as parameters (AdaLoRA's `ranknum`). What is tied to a live parameter is alive.
    """
    if "peft" not in sys.modules:  # importing it takes seconds, and nothing here is of its making
        return set()
    idle = {(id(holder), name) for module in model.modules() for holder, name in _idle(module)}

    def reach(module: nn.Module) -> Iterator[int]:
        yield from (id(p) for name, p in module._parameters.items() if (id(module), name) not in idle)
        for name, part in module.named_children():
            if (id(module), name) not in idle:
                yield from reach(part)

    return {id(p) for p in model.parameters()} - set(reach(model))


def _idle(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(holder, attribute) of what the forward of one of peft's modules does not use, or uses as a constant."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper | BaseTunerLayer):
        return
    active = [] if module.disable_adapters else module.active_adapters
    if isinstance(module, ModulesToSaveWrapper):
        copies: Iterable[str] = ("modules_to_save",)
    else:
        copies = module.adapter_layer_names
        yield from ((module, name) for name in module.other_param_names)
    if active and isinstance(module, ModulesToSaveWrapper | LNTuningLayer):
        yield module, "original_module" if isinstance(module, ModulesToSaveWrapper) else "base_layer"
    for part in (getattr(module, name, None) for name in copies):
        if isinstance(part, nn.ModuleDict | nn.ParameterDict):
            yield from ((part, name) for name in part if name not in active)


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters that a peft method added, by peft's own structure; the head's copy is not one."""
    if "peft" not in sys.modules:
        return set()
    from peft import PeftModel
    from peft.tuners.adaption_prompt.layer import _BaseAdaptedAttention
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                part = getattr(module, name, None)
                if isinstance(part, nn.Parameter):
                    found.add(id(part))
                elif isinstance(part, nn.Module):
                    found |= {id(p) for p in part.parameters()}
        elif isinstance(module, _BaseAdaptedAttention):
            found |= {id(p) for p in module._parameters.values()}
        elif isinstance(module, PeftModel) and "prompt_encoder" in module._modules:
            found |= {id(p) for p in module.prompt_encoder.parameters()}
    return found


def head_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters outside the headless body (`base_model`) that a transformers model declares.

    A language model has none: the weights that score its vocabulary are trained with its body, and often tied to it.
    """
    if "transformers" not in sys.modules:
        return _called_head(model)
    from transformers import PreTrainedModel

    whole = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if whole is not None and whole.get_output_embeddings() is not None:
        return set()
    if whole is not None and whole.base_model is not whole:
        return {id(p) for p in whole.parameters()} - {id(p) for p in whole.base_model.parameters()}
    return _called_head(model)


def _called_head(model: nn.Module) -> set[int]:
    return {id(p) for name, p in model.named_parameters() if set(HEADS) & set(name.split("."))}


def unfreeze(model: nn.Module) -> None:
    """Let every live parameter require a gradient, the adapter's and the base model's; dead copies are frozen."""
    live = {id(p) for _, p in live_parameters(model)}
    for p in model.parameters():
        p.requires_grad_(id(p) in live and p.is_floating_point())


def partition(model: nn.Module, by: str = "part", patterns: Mapping[str, str] | None = None) -> dict[str, Block]:
    """Blocks of all live parameters, each in exactly one, in the order of their first parameter.

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
    if patterns is not None or "=" in by:
        rules = _checked(_parsed(by) if patterns is None else patterns.items())
        found = _grouped((_matched(name, rules), p) for name, p in named)
        for name, pattern in rules.items():
            if name not in found:
                examples = ", ".join(n for n, _ in named[:3])
                raise BadInput(f"pattern {name}={pattern.pattern} matches no parameter; names look like {examples}")
    elif by in RULES:
        found = _grouped(_ruled(model, named, by))
    else:
        raise BadInput(f"--blocks {by} is unknown: use {', '.join(RULES)}, or patterns name=regex,name=regex")
    blocks = {name: Block(name, tuple(params)) for name, params in found.items()}
    check_partition(blocks.values(), named)
    return blocks


def _grouped(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for block, p in pairs:
        found.setdefault(block, []).append(p)
    return found


def _parsed(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r",(?=[\w.-]+=)", text):  # a comma inside a regex, as in x{1,2}, does not separate
        name, _, pattern = part.partition("=")
        yield name, pattern


def _checked(pairs: Iterable[tuple[str, str]]) -> dict[str, re.Pattern[str]]:
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


def _matched(name: str, rules: Mapping[str, re.Pattern[str]]) -> str:
    hits = [block for block, pattern in rules.items() if pattern.search(name)]
    if len(hits) > 1:
        raise BadInput(
            f"parameter {name} is in blocks '{hits[0]}' and '{hits[1]}': make the patterns exclude each other"
        )
    return hits[0] if hits else "rest"


def _ruled(model: nn.Module, named: list[tuple[str, Tensor]], by: str) -> Iterator[tuple[str, Tensor]]:
    adapter, head = adapter_parameters(model), head_parameters(model)
    chains = {name: _chain(model, name) for name, _ in named}
    depths = {name: _depth(chain) for name, chain in chains.items()}
    owners = _owners({_stack(name, d) for name, p in named if (d := depths[name]) is not None and id(p) not in adapter})
    for name, p in named:
        depth = depths[name]
        if id(p) in adapter:
            yield "peft", p
        elif id(p) in head:
            yield "head", p
        elif by == "part":
            yield "base", p
        elif by == "module":
            yield _kind(name, chains[name], depth), p
        elif depth is None:
            yield "embedding" if _embeds(name, chains[name]) else "final", p
        else:
            yield f"{owners[_stack(name, depth)]}layer.{name.split('.')[depth]}", p


def _stack(name: str, depth: int) -> tuple[str, ...]:
    return tuple(name.split(".")[:depth])


def _owners(stacks: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What tells each stack of layers from the others, as "encoder." and "decoder."; "" where there is one."""

    def shared(paths: list[tuple[str, ...]]) -> int:
        together = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        return sum(1 for _ in together) if len(paths) > 1 else max(map(len, paths), default=0)

    start = shared(list(stacks))
    ends = {stack: stack[start:] for stack in stacks}
    same = shared([end[::-1] for end in ends.values()])
    return {stack: "".join(f"{part}." for part in end[: len(end) - same]) for stack, end in ends.items()}


def _kind(name: str, chain: list[nn.Module], depth: int | None) -> str:
    """Kind of the module that a parameter of the body or of a vocabulary head belongs to."""
    if "norm" in type(chain[-1]).__name__.lower():
        return "norm"
    if depth is None:
        return "embedding" if _embeds(name, chain) else "rest"
    layer, *inside = chain[depth + 1 :]
    if any(_attends(module) for module in inside):
        return "attention"
    return "mlp" if any(_attends(module) for module in layer.modules()) else "rest"


def _attends(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return "attention" in kind or "attn" in kind


def _embeds(name: str, chain: list[nn.Module]) -> bool:
    """Whether a parameter outside the layers makes their input; only names tell for projections of embeddings."""
    classes = (type(module).__name__.lower() for module in chain)
    return any("embedding" in kind for kind in classes) or "embed" in name or "project_in" in name.split(".")


def _depth(chain: list[nn.Module]) -> int | None:
    """Where in the chain the outermost stack of numbered layers is; None outside of stacks."""
    return next((i for i, module in enumerate(chain) if isinstance(module, nn.ModuleList)), None)


def _chain(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that the parts of a parameter's name lead through from the model on, one for each part."""
    chain = [model]
    for part in name.split(".")[:-1]:
        chain.append(chain[-1].get_submodule(part))
    return chain
