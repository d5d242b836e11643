"""What a process holds of a parameter."""

import pytest
import torch

from smoothlab.shards import LocalEntries


def check_overlap(first: int, length: int) -> None:
    """Against a list of all entries."""
    entries = LocalEntries(torch.arange(first, first + length, dtype=torch.float32))
    entries.first = first
    for start in range(12):
        for stop in range(start, 13):
            found, where = entries.overlap(start, stop)
            expected = [n for n in range(start, stop) if first <= n < first + length]
            assert found.tolist() == expected
            assert list(range(start, stop))[where] == expected


@pytest.mark.parametrize(("first", "length"), [(0, 12), (0, 5), (5, 4), (9, 3), (12, 0)])
def test_entries_of_a_piece_are_those_that_the_process_holds(first: int, length: int) -> None:
    check_overlap(first, length)


def test_a_whole_parameter_is_held_in_its_own_memory() -> None:
    p = torch.nn.Parameter(torch.ones(2, 3))
    LocalEntries(p).overlap(1, 3)[0].zero_()
    assert p.tolist() == [[1, 0, 0], [1, 1, 1]]
