"""WSC (Levesque et al. 2012), SuperGLUE's form: whether a pronoun stands for a noun of the sentence before it."""

from smoothlab.llm.tasks.choices import Choice, Row, Task, label, text


def choice(row: Row) -> Choice:
    """The text and a question about its pronoun; "No" or "Yes" follows."""
    pronoun, noun = text(row, "span2_text").lower(), text(row, "span1_text")
    question = f'In the previous sentence, does the pronoun "{pronoun}" refer to {noun}? Yes or No?'
    return Choice(f"{text(row, 'text')}\n{question}\n", ("No", "Yes"), label(row, 2))


TASK = Task(
    "wsc", "verbalizer", choice, ("train.jsonl",), ("validation.jsonl", "val.jsonl"), ("aps/super_glue", "wsc.fixed")
)
