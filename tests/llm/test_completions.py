"""Completions and texts as tokens: their loss is transformers' own with labels of -100 on the prompt, row by row."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from smoothlab.errors import BadInput
from smoothlab.llm.answers import completion_scores
from smoothlab.llm.completions import encode_completions
from smoothlab.llm.encoding import notes
from smoothlab.llm.evaluate import Encoded, batch, choice_loss
from smoothlab.llm.tasks import Choice
from tests.llm.tiny import tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ITEMS = [
    Choice("the capital of France is", (" Paris",), 0),
    Choice("a film, in one line:", (" the plot is dull , and the acting is worse .",), 0),
    Choice("say yes ", ("yes",), 0),
]
TEXTS = [Choice("", (text,), 0) for text in ("the plot is dull .", "superb", "what a film this is !")]


def chatting(template: str = CHATML) -> Any:
    """micro's tokenizer with a chat template."""
    result = tokenizer()
    result.chat_template = template
    return result


def model() -> nn.Module:
    """A random Llama for micro's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def own_losses(lm: nn.Module, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Of rows of ids and labels, by the model's own loss."""
    result = []
    for ids, labels in rows:
        with torch.no_grad():
            result.append(float(lm(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss))
    return result


def masked(prompt: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """A row and its labels; only what is behind the prompt counts."""
    assert whole[: len(prompt)] == prompt and len(whole) > len(prompt)
    return whole, [-100] * len(prompt) + whole[len(prompt) :]


def plain_rows() -> list[tuple[list[int], list[int]]]:
    tok = tokenizer()
    rows = []
    for item in ITEMS:
        prompt, (completion,) = item.prompt, item.candidates
        rows.append(masked(tok(prompt).input_ids, [*tok(prompt + completion).input_ids, tok.eos_token_id]))
    return rows


def chat_rows() -> list[tuple[list[int], list[int]]]:
    tok, rows = chatting(), []
    for item in ITEMS:
        user = {"role": "user", "content": item.prompt.strip()}
        answer = {"role": "assistant", "content": item.candidates[0].strip()}
        prompt = tok.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        whole = tok.apply_chat_template([user, answer], return_dict=False)
        (end,) = [place for place, token in enumerate(whole) if token == tok.eos_token_id][1:]  # the answer's
        assert tok.decode(whole[end + 1 :]).strip() == ""  # a line break, which is not to be learned
        rows.append(masked(prompt, whole[: end + 1]))
    return rows


def text_rows() -> list[tuple[list[int], list[int]]]:
    tok = tokenizer()
    return [masked([tok.bos_token_id], [*tok(item.candidates[0]).input_ids, tok.eos_token_id]) for item in TEXTS]


def encoded_as(name: str) -> Encoded:
    if name == "text":
        return encode_completions(tokenizer(), TEXTS, 128, "text")
    tok = tokenizer() if name == "plain" else chatting()
    return encode_completions(tok, ITEMS, 128, "completion", chat=name != "chat refused")


ROWS = {"plain": plain_rows, "chat": chat_rows, "chat refused": plain_rows, "text": text_rows}


@pytest.mark.parametrize("name", ROWS)
def test_losses_are_those_of_transformers_with_masked_labels(name: str) -> None:
    lm, items, rows = model(), encoded_as(name), ROWS[name]()
    own = own_losses(lm, rows)
    assert torch.allclose(torch.tensor(completion_scores(lm, items).losses), torch.tensor(own), atol=2e-5)
    loss = float(choice_loss(lm, batch(items, [0, 1, 2])).detach())
    assert loss == pytest.approx(sum(own) / 3, abs=2e-5)  # the mean over items of the mean over tokens
    tokens = [sum(label != -100 for label in labels) for _, labels in rows]
    result = completion_scores(lm, items)
    assert result.tokens == tuple(tokens) and max(tokens) > 1.5 * min(tokens)
    assert result.token_loss == pytest.approx(sum(map(math.prod, zip(own, tokens, strict=True))) / sum(tokens))
    assert result.loss == pytest.approx(sum(own) / 3, abs=2e-5) and abs(result.loss - result.token_loss) > 1e-4


def test_a_minibatch_s_mean_gradient_is_unbiased_for_the_data_set_s() -> None:
    """Each item weighs the same in each minibatch: the mean of the losses of all pairs is the loss of all items."""
    lm, items = model(), encoded_as("plain")
    pairs = [float(choice_loss(lm, batch(items, pair)).detach()) for pair in ([0, 1], [0, 2], [1, 2])]
    assert sum(pairs) / 3 == pytest.approx(float(choice_loss(lm, batch(items, range(3))).detach()), abs=1e-5)


def test_rows_that_are_too_long_lose_the_end_of_their_completion() -> None:
    whole = encoded_as("plain")
    room = len(whole.contexts[1]) + 4
    cut = encode_completions(tokenizer(), ITEMS, room, "completion")
    assert cut.shortened == 1 and cut.contexts == whole.contexts
    assert cut.options[1] == (whole.options[1][0][:5],)  # the last token is not read
    assert cut.options[0] == whole.options[0] and whole.shortened == 0
    assert notes([cut, whole]) == ["1 of 6 completions or texts are longer than a row and lost their end"]
    short = encode_completions(tokenizer(), TEXTS, 4, "text")
    assert short.shortened == 2 and max(len(tail) for (tail,) in short.options) == 4


def without(name: str) -> Any:
    result = tokenizer()
    setattr(result, name, None)
    return result


def swallowing(answer: str, before: str = "", question: str = "{{ m.content }}") -> Any:
    """A tokenizer whose template writes the assistant's messages as `answer`."""
    return chatting(
        "{% for m in messages %}{% if m.role == 'user' %}Q: " + question + "\nA: {% else %}" + before + answer
        + "</s>{% endif %}{% endfor %}"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tok", "room", "message"),
    [
        (tokenizer(), 5, "the completion 'Paris' has no token to be scored: its prompt has 8 tokens, and rows are cut"),
        (without("eos_token"), 128, "the tokenizer has no end-of-text token, with which a completion ends: set its"),
        (swallowing(""), 128, "the tokenizer's chat template changes or leaves out the completion of 'Paris': use"),
        (swallowing("{{ m.content | upper }}"), 128, "chat template changes or leaves out the completion of 'Paris'"),
        (swallowing("{{ m.content[:20] }}"), 128, "changes or leaves out the completion of 'the plot is dull , and"),
        (swallowing("{{ m.content }} {{ m.content }}"), 128, "changes or leaves out the completion of 'Paris'"),
        (swallowing("{{ m.content }}{% if 'dull' in m.content %}!{% endif %}"), 128, "completion of 'the plot is dull"),
        (swallowing("{{ m.content }}", question="?"), 128, "changes or leaves out the prompt of 'Paris'"),
        (
            chatting("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"),
            128, "the tokenizer's chat template asks for the completion of 'Paris' with other text than it puts before",
        ),
        (chatting("{{ raise_exception('no such role') }}"), 128, "chat template fails (no such role): use --no-chat"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_in_one_line(tok: Any, room: int, message: str) -> None:
    with pytest.raises(BadInput) as error:
        encode_completions(tok, ITEMS, room, "completion")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_text_that_a_template_puts_before_an_answer_is_read_and_not_scored() -> None:
    """As Qwen3's empty thoughts are; a template without an end token of its own gets the tokenizer's."""
    tok = swallowing("{{ m.content }}", before="(thinks)")
    items = encode_completions(tok, ITEMS[:1], 128, "completion")
    assert tok.decode(items.contexts[0]).replace(" ", "") == "q:thecapitaloffranceis\na:(thinks)"
    assert items.options[0] == ((*tok("paris", add_special_tokens=False).input_ids, tok.eos_token_id),)
    bare = chatting("{% for m in messages %}{{ m.content }}|{% endfor %}")
    items = encode_completions(bare, ITEMS[:1], 128, "completion")
    assert bare.decode(items.options[0][0]).replace(" ", "") == "paris|</s>"


def test_a_tokenizer_without_end_token_takes_texts() -> None:
    tok = without("eos_token")
    items = encode_completions(tok, TEXTS, 128, "text")
    assert items.ends == () and items.options[0][0][-1] == tok(" .", add_special_tokens=False).input_ids[-1]
    with pytest.raises(BadInput, match="there are no items to encode"):
        encode_completions(tok, [], 128, "text")
