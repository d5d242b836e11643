"""The seed log: zeroth-order training as (seed, coefficient, learning rate) a step, a few bytes each.

    theta_T = theta_0 moved by theta <- (1 - lr lambda) theta - lr sum_j c_j z_j, once for each entry,

or along what a variant (`smoothlab.zeroth.variants`) makes of the estimates sum_j c_j z_j so far,

so that the log and theta_0 are a checkpoint: `replay` makes the same moves in the same order, and its weights equal
the trained ones to the bit. `smoothlab.optim.seedlog_file` says what the file holds.
"""

import os
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from smoothlab.blocks import Block
from smoothlab.disk import sync, sync_folder, write_all, writing
from smoothlab.errors import BadInput
from smoothlab.optim import seedlog_file
from smoothlab.optim.masters import descend, masters_of, round_to
from smoothlab.optim.seedlog_file import CHECKSUM, ENTRY, FORMAT, Contents, Move
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.factors import Factors
from smoothlab.zeroth.variant import State, Variant
from smoothlab.zeroth.variants import Plain


class SeedLog:
    """A file of the seeds and coefficients of a run's zeroth-order steps, from which `replay` repeats them to the bit.

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from smoothlab import Block, Gaussian, HybridSGD, SeedLog, ZerothOrder
    >>> x = Block("x", (torch.nn.Parameter(torch.ones(3)),))
    >>> log = SeedLog(Path(tempfile.mkdtemp()) / "x.log", 0, {0: x}, {0: Gaussian()})
    >>> optimizer = HybridSGD([{"params": x.params, "oracle": ZerothOrder(), "name": "x"}], log=log)
    >>> loss = optimizer.step(lambda: x.params[0].square().sum())
    >>> log.steps
    1

    Args:
        path: the file; one that exists is continued if its head is the same, and begun anew if it holds a part of the
            head alone (the process or the machine died while that was written).
        seed: seed of the run, `HybridSGD.seed`.
        blocks: the zeroth-order blocks by number of their group, at step 0 where the file is begun: it keeps a hash of
            these weights.
        distributions: distributions of their directions, likewise.
        keep: entries of steps from this one on are cut off (a run that goes on from an earlier checkpoint).
        variants: variants of the steps, likewise; by default plain. The log holds estimates, whatever becomes of them.

    Attributes:
        steps: whole steps that it holds; a step is one move of every group.
        variants: variants of the steps by number of their group.

    Raises:
        BadInput: there is no block; the file cannot be written, is of another run, or ends or is damaged before step
            `keep`.
    """

    def __init__(
        self,
        path: Path,
        seed: int,
        blocks: Mapping[int, Block],
        distributions: Mapping[int, Distribution],
        keep: int | None = None,
        variants: Mapping[int, Variant] | None = None,
    ) -> None:
        if not blocks:
            raise BadInput(
                f"{path} would be a seed log of no group: give the zeroth-order blocks, or leave the log out"
            )
        self.path, self.seed, self.groups, self._distributions = path, seed, tuple(blocks), dict(distributions)
        self.variants = dict.fromkeys(blocks, Plain()) | dict(variants or {})
        self._in_folder = False
        head = seedlog_file.head_of(seed, blocks, distributions, self.variants)
        line = seedlog_file.line_of(head)
        with writing(path, "choose another folder, or make room"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not seedlog_file.holds_part_of(line, path):
                contents = seedlog_file.read(path)
                contents.check_run(head)
                if contents.head["format"] != FORMAT:
                    raise BadInput(f"{path} is of before 0.2, and cannot be continued: replay it, or name a new file")
                self._file = os.open(path, os.O_RDWR)
                self._stand_behind(contents, contents.until(keep))
            # Else nothing is there, or what a process left that died within the first line.
            elif keep:
                raise seedlog_file.too_short(path, 0, keep)
            else:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
                write_all(self._file, line)
                self._moves, self._checksum = 0, zlib.crc32(line)

    @property
    def steps(self) -> int:
        """See `SeedLog`."""
        return self._moves // len(self.groups)

    def cut(self, step: int) -> None:
        """Stand before a step: what is there of it and of later ones is cut off.

        Raises:
            BadInput: the log ends, or is damaged, before.
        """
        contents = seedlog_file.read(self.path)
        self._stand_behind(contents, contents.until(step))

    def _stand_behind(self, contents: Contents, moves: list[Move]) -> None:
        entries = sum(len(move.terms) for move in moves)  # one for each direction
        self._truncate(len(contents.line) + ENTRY.size * entries)
        self._moves, self._checksum = len(moves), zlib.crc32(contents.line)
        if moves:  # the chain goes on from the checksum of the last entry
            os.lseek(self._file, -CHECKSUM.size, os.SEEK_END)
            (self._checksum,) = CHECKSUM.unpack(os.read(self._file, CHECKSUM.size))

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)

    def append(self, step: int, group: int, gradient: Directional, lr: float, weight_decay: float) -> None:
        """Add what one step does to one group, through to the operating system.

        Raises:
            BadInput: the gradient is more than directions of this run's distribution and seeds (control variates); the
                log does not stand before this step of this group; no space, and then the log is as it was before.
        """
        due = (self.steps, self.groups[self._moves % len(self.groups)])
        if (step, group) != due:
            raise BadInput(
                f"{self.path} stands before step {due[0]} of group {due[1]}, not before step {step} of group {group}: "
                "load the checkpoint that belongs to it, or name a new file"
            )
        if gradient.anchor is not None or any(seed[:3] != (self.seed, step, group) for seed, _ in gradient.terms):
            raise BadInput("a seed log holds plain zeroth-order steps: leave control variates or known directions out")
        if gradient.distribution != self._distributions[group]:
            logged, drawn = self._distributions[group].name, gradient.distribution.name
            if logged == drawn:
                logged, drawn = self._distributions[group].generator, gradient.distribution.generator
            raise BadInput(f"{self.path} is for {logged} directions, these are other ones ({drawn}): name a new file")
        move = Move(step, group, gradient.terms, lr, weight_decay)
        entries, checksum = seedlog_file.packed(move, self._checksum)
        end = os.lseek(self._file, 0, os.SEEK_CUR)
        with self._writing():
            try:
                write_all(self._file, entries)
            except OSError:  # no part of a step stays
                self._truncate(end)
                raise
        self._moves, self._checksum = self._moves + 1, checksum

    def force(self) -> None:
        """Let the operating system bring the log to disk now, so that it is there if the machine dies.

        Raises:
            BadInput: it cannot.
        """
        with self._writing():
            sync(self._file)
        if not self._in_folder:  # a file whose name is not on disk is lost with its content
            sync_folder(self.path)
            self._in_folder = True

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.path, "make room, and go on from here")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def replay(
    path: Path,
    blocks: Mapping[int, Block],
    distributions: Mapping[int, Distribution],
    until: int | None = None,
    masters: Mapping[int, Block | Factors] | None = None,
    variants: Mapping[int, Variant] | None = None,
) -> int:
    """Move blocks from their values at step 0 to where a logged run left them, to the bit; return the number of steps.

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from smoothlab import Block, Gaussian, HybridSGD, SeedLog, ZerothOrder, replay
    >>> path = Path(tempfile.mkdtemp()) / "x.log"
    >>> x, y = (Block("x", (torch.nn.Parameter(torch.ones(3)),)) for _ in range(2))
    >>> log = SeedLog(path, 0, {0: x}, {0: Gaussian()})
    >>> optimizer = HybridSGD([{"params": x.params, "oracle": ZerothOrder(), "name": "x"}], log=log)
    >>> loss = optimizer.step(lambda: x.params[0].square().sum())
    >>> replay(path, {0: y}, {0: Gaussian()}), torch.equal(x.params[0], y.params[0])
    (1, True)

    16-bit blocks are moved in fp32 copies and rounded once at the end, as `HybridSGD` does with masters: no rounding of
    the weights enters these.

    Args:
        path: the log.
        blocks: the blocks, by number of their group.
        distributions: distributions of their directions, likewise.
        until: make the steps before this one only.
        masters: fp32 copies of 16-bit blocks, to be moved in place of new ones, or what keeps their steps as factors,
            which begins anew; they then are the run's, to the bit.
        variants: variants of the steps; by default plain.

    Raises:
        BadInput: no log, one of other blocks, distributions or variants, of other weights at step 0, or seeds of
            another generator than this machine's; or it ends, or is damaged, before step `until`, and anywhere without
            `until`.
    """
    contents = seedlog_file.read(path)
    steps_of = dict.fromkeys(blocks, Plain()) | dict(variants or {})
    head = seedlog_file.head_of(contents.head["seed"], blocks, distributions, steps_of)
    contents.check_run(head)
    contents.check_base(head)
    moved: dict[int, Block | Factors] = {}
    for k, block in blocks.items():
        master = masters.get(k) if masters else None
        if isinstance(master, Factors):
            master.reset()
            moved[k] = master
        else:
            moved[k] = masters_of(block, master)
    steps = 0
    states: dict[int, State] = dict.fromkeys(blocks, ())
    for move in contents.until(until):
        k = move.group
        gradient = Directional(distributions[k], move.terms)  # of this generator, as is checked above
        update, states[k] = steps_of[k].update(states[k], gradient)
        target = moved[k]
        if isinstance(target, Factors):
            target.descend(update, move.lr, move.weight_decay)
        else:
            descend(target, update, move.lr, move.weight_decay)
        steps = move.step + 1
    for k, target in moved.items():
        if isinstance(target, Block):
            round_to(blocks[k], target)
    return steps
