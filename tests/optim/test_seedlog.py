"""Seed logs: size, cuts, continuation, and whom they refuse."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.optim.seedlog_file import BODY, ENTRY
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sparse

LAW = Gaussian()


def block(size: int = 5) -> Block:
    return Block("x", (nn.Parameter(torch.arange(float(size))), nn.Parameter(torch.ones(2, 3))))


def step(t: int, count: int = 1, seed: int = 7) -> Directional:
    return Directional(LAW, tuple(((seed, t, 0, j), 0.1 * (t + j)) for j in range(count)))


def written(path: Path, steps: int, count: int = 1) -> Path:
    log = SeedLog(path, 7, {0: block()}, {0: LAW})
    for t in range(steps):
        log.append(t, 0, step(t, count), 1e-3, 0.0)
    log.close()
    return path


def weights(path: Path, until: int | None = None) -> torch.Tensor:
    b = block()
    replay(path, {0: b}, {0: LAW}, until)
    return torch.cat([p.detach().reshape(-1) for p in b.params])


def test_twenty_thousand_steps_take_less_than_a_megabyte(tmp_path: Path) -> None:
    assert written(tmp_path / "log", 3).stat().st_size < 1000 + 3 * ENTRY.size
    assert 20_000 * ENTRY.size + 1000 < 1_000_000


def test_every_cut_leaves_the_whole_steps(tmp_path: Path) -> None:
    content = written(tmp_path / "log", 3, count=2).read_bytes()
    head = content.index(b"\n") + 1
    expected = [weights(written(tmp_path / f"log{t}", t, count=2)) for t in range(4)]
    for size in range(head, len(content) + 1):
        (tmp_path / "cut").write_bytes(content[:size])
        assert torch.equal(weights(tmp_path / "cut"), expected[(size - head) // (2 * ENTRY.size)])


@pytest.mark.parametrize("keep", [None, 2])
def test_a_cut_log_goes_on_as_an_undisturbed_one(tmp_path: Path, keep: int | None) -> None:
    whole = written(tmp_path / "whole", 5, count=2)
    path = written(tmp_path / "log", 3, count=2)
    path.write_bytes(path.read_bytes()[:-5])  # the third step is cut off
    log = SeedLog(path, 7, {0: block()}, {0: LAW}, keep=keep)
    for t in range(2, 5):
        log.append(t, 0, step(t, 2), 1e-3, 0.0)
    log.close()
    assert path.read_bytes() == whole.read_bytes()


def test_until_stops_before_a_step(tmp_path: Path) -> None:
    assert torch.equal(weights(written(tmp_path / "log", 5), 3), weights(written(tmp_path / "three", 3)))


def test_a_log_that_is_too_short_or_broken_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "log", 3)
    with pytest.raises(BadInput, match="ends before step 3, the run goes on from step 4: give the log that was"):
        weights(path, 4)
    content = path.read_bytes()
    path.write_bytes(content[: -2 * ENTRY.size] + content[-ENTRY.size :])  # the second step is lost
    with pytest.raises(BadInput, match="is broken behind step 1: give a whole one, or start again without"):
        weights(path)
    path.write_bytes(content.replace(b'"0":', b'"x":', 1))
    with pytest.raises(BadInput, match="or its first line is broken"):
        weights(path)


def entries(content: bytes) -> tuple[bytes, list[bytes]]:
    """The head and the entries of a log."""
    head, newline, rest = content.partition(b"\n")
    return head + newline, [rest[k : k + ENTRY.size] for k in range(0, len(rest), ENTRY.size)]


def flipped(entry: bytes, place: int) -> bytes:
    return entry[:place] + bytes([entry[place] ^ 1]) + entry[place + 1 :]


DAMAGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "a coefficient's last bit": (lambda e: [*e[:2], flipped(e[2], 10), *e[3:]], 1),
    "a rate": (lambda e: [*e[:5], flipped(e[5], 25), *e[6:]], 2),
    "a decay": (lambda e: [flipped(e[0], 33), *e[1:]], 0),
    "a checksum": (lambda e: [*e[:7], flipped(e[7], 37)], 3),
    "an entry removed": (lambda e: e[:3] + e[4:], 1),
    "a step removed": (lambda e: e[:2] + e[4:], 1),
    "an entry doubled": (lambda e: [*e[:4], e[3], *e[4:]], 2),
    "a step doubled": (lambda e: e[:4] + e[2:], 2),
    "the last step doubled": (lambda e: e + e[-2:], 4),
    "directions of one step swapped": (lambda e: [*e[:2], e[3], e[2], *e[4:]], 1),
    "zeros at the end": (lambda e: [*e, bytes(ENTRY.size)], 4),
}
"""What happened to the eight entries of a log of four steps, and how many steps are whole before it."""


@pytest.mark.parametrize("name", DAMAGES)
def test_what_happened_to_an_entry_is_seen(tmp_path: Path, name: str) -> None:
    """Steps before the damage can still be had, by who asks for no others: a run that goes on from a checkpoint."""
    change, whole = DAMAGES[name]
    head, held = entries(written(tmp_path / "log", 4, count=2).read_bytes())
    path = tmp_path / "damaged"
    path.write_bytes(head + b"".join(change(held)))
    told = f"is broken behind step {whole}: give a whole one, or start again without"
    for read in (lambda: weights(path), lambda: weights(path, 5), lambda: SeedLog(path, 7, {0: block()}, {0: LAW})):
        with pytest.raises(BadInput, match=told):
            read()
    assert torch.equal(weights(path, whole), weights(tmp_path / "log", whole))
    log = SeedLog(path, 7, {0: block()}, {0: LAW}, keep=whole)
    for t in range(whole, 4):
        log.append(t, 0, step(t, 2), 1e-3, 0.0)
    log.close()
    assert path.read_bytes() == (tmp_path / "log").read_bytes()


def test_a_changed_head_is_seen(tmp_path: Path) -> None:
    """With another seed in it, the coefficients would go to other directions."""
    path = written(tmp_path / "log", 2)
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 8'))
    with pytest.raises(BadInput, match="is broken behind step 0"):
        weights(path)


def unchecked(content: bytes) -> bytes:
    """The log as it was written before entries had checksums."""
    head, held = entries(content)
    return head.replace(b"seed log 2", b"seed log 1") + b"".join(entry[: BODY.size] for entry in held)


def test_logs_of_before_are_replayed_and_not_continued(tmp_path: Path) -> None:
    path, five = tmp_path / "old", unchecked(written(tmp_path / "five", 5, count=2).read_bytes())
    head, _, rest = five.partition(b"\n")
    assert b"seed log 1" in head and len(rest) == 10 * 34
    two = weights(written(tmp_path / "two", 2, count=2))
    for content in (five, five.replace(b'"distribution": ', b'"law": ')):
        path.write_bytes(content[: -4 * BODY.size - 3])  # a step and a part of the next are not there yet
        assert torch.equal(weights(path), two)
        path.write_bytes(content)
        assert torch.equal(weights(path), weights(tmp_path / "five"))
        with pytest.raises(BadInput, match="is of before 0.2, and cannot be continued: replay it, or name a new file"):
            SeedLog(path, 7, {0: block()}, {0: LAW})


def test_directions_that_had_a_share_have_a_density_now(tmp_path: Path) -> None:
    log = SeedLog(tmp_path / "log", 7, {0: block()}, {0: Sparse(0.5)})
    log.close()
    path = tmp_path / "log"
    path.write_bytes(path.read_bytes().replace(b"Sparse(density=0.5)", b"Sparse(share=0.5)"))
    assert replay(path, {0: block()}, {0: Sparse(0.5)}) == 0
    with pytest.raises(BadInput, match="groups differ"):
        replay(path, {0: block()}, {0: Sparse(0.4)})


def test_a_part_of_a_head_does_not_block_its_run(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", 2).read_bytes()
    size, path = whole.index(b"\n"), tmp_path / "log"
    for kept in (0, 1, size // 2, size):
        for zeros in (0, 50):
            path.write_bytes(whole[:kept] + bytes(zeros))
            with pytest.raises(BadInput, match="holds no step, the run goes on from step 1: give the log"):
                SeedLog(path, 7, {0: block()}, {0: LAW}, keep=1)
            assert written(path, 2).read_bytes() == whole
    for other in (b"notes of mine", whole[:size].replace(b'"seed": 7', b'"seed": 8'), whole[:size] + b"x"):
        path.write_bytes(other)
        with pytest.raises(BadInput, match="is no seed log of smoothlab, or its first line is broken"):
            SeedLog(path, 7, {0: block()}, {0: LAW})
        assert path.read_bytes() == other


def test_a_log_is_on_disk_where_it_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[tuple[int, int]] = []
    fsync = os.fsync

    def seen(file: int) -> None:
        fsync(file)
        forced.append((os.fstat(file).st_ino, os.fstat(file).st_size))

    monkeypatch.setattr(os, "fsync", seen)
    log = SeedLog(tmp_path / "log", 7, {0: block()}, {0: LAW})
    for t in range(2):
        log.append(t, 0, step(t), 1e-3, 0.0)
        log.force()
    file, folder = (tmp_path / "log").stat(), tmp_path.stat()
    assert [inode for inode, _ in forced] == [file.st_ino, folder.st_ino, file.st_ino]
    assert [forced[0][1], forced[2][1]] == [file.st_size - ENTRY.size, file.st_size]
    log.close()
    with pytest.raises(BadInput, match="cannot write .*log: Bad file descriptor; make room"):
        log.force()


def test_other_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "log", 2)
    cases = [
        ({0: block(6)}, {0: LAW}, "is of another run (groups differ)"),
        ({0: block()}, {0: Rademacher()}, "is of another run (groups differ)"),
        ({1: block()}, {1: LAW}, "is of another run (groups differ)"),
    ]
    for blocks, distributions, told in cases:
        with pytest.raises(BadInput) as error:
            replay(path, blocks, distributions)
        assert told in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadInput, match="seed differ"):
        SeedLog(path, 8, {0: block()}, {0: LAW})
    first, _, rest = path.read_bytes().partition(b"\n")
    head = json.loads(first) | {"stream": "cuda/philox/torch-9/chunk-1"}
    path.write_bytes(json.dumps(head).encode() + b"\n" + rest)
    with pytest.raises(BadInput, match="its seeds are of generator cuda/philox/torch-9/chunk-1, this is cpu"):
        replay(path, {0: block()}, {0: LAW})
    groups = [b'{"format": "smoothlab seed log 2", "seed": 7, "stream": "", "groups": ' + g + b"}\n" + rest for g in (
        b"{}", b"[]", b"[0]", b"3", b"null", b'{"x": 1}', b'{"%s": 1}' % (b"9" * 5000)
    )]  # fmt: skip
    groups += [b'{"format": "smoothlab seed log 2", "seed": "7", "stream": "", "groups": {"0": 1}}\n']
    for content in (b"", b"{}\n", b"\x00\xff", first[:20], b"[" * 100_000 + b"\n", b"[7]\n", *groups):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="is no seed log of smoothlab, or its first line is broken"):
            replay(path, {0: block()}, {0: LAW})
    with pytest.raises(BadInput, match="cannot read"):
        replay(tmp_path / "none", {0: block()}, {0: LAW})
    with pytest.raises(BadInput, match="none would be a seed log of no group: give the zeroth-order blocks, or leave"):
        SeedLog(tmp_path / "none", 7, {}, {})


def test_what_no_seed_says_is_not_logged(tmp_path: Path) -> None:
    log = SeedLog(tmp_path / "log", 7, {0: block()}, {0: LAW})
    for gradient in (step(0, seed=8), Directional(LAW, step(0).terms, anchor=torch.zeros(11))):
        with pytest.raises(BadInput, match="holds plain zeroth-order steps"):
            log.append(0, 0, gradient, 1e-3, 0.0)
    log.close()


def test_steps_out_of_order_and_other_directions_are_not_logged(tmp_path: Path) -> None:
    log = SeedLog(written(tmp_path / "log", 2), 7, {0: block()}, {0: LAW})
    assert log.steps == 2
    with pytest.raises(BadInput, match="stands before step 2 of group 0, not before step 4 of group 0: load"):
        log.append(4, 0, step(4), 1e-3, 0.0)
    with pytest.raises(BadInput, match="is for gaussian directions, these are other ones .rademacher.: name"):
        log.append(2, 0, Directional(Rademacher(), step(2).terms), 1e-3, 0.0)
    with pytest.raises(BadInput, match="ends before step 2, the run goes on from step 3: give the log"):
        log.cut(3)
    assert (tmp_path / "log").read_bytes() == written(tmp_path / "other", 2).read_bytes()


def test_a_step_that_was_cut_off_between_two_groups_is_left_out(tmp_path: Path) -> None:
    blocks, distributions, path = {0: block(), 1: block(3)}, {0: LAW, 1: LAW}, tmp_path / "log"
    log = SeedLog(path, 7, blocks, distributions)
    for t in range(2):
        for k in blocks:
            log.append(t, k, Directional(LAW, (((7, t, k, 0), 0.5),)), 1e-3, 0.0)
    path.write_bytes(path.read_bytes()[: -ENTRY.size])
    stood = [p.detach().clone() for b in blocks.values() for p in b.params]
    assert replay(path, blocks, distributions) == 1 == SeedLog(path, 7, blocks, distributions).steps
    for k, b in blocks.items():
        Directional(LAW, (((7, 0, k, 0), -0.5),)).add_to(b, -1e-3)
    moved = [p.detach() for b in blocks.values() for p in b.params]
    torch.testing.assert_close(stood, moved, rtol=0, atol=1e-6)


def test_a_step_that_does_not_fit_on_the_disk_is_not_there_in_part(tmp_path: Path) -> None:
    log = SeedLog(written(tmp_path / "log", 2), 7, {0: block()}, {0: LAW})
    content, limits = (tmp_path / "log").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + ENTRY.size + 5, limits[1]))
    try:
        with pytest.raises(BadInput, match="cannot write .*: File too large; make room, and go on from here"):
            log.append(2, 0, step(2, 3), 1e-3, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "log").read_bytes() == content
    log.append(2, 0, step(2), 1e-3, 0.0)
    assert (tmp_path / "log").read_bytes() == written(tmp_path / "three", 3).read_bytes()
