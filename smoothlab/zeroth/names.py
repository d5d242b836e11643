"""Names of distributions and of variants of steps: the tables that the command line, records, docs and tests read.

Nothing heavy is imported here, so that `--help` can list the names at once. A new distribution is one class, see
`smoothlab.zeroth.distribution.Distribution`, and one entry below: a class, or "module:Class" to be imported when used.
A new variant is one class, see `smoothlab.zeroth.variant.Variant`, and one entry.
"""

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from smoothlab.errors import BadInput

DISTRIBUTIONS: dict[str, str | type] = {
    "gaussian": "smoothlab.zeroth.distributions:Gaussian",
    "sphere": "smoothlab.zeroth.distributions:Sphere",
    "rademacher": "smoothlab.zeroth.distributions:Rademacher",
    "coordinate": "smoothlab.zeroth.distributions:Coordinate",
    "sparse": "smoothlab.zeroth.distributions:Sparse",
    "lowrank": "smoothlab.zeroth.low_rank:LowRank",
}
"""Distributions that a name alone determines: the lower-case name of the class, and its defaults as parameters."""

METAVAR = "|".join(DISTRIBUTIONS)
"""How `--help` shows the values of an option that names a distribution; "sparse(0.25)" sets a parameter."""

DERIVED: dict[str, str | type] = {"keptsubspace": "smoothlab.zeroth.low_rank:KeptSubspace"}
"""Distributions that a variant makes of another one; heads of seed logs name them."""

VARIANTS: dict[str, str | type] = {
    "plain": "smoothlab.zeroth.variants:Plain",
    "momentum": "smoothlab.zeroth.variants:Momentum",
    "adaptive": "smoothlab.zeroth.variants:Adaptive",
    "spread": "smoothlab.zeroth.variants:Spread",
    "subspace": "smoothlab.zeroth.variants:Subspace",
    "muon": "smoothlab.zeroth.muon:Muon",
}
"""Variants of zeroth-order steps: the lower-case name of the class, and its defaults as parameters."""

VARIANT_METAVAR = "|".join(VARIANTS)
"""How `--help` shows the values of an option that names a variant; "momentum(0.9)" sets a parameter."""


def from_table(text: str, table: Mapping[str, str | type], option: str, example: str, **options: Any) -> Any:
    """An object of the class that a name stands for in a table, with parameters in parentheses if any.

    Args:
        text: the name, e.g. "gaussian" or "sparse(0.25)".
        table: classes by their names.
        option: what errors call it.
        example: a name with a parameter, for errors.
        **options: keywords of the class.

    Raises:
        BadInput: the name is in no entry, or its parameters are not the class's, or out of range.
    """
    label, _, arguments = text.removesuffix(")").partition("(")
    if label not in table:
        raise BadInput(f"{option} {text} is unknown: use one of {', '.join(table)}")
    entry: Any = table[label]
    if isinstance(entry, str):
        entry = pkgutil.resolve_name(entry)
    try:
        return entry(*map(float, re.findall(r"[^,\s]+", arguments)), **options)
    except BadInput as error:
        raise BadInput(f"{option} {text}: {error}") from None
    except (TypeError, ValueError, OverflowError):  # too many of them, or no numbers
        names = ", ".join(f.name for f in fields(entry) if not f.kw_only) or "none"
        raise BadInput(f"{option} {text} has the parameters {names}: give numbers, as in {example}") from None
