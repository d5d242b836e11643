"""What needs a GPU, in pieces of minutes: `python -m benchmarks.gpu [--pieces NAME ...] [--text DIR] [--data-dir DIR]`.

Every piece (`benchmarks.gpu_pieces`, `benchmarks.gpu_runs`) is measured for itself and is to take less than 9 minutes.
Its rows go to one record file; a piece that is whole there is not measured again, so that starting the command again is
how a stopped one goes on. A piece that fails is told in one line, and the others go on. Runs of smoothlab that pieces
consist of have record files of their own in the folder beside, OUT without its ending.

`--size micro --device cpu` rehearses all pieces on small models: it shows that they run, and its numbers say nothing of
a GPU. No part of this has run on a GPU so far: the expected seconds are guesses, which measured ones replace.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from benchmarks import gpu_pieces, gpu_runs
from benchmarks.gpu_pieces import SHAPE_OF, SIZES, Bench, Row
from benchmarks.real_queue import hours
from smoothlab import records
from smoothlab.commands.machine import machine
from smoothlab.environment import environment
from smoothlab.errors import BadInput
from smoothlab.llm.memory import check_device

CLOSING = "whole piece"
"""`what` of the last row of a piece, which says how many rows it has."""


class Piece(NamedTuple):
    """A piece of the benchmark.

    Attributes:
        name: its group, or its group and a name within it.
        rows: measures it.
        expected: seconds that it takes, a guess.
    """

    name: str
    rows: Callable[[Bench], Iterator[Row]]
    expected: float

    @property
    def group(self) -> str:
        """The word before the first hyphen."""
        return self.name.partition("-")[0]


def pieces(size: str) -> list[Piece]:
    """All pieces of a size, in their order."""
    sizes = SIZES[size]
    listed = [Piece("stream", gpu_pieces.stream, 60)]
    for name, seconds in zip(SHAPE_OF, (90, 120, 300), strict=True):
        listed.append(Piece(f"steps-{name}", partial(gpu_pieces.steps, name=name), seconds))
    listed.append(Piece("pretrain", gpu_runs.pretrain, 420))
    for trained in ("full", "lora"):
        for number in range(1, -(-sizes.points // sizes.slice) + 1):
            rows = partial(gpu_runs.d4, trained=trained, number=number)
            listed.append(Piece(f"d4-{trained}-{number}", rows, 300))
    for name in gpu_runs.cells(Bench(size, "cpu", None, None, Path())):
        listed.append(Piece(f"table1-{name.removeprefix('sst2-')}", partial(gpu_runs.cell, name=name), 120))
    if size == "micro":
        return [piece._replace(expected=8) for piece in listed]
    return listed


class Unfinished(Exception):
    """Pieces are missing, so that the record file must get no end line."""


@dataclass(frozen=True)
class Gpu:
    """Pieces of the benchmark.

    Attributes:
        size: micro or full.
        device: device to measure on.
        text: folder with novels.txt.gz and movie_reviews.txt.gz.
        data_dir: folder with sst2/; the built-in task without.
        folder: for what the pieces write beside the record file.
        chosen: names of the pieces to measure now.
        failed: what did not work is written here, by the name of the piece.
    """

    name: ClassVar[str] = "gpu"
    unit: ClassVar[str] = "piece"
    elsewhere: ClassVar[Sequence[str]] = ("folder",)
    size: str
    device: str
    text: Path | None
    data_dir: Path | None
    folder: Path
    chosen: InitVar[Sequence[str]] = ()
    failed: InitVar[dict[str, str] | None] = None

    def __post_init__(self, chosen: Sequence[str], failed: dict[str, str] | None) -> None:
        object.__setattr__(self, "_chosen", tuple(chosen))
        object.__setattr__(self, "_failed", {} if failed is None else failed)

    @property
    def pieces(self) -> list[Piece]:
        """All pieces, the chosen ones and others."""
        return pieces(self.size)

    def place(self, row: Row) -> int:
        """The number of the piece."""
        return [piece.name for piece in self.pieces].index(row["piece"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of pieces that are whole: as many as the closing row says, this one included."""
        present = [row for row in rows if row is not None]
        complete = set()
        for row in present:
            count = sum(present_row["piece"] == row["piece"] for present_row in present)
            if row["what"] == CLOSING and row["value"] == count:
                complete.add(row["piece"])
        return [row for row in present if row["piece"] in complete]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Rows of the chosen pieces that are not done.

        Raises:
            Unfinished: there are pieces that are not measured.
        """
        seconds = {row["piece"]: row["seconds"] for row in done if row["what"] == CLOSING}
        chosen: Sequence[str] = self._chosen  # type: ignore[attr-defined]
        failed: dict[str, str] = self._failed  # type: ignore[attr-defined]
        remaining = [piece for piece in self.pieces if piece.name in chosen and piece.name not in seconds]
        bench = Bench(self.size, self.device, self.text, self.data_dir, self.folder)
        for number, piece in enumerate(remaining):
            say(f"{piece.name}: next, {_outlook(self.pieces, remaining[number:], seconds, len(chosen))}")
            started, count = time.monotonic(), 0
            try:
                for row in piece.rows(bench):
                    count += 1
                    yield {"piece": piece.name, **row}
            except Exception as error:  # one piece, such as one that lacks memory, does not keep the others back
                kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
                failed[piece.name] = kind + " ".join(str(error).split())
                say(f"{piece.name}: {failed[piece.name]}")
            else:
                seconds[piece.name] = round(time.monotonic() - started, 3)
                yield {
                    "piece": piece.name, "what": CLOSING, "unit": "rows", "value": count + 1, "low": None, "high": None,
                    "target": None, "seconds": seconds[piece.name],
                }  # fmt: skip
            gpu_pieces.release(self.device)
        if len(seconds) < len(self.pieces):
            raise Unfinished


def _outlook(all_pieces: Sequence[Piece], remaining: Sequence[Piece], seconds: dict[str, float], chosen: int) -> str:
    """How many pieces are done, and about how long the others will take."""
    done_count = chosen - len(remaining)
    expected = {piece.name: piece.expected for piece in all_pieces}
    # Measured pieces tell how far off the guesses are, those of one group best.
    seconds_left = 0.0
    for piece in remaining:
        of_group = [name for name in seconds if name.partition("-")[0] == piece.group] or list(seconds)
        scale = sum(seconds[name] for name in of_group) / sum(expected[name] for name in of_group) if of_group else 1.0
        seconds_left += scale * piece.expected
    basis = "by the pieces measured" if seconds else "a guess"
    return f"{done_count} of {chosen} done, about {hours(seconds_left)} ahead ({basis})"


def say(line: str) -> None:
    """Write a line to stderr."""
    print(f"gpu: {line}", file=sys.stderr, flush=True)


def selected(size: str, names: Sequence[str] | None) -> list[str]:
    """Names of the pieces that are named by themselves or by their group; all without names.

    Raises:
        BadInput: a name is of no piece.
    """
    all_pieces = pieces(size)
    if names is None:
        return [piece.name for piece in all_pieces]
    for name in names:
        if not any(name in (piece.name, piece.group) for piece in all_pieces):
            groups = ", ".join(dict.fromkeys(piece.group for piece in all_pieces))
            raise BadInput(f"--pieces {name}: no such piece; name one, or a group of them: {groups}")
    return [piece.name for piece in all_pieces if piece.name in names or piece.group in names]


def table(path: Path) -> str:
    """The records as a table for reading."""
    lines = []
    for row in records.load(path).astype(object).where(lambda x: x.notna(), None).to_dict("records"):
        if row["what"] == CLOSING:
            lines.append(f"{row['piece']}: {row['seconds']:.1f} s")
            continue
        spread = "" if row["low"] is None else f" ({row['low']:.4g} to {row['high']:.4g})"
        aim = "" if row["target"] is None else f"; aim {row['target']:g}"
        length = f", {row['length']:.0f} tokens a row" if row.get("length") else ""
        lines.append(f"  {row['what']}{length}: {row['value']:.4g}{spread} {row['unit']}{aim}")
    return "\n".join(lines)


def measure(experiment: Gpu, names: Sequence[str], out: Path) -> dict[str, str]:
    """Measure the pieces of these names into the record file; returns the failures by piece."""
    failed: dict[str, str] = {}
    chosen_experiment = replace(experiment, chosen=names, failed=failed)
    try:
        records.run(chosen_experiment, out, environment=environment(**machine(chosen_experiment), dtype="bfloat16"))
    except Unfinished:
        pass
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. The exit status: 1 if a piece failed, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", nargs="+", metavar="NAME", help="pieces or groups of them (default: all)")
    parser.add_argument("--size", choices=SIZES, default="full", help="micro: a rehearsal (default: full)")
    parser.add_argument("--device", default="cuda", help="cuda (default), one of several such as cuda:1, or cpu")
    parser.add_argument("--text", type=Path, help="folder with novels.txt.gz and movie_reviews.txt.gz to pre-train on")
    parser.add_argument("--data-dir", type=Path, help="folder with sst2/ (default: the built-in task)")
    parser.add_argument("--out", type=Path, help="record file (default: out/gpu/SIZE.jsonl)")
    options = parser.parse_args(arguments)
    out: Path = options.out or Path("out") / "gpu" / f"{options.size}.jsonl"
    try:
        check_device(options.device)
        if options.size == "full" and options.device == "cpu":
            raise BadInput("--size full with --device cpu: models of 7 billion need a GPU, use --size micro")
        names = selected(options.size, options.pieces)
        out.parent.mkdir(parents=True, exist_ok=True)
        experiment = Gpu(options.size, options.device, options.text, options.data_dir, out.with_suffix(""))
        failed = measure(experiment, names, out)
    except BadInput as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2
    if out.exists() and out.stat().st_size:
        print(table(out))
    for name, reason in failed.items():
        print(f"gpu: {name} is missing: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
