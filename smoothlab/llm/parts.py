"""Rules that name the blocks of a transformers model, wrapped by any peft method or none.

Structure decides wherever it can: classes of modules, peft's own layers and wrappers, numbered layers. Names decide
only what a classification head is called.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from smoothlab.blocks import Block, check_partition
from smoothlab.errors import BadInput

RULES = ("part", "layer", "module")
# Attributes under which transformers' classifiers keep their head.
HEADS = ("score", "classifier", "classification_head", "qa_outputs")


def live_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Named parameters that the model computes with: ties once, peft's dead `original_module` copies left out."""
    dead = dead_copies(model)
    for name, p in model.named_parameters():
        if id(p) not in dead:
            yield name, p


def dead_copies(model: nn.Module) -> set[int]:
    """The ids of parameters of the originals that peft's modules_to_save wrappers keep beside the trained copies."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    dead: set[int] = set()
    alive: set[int] = set()
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            dead |= {id(p) for p in module.original_module.parameters()}
    for name, p in model.named_parameters(remove_duplicate=False):
        if "original_module" not in name.split("."):
            alive.add(id(p))
    return dead - alive


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters that a peft method added, by peft's own structure; the head's copy is not one."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return set()
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                part = getattr(module, name, None)
                if isinstance(part, nn.Module | nn.ParameterDict):
                    found |= {id(p) for p in part.parameters()}
                elif isinstance(part, nn.Parameter):
                    found.add(id(part))
    if hasattr(model, "prompt_encoder"):
        found |= {id(p) for p in model.prompt_encoder.parameters()}
    return found


def unfreeze(model: nn.Module) -> None:
    """Let every live parameter require a gradient, the adapter's and the base model's; dead copies are frozen."""
    live = {id(p) for _, p in live_parameters(model)}
    for p in model.parameters():
        p.requires_grad_(id(p) in live and p.is_floating_point())


def partition(model: nn.Module, by: str = "part", patterns: Mapping[str, str] | None = None) -> dict[str, Block]:
    """Blocks of all live parameters, each in exactly one, in the order of their first parameter.

    Args:
        model: a transformers model, wrapped by a peft method or not.
        by: "part" (base, peft, head), "layer" (embedding, layer.0, ..., final), "module" (attention, mlp,
            embedding, norm, rest), or patterns "name=regex,name=regex" searched in parameter
            names; what none matches is block "rest".
        patterns: the same as a mapping, instead of `by`.

    Raises:
        BadInput: unknown rule, a pattern that is no regex or matches nothing, a parameter in two blocks or in none.
    """
    rules = dict(patterns) if patterns is not None else _patterns(by) if "=" in by else None
    if rules is None and by not in RULES:
        raise BadInput(f"--blocks {by} is unknown: use {', '.join(RULES)}, or patterns name=regex,name=regex")
    adapter = adapter_parameters(model)
    found: dict[str, list[Tensor]] = {}
    named = list(live_parameters(model))
    for name, p in named:
        block = _block(model, name, id(p) in adapter, by) if rules is None else _matched(name, rules)
        found.setdefault(block, []).append(p)
    for name in rules or ():
        if name not in found:
            examples = ", ".join(n for n, _ in named[:3])
            raise BadInput(f"pattern {name}={(rules or {})[name]} matches no parameter; names look like {examples}")
    blocks = {name: Block(name, tuple(params)) for name, params in found.items()}
    check_partition(blocks.values(), named)
    return blocks


def _patterns(text: str) -> dict[str, str]:
    rules = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    for name, pattern in rules.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadInput(f"pattern {name}={pattern} is no regular expression: {error}") from None
    return rules


def _matched(name: str, rules: Mapping[str, str]) -> str:
    hits = [block for block, pattern in rules.items() if re.search(pattern, name)]
    if len(hits) > 1:
        raise BadInput(
            f"parameter {name} is in blocks '{hits[0]}' and '{hits[1]}': make the patterns exclude each other"
        )
    return hits[0] if hits else "rest"


def _block(model: nn.Module, name: str, adapter: bool, by: str) -> str:
    return "peft" if adapter else _named(name, _chain(model, name), by)


def _named(name: str, chain: list[nn.Module], by: str) -> str:
    """Block of a parameter of the base model or head; `chain` is the modules around it, from the outermost."""
    parts = name.split(".")
    if any(head in parts for head in HEADS):
        return "head"
    if by == "part":
        return "base"
    number = next((part for part, module in zip(parts, chain, strict=False) if _in_stack(part, module)), None)
    embedding = isinstance(chain[-1], nn.Embedding)
    if by == "layer":
        return f"layer.{number}" if number is not None else "embedding" if _before_layers(chain, embedding) else "final"
    classes = [type(module).__name__.lower() for module in chain]
    if "norm" in classes[-1]:
        return "norm"
    if any("attention" in kind or "attn" in kind for kind in classes):
        return "attention"
    return "embedding" if embedding else "mlp" if number is not None else "rest"


def _in_stack(part: str, module: nn.Module) -> bool:
    """Whether `part` numbers a layer of the stack `module`."""
    return part.isdigit() and isinstance(module, nn.ModuleList)


def _before_layers(chain: list[nn.Module], embedding: bool) -> bool:
    return embedding or any("embedding" in type(module).__name__.lower() for module in chain)


def _chain(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that the parts of a parameter's name lead through, the model first."""
    chain = [model]
    for part in name.split(".")[:-1]:
        chain.append(chain[-1].get_submodule(part))
    return chain
