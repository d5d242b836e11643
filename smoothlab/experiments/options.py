"""Options that several experiments share: their kinds, and whether their values are among the choices."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import arg

from smoothlab.errors import BadInput
from smoothlab.zeroth.names import DISTRIBUTIONS, METAVAR, VARIANT_METAVAR

DistributionName = Annotated[str, arg(metavar=METAVAR)]
"""Name of a distribution of directions, with parameters in parentheses if any."""
VariantName = Annotated[str, arg(metavar=VARIANT_METAVAR)]
"""Name of a variant of zeroth-order steps, with parameters in parentheses if any."""
Precision = Annotated[float | tuple[str, ...], arg(metavar="NUMBER [QUANTITY=NUMBER ...]")]
"""Precision of Frobenius norms, and of other quantities by name."""
DistributionNames = Annotated[tuple[str, ...], arg(metavar=f"{METAVAR} ...")]


def check_fields(experiment: Any, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Refuse names that are none of their field's choices, and whole numbers out of range.

    Raises:
        BadInput: names the first option that is wrong, and what it may be.
    """
    for name, kind in get_type_hints(type(experiment)).items():
        if get_origin(kind) is Literal and getattr(experiment, name) not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise BadInput(f"{option(name)} {getattr(experiment, name)} is unknown: use one of {choices}")
    for name, (low, high) in ranges.items():
        value = getattr(experiment, name, low)
        if value < low:
            raise BadInput(f"{option(name)} {value} is too small: use at least {low}")
        if value > high:
            raise BadInput(f"{option(name)} {value} is too large: use at most {high}")


def check_distribution(text: str, field: str) -> None:
    """Refuse a name of no distribution, and a distribution without the closed form that runs are compared with.

    Raises:
        BadInput: names the option and the distributions that it may be.
    """
    from smoothlab.algorithm1.quadratics import moment
    from smoothlab.zeroth.distributions import named

    named(text, option(field))
    try:
        moment(2, text)
    except BadInput:
        raise BadInput(
            f"{option(field)} {text}: no closed form of its E ||ghat||^2 is known, which runs are compared with; use "
            f"one of {', '.join(DISTRIBUTIONS)}, or give its class the method cumulants"
        ) from None


def option(field: str) -> str:
    """The option of a field on the command line, e.g. "--eta-x"."""
    return "--" + field.replace("_", "-")
