"""Facts from the autograd graph of a loss before it is differentiated: which operation reads each parameter.

A closure hides its model, but not its graph. Three facts about it are needed to check products: parameters that enter
through the same operation (a matrix product, a layer norm, an embedding) are likely to be wrong together; the row
`padding_idx` of an embedding gets no gradient from torch, whether it moves the loss or not; and operations with kinks
(ReLU) have no Hessian for a difference of the loss to agree with.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NONSMOOTH = (
    "AbsBackward", "AmaxBackward", "AminBackward", "CeluBackward", "ClampBackward", "ClampMaxBackward",
    "ClampMinBackward", "EluBackward", "HardshrinkBackward", "HardsigmoidBackward", "HardswishBackward",
    "HardtanhBackward", "HuberLossBackward", "LeakyReluBackward", "MaxBackward", "MaximumBackward", "MinBackward",
    "MinimumBackward", "PreluKernelBackward", "ReluBackward", "RoundBackward", "SmoothL1LossBackward",
    "SoftshrinkBackward", "ThresholdBackward", "TopkBackward",
)  # fmt: skip
"""Backward nodes of operations whose second derivative jumps or does not exist somewhere. Where the choice of topk
changes, as of the experts that read a token, the loss itself jumps."""


@dataclass(frozen=True)
class LossGraph:
    """The operations by which a loss reads its parameters.

    Attributes:
        readers: operations that read a parameter, by the parameter's id; a parameter that nothing reads is absent.
        padded: for embeddings by their id, the row `padding_idx`, where the minibatch looks that row up.
        nonsmooth: names of operations with kinks that the graph holds.
    """

    readers: dict[int, str]
    padded: dict[int, int]
    nonsmooth: tuple[str, ...]


def read_graph(value: Tensor) -> LossGraph:
    """The graph of `value`, a loss that was computed with gradients on; nothing is differentiated or freed."""
    readers: dict[int, set[str]] = {}
    padded: dict[int, int] = {}
    nonsmooth: set[str] = set()
    for node in _nodes(value.grad_fn):
        name = node.name().removesuffix("0")  # torch numbers the overloads of an operation: ReluBackward0
        if name in NONSMOOTH:
            nonsmooth.add(name.removesuffix("Backward"))
        for child, _ in node.next_functions:
            variable = getattr(child, "variable", None)  # of an AccumulateGrad node: a leaf of the graph
            if variable is None:
                continue
            readers.setdefault(id(variable), set()).add(name.removesuffix("Backward"))
            if name == "EmbeddingBackward":
                # Where the weight is tied to a head, the row has a gradient, but not the one of the lookup.
                row = node._saved_padding_idx
                if 0 <= row < len(variable) and bool((node._saved_indices == row).any()):
                    padded[id(variable)] = row
    names = {key: " and ".join(sorted(operations)) for key, operations in readers.items()}
    return LossGraph(names, padded, tuple(sorted(nonsmooth)))


def _nodes(root: Any) -> Iterator[Any]:
    """All nodes of a graph, each once; no recursion, as graphs are deeper than Python's stack."""
    visited, stack = {root}, [root]
    while stack:
        node = stack.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in visited:
                visited.add(child)
                stack.append(child)


def groups_by_reader(graph: LossGraph, params: Iterable[Tensor]) -> dict[str, list[int]]:
    """Positions of `params` by the operation that reads them; "" for those that the loss does not read."""
    groups: dict[str, list[int]] = {}
    for i, p in enumerate(params):
        groups.setdefault(graph.readers.get(id(p), ""), []).append(i)
    return groups
