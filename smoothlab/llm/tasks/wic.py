"""WiC (Pilehvar and Camacho-Collados 2019), SuperGLUE's form: whether a word means the same in two sentences."""

from smoothlab.llm.tasks.choices import NO_CONTENT, Choice, Row, Task, label, text

PROMPT = 'Does the word "{}" have the same meaning in these two sentences? Yes, No?\n{}\n{}\n'


def choice(row: Row) -> Choice:
    """A question with both sentences; "No" or "Yes" follows."""
    content = text(row, "word"), text(row, "sentence1"), text(row, "sentence2")
    content_free = PROMPT.format(NO_CONTENT, NO_CONTENT, NO_CONTENT)
    return Choice(PROMPT.format(*content), ("No", "Yes"), label(row, 2), content_free=content_free)


TASK = Task("wic", "verbalizer", choice, ("train.jsonl",), ("validation.jsonl", "val.jsonl"), ("aps/super_glue", "wic"))
