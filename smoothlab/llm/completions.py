"""Completions and texts as tokens: the prompt's tokens are read, those to be learned are scored.

A row is prompt + completion + end token. With a chat template it is a conversation (`smoothlab.llm.chat`), whose
assistant's message is the completion; what the template puts before it is read, and it ends with the template's own end
token, behind which nothing is scored. A row that is too long loses the end of its completion, never its prompt. A text
(language modeling) has no prompt: all its tokens are scored except the token that starts every text.
"""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from smoothlab.errors import BadInput
from smoothlab.llm.chat import turn
from smoothlab.llm.encoding import Encoded, Loss, Tokens
from smoothlab.llm.tasks import Choice


def encode_completions(
    tokenizer: Any, items: Sequence[Choice], max_length: int, kind: Loss, *, chat: bool = True
) -> Encoded:
    """Tokenize prompts with what is to be learned behind them.

    Args:
        tokenizer: of the model; transformers.
        items: at least one; each has one candidate, the completion or text.
        max_length: longest row in tokens, the model's less the virtual tokens of a prompt method.
        kind: "completion" or "text".
        chat: whether completions are put into the tokenizer's chat template, if it has one.

    Raises:
        BadInput: no items, no end-of-text token, an item with no scored token, or a chat template that fails or changes
            an item.
    """
    if not items:
        raise BadInput("there are no items to encode: give at least one")
    if kind == "completion" and tokenizer.eos_token_id is None:
        raise BadInput(
            "the tokenizer has no end-of-text token, with which a completion ends: set its eos_token, or give texts "
            'in the field "text"'
        )
    templated = chat and kind == "completion" and bool(getattr(tokenizer, "chat_template", None))
    contexts, tails, answers, ends, shortened, merged = [], [], [], set(), 0, 0
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    for item in items:
        completion = item.candidates[0]
        if templated:
            completion = completion.strip()  # messages of a conversation have no space around them
            context, tail, joined = _of_turn(tokenizer, item.prompt.strip(), completion)
            ends.add(tail[-1])
        else:
            context, tail, joined = _of_text(tokenizer, item.prompt, completion, closes=kind == "completion")
        room = max_length + 1 - len(context)  # the last token is not read
        if not tail or room < 1:
            raise BadInput(_nothing_scored(item, len(context), max_length, bool(tail)))
        contexts.append(context)
        tails.append((tail[:room],))
        answers.append(completion)
        shortened += len(tail) > room
        merged += joined
    return Encoded(
        tuple(contexts), tuple(tails), (0,) * len(items), kind, tokenizer.pad_token_id or 0, merged=merged,
        shortened=shortened, ends=tuple(sorted(ends)), answers=tuple(answers),
    )  # fmt: skip


def _of_turn(tokenizer: Any, prompt: str, completion: str) -> tuple[Tokens, Tokens, bool]:
    """Tokens before an assistant's message, its own with the end token, and whether a token spans both."""
    before, after = turn(tokenizer, prompt, completion)
    context, row = _tokens(tokenizer, before), _tokens(tokenizer, before + completion + after)
    shared = len(commonprefix([context, row]))
    end = tokenizer.eos_token_id
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    closing = [token for token in _tokens(tokenizer, after) if token in special]
    if not closing:
        return row[:shared], (*row[shared:], end), shared < len(context)
    # The last such token is the template's, whatever stands in the completion; a line break may follow it.
    end = closing[0]
    last = [position for position, token in enumerate(row) if token == end][-closing.count(end)]
    return row[:shared], row[shared : last + 1], shared < len(context)


def _of_text(tokenizer: Any, prompt: str, completion: str, *, closes: bool) -> tuple[Tokens, Tokens, bool]:
    """Tokens of a prompt, of the completion or text behind it, and whether a token spans both.

    A completion `closes` with the end token; so does a text where the tokenizer has one.
    """
    # What the tokenizer puts behind every text, as T5's does, is cut off; the end token is put there for all.
    empty, letter = _tokens(tokenizer, "", specials=True), _tokens(tokenizer, "a", specials=True)
    ends = len(commonprefix([empty[::-1], letter[::-1]]))
    prompt_row, row = _tokens(tokenizer, prompt, specials=True), _tokens(tokenizer, prompt + completion, specials=True)
    prompt_row, row = prompt_row[: len(prompt_row) - ends], row[: len(row) - ends]
    shared = len(commonprefix([prompt_row, row]))
    context, tail = row[:shared], row[shared:]
    # The first token of a text has no probability without one before it.
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if not context and token is not None:
            context = (token,)
    if not context and not closes:
        context, tail = tail[:1], tail[1:]
    if tail and tokenizer.eos_token_id is not None:
        tail = (*tail, tokenizer.eos_token_id)
    return context, tail, shared < len(prompt_row)


def _tokens(tokenizer: Any, text: str, *, specials: bool = False) -> Tokens:
    # Without the tokenizer's warnings: long texts are cut here.
    return tuple(tokenizer(text, add_special_tokens=specials, verbose=False)["input_ids"])


def _nothing_scored(item: Choice, read: int, max_length: int, has_tokens: bool) -> str:
    """Why an item has no token to learn, and what to do."""
    words = " ".join(item.candidates[0].split())[:40]
    if not has_tokens:
        return f"'{words}' has no token to be scored: the tokenizer knows none of it, reword or delete it"
    return (
        f"the completion '{words}' has no token to be scored: its prompt has {read} tokens, and rows are cut at "
        f"{max_length}; shorten the prompt, raise --max-length, or use a model with more positions"
    )
