"""WSC (Levesque et al. 2012), SuperGLUE's form: whether a pronoun stands for a noun of the sentence before it."""

from smoothlab.llm.tasks.choices import NO_CONTENT, Choice, Row, Task, label, text

PROMPT = '{}\nIn the previous sentence, does the pronoun "{}" refer to {}? Yes or No?\n'


def choice(row: Row) -> Choice:
    """The text and a question about its pronoun; "No" or "Yes" follows."""
    pronoun, noun = text(row, "span2_text").lower(), text(row, "span1_text")
    content_free = PROMPT.format(NO_CONTENT, NO_CONTENT, NO_CONTENT)
    prompt = PROMPT.format(text(row, "text"), pronoun, noun)
    return Choice(prompt, ("No", "Yes"), label(row, 2), content_free=content_free)


TASK = Task(
    "wsc", "verbalizer", choice, ("train.jsonl",), ("validation.jsonl", "val.jsonl"), ("aps/super_glue", "wsc.fixed")
)
