"""Long vectors lie in a mapped file, with the same values to the bit, and a full disk ends nothing."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from smoothlab.hessian import vector_memory
from smoothlab.hessian.basis import Basis
from smoothlab.hessian.vector_memory import VectorMemory
from tests.cases import DenseHessian

needs_files = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve disk")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every vector counts as long, and files lie in this folder."""
    monkeypatch.setattr(vector_memory, "LONG", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def mapped(memory: VectorMemory) -> bool:
    """Whether the rows' addresses lie in a mapped file, as the operating system says."""
    address = memory.rows.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(limit, 16) for limit in line.split()[0].split("-"))
        if start <= address < end:
            return "smoothlab-" in line
    return False


@needs_files
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list its mappings")
def test_rows_lie_in_a_file_without_a_name_and_keep_their_values(short: Path) -> None:
    memory = VectorMemory(5, torch.zeros(0, dtype=torch.float64))
    for i in range(70):  # beyond the rows of a file: these are copied to RAM
        memory.reserve(i + 1)
        memory.rows[i] = float(i)
        if i == 10:
            assert mapped(memory) and not list(short.iterdir())
    assert not mapped(memory)
    assert memory.rows.tolist() == [[float(i)] * 5 for i in range(70)]
    vector = torch.ones(5, dtype=torch.float64)
    assert memory.keep(3, vector) is vector, "in RAM it is kept as it is"


@needs_files
def test_norms_are_the_same_to_the_bit_wherever_vectors_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matrix = np.diag(np.concatenate([np.ones(30), np.full(370, 0.2)]))  # takes an extension by images
    in_ram = DenseHessian(matrix, 300, 100).norms(cross=[("a", "b")])
    monkeypatch.setattr(vector_memory, "LONG", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert DenseHessian(matrix, 300, 100).norms(cross=[("a", "b")]) == in_ram


@needs_files
def test_a_kept_image_is_a_copy_in_the_file(short: Path) -> None:
    memory = VectorMemory(4, torch.zeros(0))
    vector = torch.arange(4.0)
    kept = memory.keep(2, vector)
    assert kept.data_ptr() == memory.rows[2].data_ptr() != vector.data_ptr()
    assert torch.equal(kept, vector)


@needs_files
def test_a_vector_is_written_in_pieces(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_memory, "_PIECE", 24)  # neither a whole number of rows nor of halves
    for dtype in (torch.float32, torch.bfloat16):
        memory = VectorMemory(33, torch.zeros(0, dtype=dtype))
        memory.reserve(3)
        for i in range(3):
            memory.write(i, torch.arange(33.0).to(dtype) + i)
        assert mapped(memory) or not Path("/proc/self/maps").exists()
        assert torch.equal(memory.rows, torch.stack([torch.arange(33.0).to(dtype) + i for i in range(3)]))


@needs_files
def test_a_full_disk_leaves_the_vectors_in_ram(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    basis = Basis(50, torch.zeros(0))
    assert basis.add(torch.randn(50, generator=torch.Generator().manual_seed(0)))

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = basis.rows.clone()
    for seed in range(1, 9):
        assert basis.add(torch.randn(50, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(basis.rows[:1], before)
    assert float((basis.rows @ basis.rows.T - torch.eye(9)).abs().max()) < 1e-5
