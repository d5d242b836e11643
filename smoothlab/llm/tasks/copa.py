"""COPA (Roemmele et al. 2011), SuperGLUE's form: which of two sentences is the cause or the effect of a third."""

from smoothlab.llm.tasks.choices import Choice, Row, Task, label, text

JOINED = {"effect": " so ", "cause": " because "}


def choice(row: Row) -> Choice:
    """The premise without its final ".", then "so" or "because"; the choices begin in lower case, but for "I"."""
    if row.get("question") not in JOINED:
        raise ValueError(f'has question {str(row.get("question"))[:20]!r}: give "cause" or "effect" in "question"')
    joined = JOINED[row["question"]]
    prompt = text(row, "premise").removesuffix(".") + joined
    choices = _lowered(text(row, "choice1")), _lowered(text(row, "choice2"))
    return Choice(prompt, choices, label(row, 2), content_free=joined.lstrip())


def _lowered(sentence: str) -> str:
    first, space, rest = sentence.partition(" ")
    if first != "I":  # the sentence goes on behind "so" or "because"
        first = first.lower()
    return first + space + rest


TASK = Task(
    "copa", "multiple choice", choice, ("train.jsonl",), ("validation.jsonl", "val.jsonl"), ("aps/super_glue", "copa")
)
