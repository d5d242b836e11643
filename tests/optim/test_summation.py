"""Sums in the order of a tree."""

import pytest
import torch

from smoothlab.optim.summation import Tree, in_order

TERMS = [torch.tensor([float(k), 0.1 * k, 10.0**k], dtype=torch.float32) / 3 for k in range(13)]


def slow(terms: list[torch.Tensor]) -> torch.Tensor:
    """The definition: s(a_1 .. a_k) + s(a_k+1 .. a_n), k the greatest power of two below n."""
    if len(terms) == 1:
        return terms[0]
    k = 1 << (len(terms) - 1).bit_length() - 1
    return slow(terms[:k]) + slow(terms[k:])


@pytest.mark.parametrize("count", range(1, 14))
def test_sums_are_the_definitions(count: int) -> None:
    terms, kept = [t.clone() for t in TERMS[:count]], [t.clone() for t in TERMS[:count]]
    assert torch.equal(in_order(terms), slow(terms))
    assert all(torch.equal(a, b) for a, b in zip(terms, kept, strict=True))
    tree = Tree()
    for k, term in enumerate(terms):
        tree.push([term, None, None if k else term.clone()])
    first, none, once = tree.total()
    assert torch.equal(first, slow(kept)) and none is None and torch.equal(once, kept[0])


@pytest.mark.parametrize("count", [2, 4, 8])
def test_sums_of_equal_runs_are_those_of_all(count: int) -> None:
    """Which is what processes hold; also where two terms were added before they were pushed."""
    terms = TERMS[:8]
    runs = [in_order(terms[k : k + 8 // count]) for k in range(0, 8, 8 // count)]
    assert torch.equal(in_order(runs), in_order(terms))
    tree = Tree()
    for k in range(0, 8, 2):
        tree.push([terms[k] + terms[k + 1]], 2)
    assert torch.equal(tree.total()[0], in_order(terms))
