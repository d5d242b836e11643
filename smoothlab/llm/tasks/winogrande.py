"""WinoGrande (Sakaguchi et al. 2020): which of two names or things fills the gap "_" of a sentence."""

from smoothlab.llm.tasks.choices import Choice, Row, Task, text


def choice(row: Row) -> Choice:
    """The sentence up to the gap; an option and the sentence after the gap may follow, and only that part is scored."""
    before, gap, after = text(row, "sentence").partition("_")
    if not gap or "_" in after:
        raise ValueError('has no gap, or more than one: give a "sentence" with one "_"')
    if row.get("answer") not in ("1", "2"):
        raise ValueError(f'has answer {str(row.get("answer"))[:20]!r}: give the string "1" or "2" in "answer"')
    return Choice(before, tuple(text(row, f"option{i}") + after for i in (1, 2)), int(row["answer"]) - 1)


TASK = Task(
    "winogrande", "multiple choice", choice, ("train_l_minus_validation.jsonl.gz", "train_l.jsonl", "train.jsonl"),
    ("validation.jsonl", "dev.jsonl"), ("allenai/winogrande", "winogrande_l"),
    note="carved from train_l by whole twin pairs, not the official validation split",
)  # fmt: skip
