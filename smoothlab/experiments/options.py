"""Whether the options of an experiment make sense together, told before anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import arg

from smoothlab.errors import BadInput
from smoothlab.zeroth.names import METAVAR

DistributionName = Annotated[str, arg(metavar=METAVAR)]
"""Name of a distribution of directions, with parameters in parentheses if any."""
DistributionNames = Annotated[tuple[str, ...], arg(metavar=f"{METAVAR} ...")]

RANGES = {
    "steps": (0, 10**9),
    "batch": (1, 10**9),
    "points": (1, 10**6),
    "probes": (2, 10**6),
    "seed": (0, 2**32 - 1),
}
"""Least and greatest value of whole numbers; seeds are shifted by 2^20 and must stay below torch's 2^63."""


def check(experiment: Any) -> None:
    """Refuse values out of range, names that are none of the choices, and a device that is not there.

    Args:
        experiment: a dataclass with the fields of `Smoothness`; from Python its types are not checked by anybody else.

    Raises:
        BadInput: names the first option that is wrong, and what it may be.
    """
    from smoothlab.llm.memory import check_device

    check_fields(experiment, RANGES)
    if not (math.isfinite(experiment.lr) and experiment.lr >= 0):
        raise BadInput(f"--lr {experiment.lr}: use a finite rate of at least 0")
    if not 0 < experiment.precision < 1:
        raise BadInput(f"--precision {experiment.precision}: use a number between 0 and 1, both excluded")
    rates(experiment.lr_block)
    for text in experiment.cross:
        if experiment.cross.count(text) > 1:
            raise BadInput(f"--cross {text} is given twice: name each pair once")
    check_device(experiment.device)
    _check_folders(experiment.keep_weights, experiment.from_weights)


def check_fields(experiment: Any, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Refuse names that are none of their field's choices, and whole numbers out of range.

    Raises:
        BadInput: names the first option that is wrong, and what it may be.
    """
    for field, kind in get_type_hints(type(experiment)).items():
        if get_origin(kind) is Literal and getattr(experiment, field) not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise BadInput(f"{option(field)} {getattr(experiment, field)} is unknown: use one of {choices}")
    for field, (least, most) in ranges.items():
        value = getattr(experiment, field)
        if value < least:
            raise BadInput(f"{option(field)} {value} is too small: use at least {least}")
        if value > most:
            raise BadInput(f"{option(field)} {value} is too large: use at most {most}")


def rates(texts: Sequence[str]) -> dict[str, float]:
    """Learning rates by block, from "name=rate" each.

    Raises:
        BadInput: not of this form, a rate that is negative or not finite, or a block named twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, rate = text.partition("=")
        try:
            value = float(rate)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value) or value < 0:
            raise BadInput(f"--lr-block {text}: write name=rate with a finite rate of at least 0, e.g. base=1e-6")
        if name in found:
            raise BadInput(f"--lr-block {text}: block '{name}' has a rate already; name each block once")
        found[name] = value
    return found


def _check_folders(keep: Path | None, read: Path | None) -> None:
    if keep is not None and read is not None:
        raise BadInput(f"--keep-weights {keep} with --from-weights {read}: nothing is trained, leave one of them out")
    if keep is not None and keep.exists() and not keep.is_dir():
        raise BadInput(f"--keep-weights {keep} is a file: name a folder")
    if read is not None and not read.is_dir():
        raise BadInput(f"--from-weights {read}: no step-*.safetensors there; make them with --keep-weights")


def option(field: str) -> str:
    """How a field is written on the command line."""
    return "--" + field.replace("_", "-")
