"""A prompt and its completion as a conversation, by the tokenizer's own chat template.

The prompt is the user's message and the completion the assistant's. Where the completion stands in the template's
output is found with a marker in its place: the output with the completion must be that with the marker, the marker
replaced. A template that drops, trims or rewrites the completion does not pass.
"""

from typing import Any, NamedTuple

from smoothlab.errors import BadInput

MARKER = "Completion7"
"""Stands for the completion; a word, which templates that trim or split messages leave whole."""
FIX = "use --no-chat, or a tokenizer whose template writes the answer as it stands"


class Turn(NamedTuple):
    """A conversation of one question and answer as text; the completion stands between the two parts."""

    before: str  # read: the prompt, and all that the template puts before the completion
    after: str  # what the template ends the assistant's message with


def turn(tokenizer: Any, prompt: str, completion: str) -> Turn:
    """The template's text around a completion, both messages as they are.

    Args:
        tokenizer: of the model, with a chat template; transformers.
        prompt: the user's message.
        completion: the assistant's message.

    Raises:
        BadInput: the template fails, changes or leaves out one of the messages, or asks for an answer with other text
            than it puts before one.
    """
    marker = MARKER
    while marker in prompt:
        marker += "7"
    user = {"role": "user", "content": prompt}
    question = _rendered(tokenizer, [user], generates=True)
    marked = _rendered(tokenizer, [user, {"role": "assistant", "content": marker}])
    rendered = _rendered(tokenizer, [user, {"role": "assistant", "content": completion}])
    before, _, after = marked.partition(marker)
    item = f"of '{' '.join(completion.split())[:40]}'"
    if marked.count(marker) != 1 or rendered != before + completion + after:
        raise BadInput(f"the tokenizer's chat template changes or leaves out the completion {item}: {FIX}")
    if prompt not in before:
        raise BadInput(f"the tokenizer's chat template changes or leaves out the prompt {item}: {FIX}")
    if not before.startswith(question):  # trained behind one text, the model would be asked behind another
        raise BadInput(
            f"the tokenizer's chat template asks for the completion {item} with other text than it puts before it: "
            f"{FIX}"
        )
    return Turn(before, after)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, generates: bool = False) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generates)
    except Exception as error:  # whatever a template, which is a small program, raises
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(f"the tokenizer's chat template fails ({reason}): use --no-chat, or mend the template") from None
    return text
