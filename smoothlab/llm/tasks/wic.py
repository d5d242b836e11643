"""WiC (Pilehvar and Camacho-Collados 2019), SuperGLUE's form: whether a word means the same in two sentences."""

from smoothlab.llm.tasks.choices import Choice, Row, Task, label, text


def choice(row: Row) -> Choice:
    """A question with both sentences; "No" or "Yes" follows."""
    prompt = f'Does the word "{text(row, "word")}" have the same meaning in these two sentences? Yes, No?\n'
    return Choice(f"{prompt}{text(row, 'sentence1')}\n{text(row, 'sentence2')}\n", ("No", "Yes"), label(row, 2))


TASK = Task("wic", "verbalizer", choice, ("train.jsonl",), ("validation.jsonl", "val.jsonl"), ("aps/super_glue", "wic"))
