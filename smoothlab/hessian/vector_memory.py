"""Memory for vectors of a block's size: in RAM where they are short, in a file that is mapped where they are long.

A basis of ten vectors and five images of probes are fifteen times as large as the weights: 8 GB for 135 million
parameters in fp32. They are written once and read a few times, beside products that each take two gradients. In a
mapped file the operating system may keep them in RAM, and writes them to disk where it needs that RAM for others;
values are the same to the bit.
"""

import os
import tempfile
from contextlib import suppress

import torch
from torch import Tensor

LONG = 1 << 26
"""Bytes of a vector from which on it is kept in a file: 64 MiB, 17 million parameters in fp32."""
_PIECE = 1 << 24  # bytes of one write: a write of a whole vector may take the system ten times as long
_AHEAD = 64  # rows that a file may hold: it is mapped once, and takes disk only for rows that were asked for


class VectorMemory:
    """Rows [capacity, dim] that `reserve` adds to; those that are there keep their values.

    Args:
        dim: entries of a row.
        like: a tensor whose dtype and device the rows have; rows on a GPU stay there.
    """

    def __init__(self, dim: int, like: Tensor) -> None:
        self.rows = torch.empty(0, dim, dtype=like.dtype, device=like.device)
        self._bytes = dim * like.dtype.itemsize
        self._file: int | None = None
        if self._bytes >= LONG and like.device.type == "cpu" and hasattr(os, "posix_fallocate"):
            with suppress(OSError):  # no temporary folder: in RAM then
                self._map()

    def _map(self) -> None:
        """Map a new file without a name, which vanishes with the last reference to its rows."""
        file, path = tempfile.mkstemp(prefix="smoothlab-")
        try:
            os.truncate(file, self._bytes * _AHEAD)  # sparse: no disk is taken yet
            entries = self.rows.shape[1] * _AHEAD
            mapped = torch.from_file(path, shared=True, size=entries, dtype=self.rows.dtype)
            self._mapped = mapped.view(_AHEAD, -1)
        except BaseException:
            os.close(file)
            raise
        finally:
            os.unlink(path)
        self._file = file

    def _close(self) -> None:
        """Release the file, which vanishes once no row of it is in use."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self._close()

    def reserve(self, rows: int) -> None:
        """Make room for that many rows in all."""
        capacity = len(self.rows)
        if rows <= capacity:
            return
        if self._file is not None and rows <= _AHEAD:
            # Disk is taken here, where a full one raises; a write to a hole of the map would end the process.
            with suppress(OSError):
                os.posix_fallocate(self._file, capacity * self._bytes, (rows - capacity) * self._bytes)
                self.rows = self._mapped[:rows]
                return
        self._close()
        grown = self.rows.new_empty(rows, self.rows.shape[1])
        grown[:capacity] = self.rows
        self.rows = grown

    def write(self, row: int, vector: Tensor) -> None:
        """Copy a vector into a row that `reserve` has made."""
        if self._file is None:
            self.rows[row].copy_(vector)
            return
        # Not through the map, where first writes to pages of a file take ten times the processor's time.
        data = vector.contiguous().view(torch.uint8).numpy().data
        start = row * self._bytes
        while data:
            written = os.pwrite(self._file, data[:_PIECE], start)
            data, start = data[written:], start + written

    def keep(self, row: int, vector: Tensor) -> Tensor:
        """The vector itself where vectors are short, else a copy of it in that row, so that its own memory is freed."""
        if self._file is None:
            return vector
        self.reserve(row + 1)
        self.write(row, vector)
        return self.rows[row]
