"""Locks on folders: one holder at a time, nothing left behind."""

from pathlib import Path

import pytest

from smoothlab.errors import BadInput
from smoothlab.llm.locks import locked


def test_a_folder_has_one_holder_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with locked({"--checkpoint": tmp_path / "there", "--save": tmp_path / "link", "--none": None}):
        for name in ("there", "link", "new/../there"):
            with (
                pytest.raises(BadInput, match=r"^--save .* is in use by another run; wait for it, or name another f"),
                locked({"--checkpoint": tmp_path / "free", "--save": tmp_path / name}),
            ):
                pass
        assert not (tmp_path / "free").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == []
    with locked({"--save": tmp_path / "there"}):
        pass


def test_a_new_folder_stays_where_something_was_written(tmp_path: Path) -> None:
    with locked({"--save": tmp_path / "a" / "empty", "--checkpoint": tmp_path / "b"}):
        (tmp_path / "b" / "weights").touch()
    assert not (tmp_path / "a" / "empty").exists() and [p.name for p in (tmp_path / "b").iterdir()] == ["weights"]


@pytest.mark.parametrize("name", ["file/folder", "x" * 300, "file"])
def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BadInput, match=r"^cannot write --save .*; name another folder$"),
        locked({"--save": tmp_path / name}),
    ):
        pass
