"""What the parser says of an option, in plain words, whichever release of tyro says it."""

import pytest

from smoothlab.experiments.complaints import plain


@pytest.mark.parametrize("name", ["--batch", "('--batch',)", "('--batch', '-b')"])
def test_options_are_named_as_they_are_typed(name: str) -> None:
    """tyro 1.0.13 and older print the tuple of an option's names."""
    assert plain(f"Missing value for argument '{name}'. Expected 1 values") == "--batch has no value: give one"
    choices = f"invalid choice 'x' for argument '{name}'. Expected one of ('a', 'b')"
    assert plain(choices) == "--batch x is unknown: use a, b"


def test_other_words_are_left_as_they_are() -> None:
    words = "argument '(--batch)' of nothing"
    assert plain(words) == words
