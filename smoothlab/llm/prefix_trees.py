"""Rows that begin alike, read once: the prefix trees of an evaluation's candidates.

A tree's tokens stand in depth-first order, each at the position of its depth in the tree, and a token sees its
ancestors and itself. The subtree of token j is then the interval [j, last_j], so that i sees j if and only if
j <= i <= last_j, and every token has the hidden state that it has in a row of its own. Trees are of nearly one size,
whatever the lengths of the rows: less padding, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smoothlab.llm.encoding import Encoded, Tokens, shared_start
from smoothlab.llm.last_layer import LAYERS

SIZE = 128
"""Tokens of a tree beside what all rows begin with: attention costs as their square, small ones fill up badly."""

Owner = tuple[int, int]
"""Item and candidate."""
Row = tuple[Tokens, int, int]
"""What is read, item and candidate."""


@dataclass
class Tree:
    """Some rows of candidates.

    Attributes:
        tokens: of all rows, shared beginnings once.
        depths: position of each token in its rows.
        lasts: for each token the last one that has it in its row.
        scored: for each candidate its owner, the tokens in the tree behind which its own are scored, and these.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    scored: list[tuple[Owner, list[int], Tokens]] = field(default_factory=list)


def fits(model: Any, base: Any) -> bool:
    """Whether the model's tokens see what a mask says and nothing else, at the positions they are given.

    Args:
        model: a causal language model, wrapped by a PEFT method or not.
        base: the same without the PEFT method.
    """
    config = base.config
    windows = {"full_attention", *(getattr(config, "layer_types", None) or ())} != {"full_attention"}
    adapter = str(getattr(getattr(model, "active_peft_config", None), "peft_type", ""))
    return (
        config.model_type in LAYERS
        and config._attn_implementation in ("eager", "sdpa")
        and not windows
        and "ADAPTION_PROMPT" not in adapter  # its attention has a mask of its own
    )


def trees(encoded: Encoded, size: int = SIZE) -> list[Tree]:
    """The rows (prompt and candidate less its last token) of all candidates, in trees of nearly one size.

    A tree has at most `size` tokens beside those that all rows begin with, but for one of a single longer row and what
    shares it whole. Smaller trees come first.
    """
    rows = sorted(
        (context + tail[:-1], number, place)
        for number, (context, tails) in enumerate(zip(encoded.contexts, encoded.options, strict=True))
        for place, tail in enumerate(tails)
    )
    found = (_tree(sorted(part), encoded) for part in _packed(_groups(rows, size), size))
    return sorted(found, key=lambda tree: len(tree.tokens))


def _groups(rows: Sequence[Row], size: int) -> list[tuple[int, list[Row]]]:
    """Sorted rows that begin alike, together as far as they fit, and how many tokens that is beside the common ones."""
    common = shared_start(rows[0][0], rows[-1][0])
    found, before = list[tuple[int, list[Row]]](), Tokens()
    for row in rows:
        shared, length = shared_start(before, row[0]), len(row[0])
        used = found[-1][0] + length - shared if found else 0
        if not found or shared < length and (shared <= common or used > size):
            found.append((length - common, [row]))
        else:
            found[-1] = used, [*found[-1][1], row]
        before = row[0]
    return found


def _packed(groups: Sequence[tuple[int, list[Row]]], size: int) -> Iterator[list[Row]]:
    """Groups put together where they fill best, large ones first."""
    room: list[list[list[Row]]] = [[] for _ in range(size + 1)]  # parts by what they can still take
    for used, group in sorted(groups, key=lambda each: -each[0]):
        free = next((free for free in range(used, size + 1) if room[free]), None)
        part = [] if free is None else room[free].pop()
        room[max(0, (size if free is None else free) - used)].append(part + group)
    for parts in room:
        yield from parts


def _tree(rows: Sequence[Row], encoded: Encoded) -> Tree:
    tree, path, before = Tree(), list[int](), Tokens()
    for row, number, place in rows:
        shared = shared_start(before, row)
        path = [*path[:shared], *range(len(tree.tokens), len(tree.tokens) + len(row) - shared)]
        tree.tokens += row[shared:]
        tree.depths += range(shared, len(row))
        tree.lasts += [0] * (len(row) - shared)
        for node in path:  # all that the newest token sees
            tree.lasts[node] = len(tree.tokens) - 1
        tail = encoded.options[number][place]
        tree.scored.append(((number, place), path[len(row) - len(tail) :], tail))
        before = row
    return tree


def batches(encoded: Encoded, tokens: int, device: Any = "cpu") -> Iterator[tuple[dict[str, Tensor], list[Owner]]]:
    """Minibatches of all candidates for `scores`, of at most `tokens` tokens or of one row, and whose scores they give.

    Yields:
        input_ids, position_ids and last [R, T], `encoding.batch`'s row, back, place, token and mask, and the owners [C]
        of the scores. Padding stands on the right, sees itself and is seen by nothing else.
    """
    bucket: list[Tree] = []
    for tree in trees(encoded, min(SIZE, tokens)):
        if bucket and (len(bucket) + 1) * len(tree.tokens) > tokens:
            yield _batch(bucket, encoded.pad, device)
            bucket = []
        bucket.append(tree)
    yield _batch(bucket, encoded.pad, device)


def _batch(bucket: Sequence[Tree], pad: int, device: Any) -> tuple[dict[str, Tensor], list[Owner]]:
    width = len(bucket[-1].tokens)
    rows = [(tree, width - len(tree.tokens)) for tree in bucket]
    places: dict[tuple[int, int], int] = {}
    scored = [
        (owner, [(r, node) for node in nodes], tail) for r, t in enumerate(bucket) for owner, nodes, tail in t.scored
    ]
    size = max(len(tail) for _, _, tail in scored)
    found: dict[str, list[Any]] = {
        "input_ids": [tree.tokens + [pad] * more for tree, more in rows],
        "position_ids": [tree.depths + [0] * more for tree, more in rows],
        "last": [tree.lasts + list(range(width - more, width)) for tree, more in rows],
        "place": [
            [places.setdefault(node, len(places)) for node in nodes] + [0] * (size - len(nodes))
            for _, nodes, _ in scored
        ],
        "token": [[*tail] + [0] * (size - len(tail)) for _, _, tail in scored],
        "mask": [[1] * len(tail) + [0] * (size - len(tail)) for _, _, tail in scored],
    }
    found |= {"row": [row for row, _ in places], "back": [width - node for _, node in places]}
    return {key: torch.tensor(value, device=device) for key, value in found.items()}, [owner for owner, _, _ in scored]


def sight(last: Tensor, position_ids: Tensor, virtual: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What each token of some trees sees behind `virtual` tokens that all of them see, and their positions.

    Returns:
        the attention mask [R, 1, V + T, V + T], 0 or -inf, and the positions [R, V + T].
    """
    width = virtual + last.shape[1]
    lead = torch.arange(virtual, device=last.device).expand(len(last), -1)
    ends = torch.cat([torch.full_like(lead, width - 1), last + virtual], 1)
    i = torch.arange(width, device=last.device)
    seen = (i <= i[:, None]) & (i[:, None] <= ends[:, None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=last.device).masked_fill_(~seen, float("-inf"))
    return mask[:, None], torch.cat([lead, position_ids + virtual], 1)
