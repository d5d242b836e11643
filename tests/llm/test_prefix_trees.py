"""Prefix trees: every row is in one of them, sees itself alone, and is scored as it is by itself."""

import itertools
from dataclasses import replace
from os.path import commonprefix

import pytest
import torch

from smoothlab.llm import prefix_trees
from smoothlab.llm.evaluate import Encoded, accuracy, accuracy_one_by_one
from smoothlab.llm.last_layer import LAYERS
from tests.llm.tiny import encoded, other_family, tiny_lm

EPS = torch.finfo(torch.float32).eps


def alike() -> Encoded:
    """Items that begin with the same passage, one twice, one whose prompt is another's beginning; long candidates."""
    passage = (5, 6, 7, 8, 9)
    contexts = (passage + (10,), passage + (11, 12), passage, (13, 14), passage + (10,), passage + (11, 12, 13))
    options = tuple(((20, 21, 22), (20, 23), (24,)) for _ in contexts)
    return Encoded(contexts, options, (0, 1, 2, 0, 1, 2), "multiple choice", 1)


ITEMS = {"alike": alike(), "verbalizer": encoded("verbalizer"), "multiple choice": encoded("multiple choice")}


@pytest.mark.parametrize("size", [1, 7, 16, 128])
@pytest.mark.parametrize("name", ITEMS)
def test_what_a_token_sees_is_its_row(name: str, size: int) -> None:
    """Along every candidate: the tokens in sight of the place that scores it are its row up to there, in order."""
    items, found = ITEMS[name], prefix_trees.trees(ITEMS[name], size)
    assert [len(tree.tokens) for tree in found] == sorted(len(tree.tokens) for tree in found)
    owners = [owner for tree in found for owner, _, _ in tree.scored]
    assert sorted(owners) == [(n, p) for n, options in enumerate(items.options) for p in range(len(options))]
    for tree in found:
        mask, positions = prefix_trees.sight(torch.tensor([tree.lasts]), torch.tensor([tree.depths]), 2, torch.float64)
        assert mask.shape == (1, 1, 2 + len(tree.tokens), 2 + len(tree.tokens))
        for (number, place), nodes, tail in tree.scored:
            row = items.contexts[number] + items.options[number][place]
            assert tail == items.options[number][place] and len(nodes) == len(tail)
            for k, node in enumerate(nodes):
                seen = (mask[0, 0, 2 + node] == 0).nonzero().flatten().tolist()
                assert seen[:2] == [0, 1]  # the virtual tokens
                assert [tree.tokens[i - 2] for i in seen[2:]] == list(row[: len(row) - len(tail) + k])
                assert positions[0][seen].tolist() == list(range(len(seen)))
    rows = [c + t[:-1] for c, ts in zip(items.contexts, items.options, strict=True) for t in ts]
    assert max(len(tree.tokens) for tree in found) <= max(size + len(commonprefix(rows)), max(map(len, rows)))


def test_beginnings_are_read_once() -> None:
    """One tree holds each different beginning of a row once."""
    items = alike()
    rows = [c + t[:-1] for c, ts in zip(items.contexts, items.options, strict=True) for t in ts]
    beginnings = {row[:k] for row in rows for k in range(1, len(row) + 1)}
    (tree,) = prefix_trees.trees(items)
    assert len(tree.tokens) == len(beginnings) < sum(map(len, rows)) / 3


def test_trees_are_full() -> None:
    """Rows of mixed lengths with nothing in common but their first token: little is left of any tree but one."""
    lengths = torch.randint(5, 60, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    contexts = tuple((0, *range(1000 * k, 1000 * k + length)) for k, length in enumerate(lengths, 1))
    items = Encoded(contexts, tuple(((1,), (2,)) for _ in contexts), (0,) * len(contexts), "verbalizer", 1)
    found = [len(tree.tokens) for tree in prefix_trees.trees(items, 100)]
    assert sum(found) == sum(lengths) + len(found)  # the first token stands in each of them
    assert len(found) <= sum(lengths) / 100 + 2


@pytest.mark.parametrize("size", [4, 20, 128])
@pytest.mark.parametrize("family", LAYERS)
def test_trees_score_as_single_rows(family: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm(family) if family in ("opt", "llama") else other_family(family)
    assert prefix_trees.fits(model, model)
    monkeypatch.setattr(prefix_trees, "SIZE", size)
    for items in ITEMS.values():
        fast, slow = (torch.tensor(f(model, items).scores) for f in (accuracy, accuracy_one_by_one))
        torch.testing.assert_close(fast, slow, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("family", ["bloom", "gemma2", "mistral"])
def test_other_models_read_rows_one_beside_the_other(family: str) -> None:
    """Those with windows or with places of their own are padded, and scored as alone."""
    model = other_family(family)
    assert not prefix_trees.fits(model, model)
    items = alike()
    fast, slow = (torch.tensor(f(model, items).scores) for f in (accuracy, accuracy_one_by_one))
    torch.testing.assert_close(fast, slow, rtol=0, atol=100 * EPS)


def test_a_window_that_a_family_may_have_is_seen() -> None:
    model = other_family("qwen2")
    assert prefix_trees.fits(model, model)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not prefix_trees.fits(model, model)


def test_the_model_reads_fewer_tokens() -> None:
    """What is read is counted at the embedding: less than half of the rows' tokens."""
    model, items, read = tiny_lm("llama"), alike(), list[int]()
    model.get_input_embeddings().register_forward_hook(lambda m, args, out: read.append(args[0].numel()))  # type: ignore[operator]
    accuracy(model, items)
    few, total = (
        sum(read),
        sum(len(c) + len(t) for c, ts in zip(items.contexts, items.options, strict=True) for t in ts),
    )
    assert few < total / 2
    read.clear()
    accuracy(model, replace(items, kind="verbalizer"), tokens=1)
    assert few < sum(read) <= total


def batches_of(items: Encoded, tokens: int) -> list[tuple[int, ...]]:
    return [tuple(minibatch["input_ids"].shape) for minibatch, _ in prefix_trees.batches(items, tokens)]


def test_batches_keep_to_their_size() -> None:
    """No more tokens than asked for, padding included, but for a single row; all rows are there."""
    items = encoded("multiple choice")
    many = Encoded(
        tuple((c[0] + k, *c[1:]) for k, c in itertools.product(range(9), items.contexts)), items.options * 9,
        items.labels * 9, items.kind, 1,
    )  # fmt: skip
    for tokens in (16, 100, 500):
        shapes = batches_of(many, tokens)
        assert all(rows * width <= tokens or rows == 1 for rows, width in shapes)
        assert all(width <= max(tokens, 16) for _, width in shapes)
    assert batches_of(many, 500) != batches_of(many, 100)
