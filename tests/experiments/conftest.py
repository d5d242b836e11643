"""What the tests of `smoothlab finetune` as a command share."""

from pathlib import Path

import pytest

from tests.experiments.command import tiny_model, write_sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in model/, and labelled sentences in data.jsonl."""
    place = tmp_path_factory.mktemp("finetune")
    tiny_model(place / "model")
    write_sentences(place / "data.jsonl")
    return place
