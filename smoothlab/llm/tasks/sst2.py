"""SST-2 (Socher et al. 2013), movie reviews: negative 0, positive 1; 67,349 training phrases, 872 for validation."""

from smoothlab.llm.tasks import jsonlines
from smoothlab.llm.tasks.choices import NO_CONTENT, Choice, Row, Task, label, text


def choice(row: Row) -> Choice:
    """The sentence and "It was"; "terrible" or "great" follows."""
    sentence = text(row, "sentence")
    prompt = jsonlines.TEMPLATE.replace("{sentence}", sentence)
    content_free = jsonlines.TEMPLATE.replace("{sentence}", NO_CONTENT)
    return Choice(prompt, jsonlines.VERBALIZERS, label(row, 2), sentence, content_free)


TASK = Task("sst2", "verbalizer", choice, ("train.jsonl.gz",), ("validation.jsonl",), ("nyu-mll/glue", "sst2"))
