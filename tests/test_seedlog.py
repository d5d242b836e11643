"""Seed logs: size, cuts, continuation, and whom they refuse."""

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from smoothlab.blocks import Block
from smoothlab.directions import Gaussian, Rademacher
from smoothlab.errors import BadInput
from smoothlab.seedlog import ENTRY, SeedLog, replay
from smoothlab.zeroth import Directional

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


def test_other_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "log", 2)
    cases = [
        ({0: block(6)}, {0: LAW}, "is of another run (groups differ)"),
        ({0: block()}, {0: Rademacher()}, "is of another run (groups differ)"),
        ({1: block()}, {1: LAW}, "is of another run (groups differ)"),
    ]
    for blocks, laws, told in cases:
        with pytest.raises(BadInput) as error:
            replay(path, blocks, laws)
        assert told in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadInput, match="seed differ"):
        SeedLog(path, 8, {0: block()}, {0: LAW})
    first, _, rest = path.read_bytes().partition(b"\n")
    head = json.loads(first) | {"stream": "cuda/philox/torch-9/chunk-1"}
    path.write_bytes(json.dumps(head).encode() + b"\n" + rest)
    with pytest.raises(BadInput, match="its seeds are of generator cuda/philox/torch-9/chunk-1, this is cpu"):
        replay(path, {0: block()}, {0: LAW})
    for content in (b"", b"{}\n", b"\x00\xff", first[:20]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="is no seed log of smoothlab, or its first line is broken"):
            replay(path, {0: block()}, {0: LAW})
    with pytest.raises(BadInput, match="cannot read"):
        replay(tmp_path / "none", {0: block()}, {0: LAW})


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
    blocks, laws, path = {0: block(), 1: block(3)}, {0: LAW, 1: LAW}, tmp_path / "log"
    log = SeedLog(path, 7, blocks, laws)
    for t in range(2):
        for k in blocks:
            log.append(t, k, Directional(LAW, (((7, t, k, 0), 0.5),)), 1e-3, 0.0)
    path.write_bytes(path.read_bytes()[: -ENTRY.size])
    stood = [p.detach().clone() for b in blocks.values() for p in b.params]
    assert replay(path, blocks, laws) == 1 == SeedLog(path, 7, blocks, laws).steps
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
