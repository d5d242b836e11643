"""Snapshots: whole or not there, equal to the bit, refused where they are of another run."""

import errno
import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.llm.checkpoints import PARTIAL, Folder, Snapshot, pack, read, reason, unpack, write

KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def some(seed: int = 0, size: int = 1000) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    tensors = {str(kind): torch.randn(size, generator=generator).mul(9).to(kind) for kind in KINDS}
    return Snapshot(tensors, {"step": seed, "sum": 0.1 + seed, "none": None})


def same(a: Snapshot, b: Snapshot) -> bool:
    alike = all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    return alike and a.tensors.keys() == b.tensors.keys() and a.state == b.state


@contextmanager
def files_of_at_most(size: int):
    """What a full disk does, done by the operating system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_snapshot_comes_back_to_the_bit_in_every_type(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    write(path, some())
    assert same(read(path), some())
    assert [found.name for found in path.parent.iterdir() if found.is_file()] == ["x.safetensors"]


def test_a_bit_that_flips_on_disk_is_seen(tmp_path: Path) -> None:
    """A bit of every third byte of a small file's head, and of every byte behind: refused, or nothing has changed."""
    path = tmp_path / "x"
    write(path, some(size=3))
    content = path.read_bytes()
    padding, head = 0, 8 + int.from_bytes(content[:8], "little")
    for place in (*range(0, head, 3), *range(head, len(content))):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read(path)
        except BadInput as error:
            assert "put the file back" in str(error) and "\n" not in str(error)
        else:
            assert same(found, some(size=3)) and place < head
            padding += 1
    assert padding < 10
    weights = len(content) - 5  # the last tensor of those that are named in order
    path.write_bytes(content[:weights] + bytes([content[weights] ^ 1]) + content[weights + 1 :])
    with pytest.raises(BadInput, match=r"it is damaged \(the numbers of torch\.\w+ are not those that were written\)"):
        read(path)


def test_a_snapshot_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder's name, the file's content, then its new name: each is forced before the next."""
    events: list[str] = []
    force, rename = os.fsync, Path.replace

    def forced(file: int) -> None:
        events.append(f"fsync {os.readlink(f'/proc/self/fd/{file}')}")
        force(file)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename {target}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(Path, "replace", renamed)
    new = tmp_path / "new"
    write(new / "x", some())
    assert events == [f"fsync {tmp_path}", f"fsync {new / PARTIAL / 'x'}", f"rename {new / 'x'}", f"fsync {new}"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_fsync_takes_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Network file systems refuse to sync folders; a disk that fails is another matter."""

    def refused(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    failure = pytest.raises(BadInput, match="Input/output error") if number == errno.EIO else nullcontext()
    with failure:
        write(tmp_path / "new" / "x", some())
    assert (tmp_path / "new" / "x").exists() == (number != errno.EIO)


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    write(tmp_path / "x", Snapshot({"row": whole[1], "column": whole[:, 2], "turned": whole.T}, {}))
    found = read(tmp_path / "x").tensors
    assert found["row"].tolist() == [4, 5, 6, 7] and found["column"].tolist() == [2, 6, 10]
    assert torch.equal(found["turned"], whole.T)
    assert (tmp_path / "x").stat().st_size < 1000


def test_an_optimizers_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    """Keys that are numbers, tuples, nested lists and tensors of any depth; 0.1 + 0.2 and 1e-320 stay what they are."""
    p = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([p], lr=0.1 + 0.2, betas=(0.9, 0.99))
    p.sum().backward()
    optimizer.step()
    given = {"optimizer": optimizer.state_dict(), "more": [(1, "a"), {(0, 3): 1e-320, "__tensor__": float("inf")}]}
    tensors: dict[str, torch.Tensor] = {}
    write(tmp_path / "x", Snapshot(tensors, {"packed": pack(given, tensors, "optimizer")}))
    found = read(tmp_path / "x")
    back = unpack(found.state["packed"], found.tensors)
    assert back["more"] == given["more"]
    assert back["optimizer"]["param_groups"] == given["optimizer"]["param_groups"]
    assert back["optimizer"]["state"].keys() == {0}
    for name, value in given["optimizer"]["state"][0].items():
        assert torch.equal(back["optimizer"]["state"][0][name], value), name


def test_what_is_no_number_text_or_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        pack({"a": {1, 2}}, {}, "x")


@pytest.mark.parametrize(
    "error",
    [
        OSError(27, "File too large"),
        RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
        RuntimeError('Error serializing: IoError(Os { code: 27, kind: FileTooLarge, message: "File too large" })'),
        RuntimeError("File too large"),
    ],
)
def test_reasons_are_the_systems_words(error: Exception) -> None:
    """From Python, safetensors 0.8 and 0.5, and anything else."""
    assert reason(error) == "File too large"


def test_a_full_disk_leaves_the_last_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, some(1))
    with files_of_at_most(5000), pytest.raises(BadInput) as caught:
        write(path, some(2))
    assert "x.safetensors: File too large" in str(caught.value) and "\n" not in str(caught.value)
    assert same(read(path), some(1))
    assert [found.name for found in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_small_disk_leaves_the_last_snapshot(tmp_path: Path) -> None:
    """A file system of 64 kB that really is full, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    try:
        write(disk / "x", some(1))
        with pytest.raises(BadInput, match="No space left on device"):
            write(disk / "x", some(2, size=4000))
        assert same(read(disk / "x"), some(1)) and len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def keep_writing(path: Path, said: int) -> None:
    torch.set_num_threads(1)  # the pool of threads does not survive a fork
    for step in range(10**6):
        write(path, Snapshot({"x": torch.full((500_000,), float(step))}, {"step": step}))
        os.write(said, b"%d\n" % step)


def test_killed_at_any_moment_the_snapshot_is_a_whole_one(tmp_path: Path) -> None:
    """SIGKILL at twelve moments of a loop that does nothing but write: what is there is one of those written, whole."""
    path = tmp_path / "x.safetensors"
    partial = 0
    for wait in range(12):
        path.unlink(missing_ok=True)
        read_end, write_end = os.pipe()
        if not (child := os.fork()):
            keep_writing(path, write_end)
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            first = [pipe.readline() for _ in range(2)]
            time.sleep(wait * 0.0007)  # somewhere within a write
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            said = max(map(int, [*first, *pipe]))
        found = read(path)
        assert (found.tensors["x"] == found.state["step"]).all()
        assert found.state["step"] in (said, said + 1)
        partial += len(list((tmp_path / PARTIAL).iterdir()))
    assert partial, "no kill hit a half-written file"


def test_a_folder_keeps_what_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "model=micro, seed=0")
    for rows in (1, 2, 3):
        folder.put(folder.after(rows), {"step": rows, "x": torch.ones(3)})
        folder.put(folder.best(rows), {"step": rows})
    (tmp_path / PARTIAL / ".tmp123456").touch()
    (tmp_path / "mine.txt").touch()
    assert folder.numbers() == [1, 2, 3]
    folder.keep([folder.after(3), folder.best(2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "after-00000003.safetensors", "best-00000002.safetensors", "mine.txt",
    ]  # fmt: skip
    assert folder.get(folder.after(3))["step"] == 3


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda f: f.path.joinpath("after-00000009.safetensors").write_bytes(b"\0" * 50), "cannot read"),
        (lambda f: write(f.after(9), some()), "is of another run (None, this one has model=micro)"),
        (
            lambda f: Folder(f.path, "model=micro, seed=1").put(f.after(9), {}),
            "is of another run (seed=1, this one has seed=0): name another --checkpoint folder",
        ),
    ],
)
def test_snapshots_that_are_not_this_runs_are_named(tmp_path: Path, do, words: str) -> None:
    folder = Folder(tmp_path, "model=micro, seed=0")
    folder.put(folder.after(1), {"step": 1})
    do(folder)
    with pytest.raises(BadInput) as caught:
        folder.numbers()
    assert words in str(caught.value) and "after-00000009" in str(caught.value) and "\n" not in str(caught.value)
    assert folder.get(folder.after(1))["step"] == 1


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="--checkpoint .*file is a file: name a folder"):
        Folder(tmp_path / "file", "run").numbers()
    with pytest.raises(BadInput, match="cannot write .*after-00000001.safetensors"):
        Folder(tmp_path / "file", "run").put(Folder(tmp_path / "file", "run").after(1), {})
