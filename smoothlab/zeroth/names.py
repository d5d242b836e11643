"""Names of distributions of directions: the one table that the command line, records, docs and tests read.

Nothing heavy is imported here, so that `--help` can list the names at once. A new distribution is one class, see
`smoothlab.zeroth.distributions.Distribution`, and one entry below: a class, or "module:Class" to be imported when used.
"""

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
