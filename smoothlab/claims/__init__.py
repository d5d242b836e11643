"""Every claim of the paper as an executable check with a verdict: `CLAIMS`, by name.

A claim of your own is one Python file that `smoothlab audit --add FILE.py` reads:

    import numpy as np

    from smoothlab.claims import Claim, Finding, Statement

    # ranges of the parameters, from which members are drawn, and measured/allowed of members [cases, parameters]
    SEARCH = Statement("cosh x <= 1 + x^2", {"x": (-5, 5)}, lambda p: np.cosh(p[:, 0]) / (1 + p[:, 0] ** 2))

    def check(seed):
        return Finding((SEARCH.falsify(seed),))

    CLAIM = Claim("mine", "cosh x <= 1 + x^2 for |x| <= 5.", "nowhere", "none", "open", "", check)

A search alone leaves it open; certificates settle it: `exact.refutes` for a counterexample in interval arithmetic,
`exact.equal` for exact arithmetic, `exact.dense` for a proof whose inequalities are checked on a grid.

A new claim in this package takes two edits: its check and its entry in `CLAIMS` of the module that has its lemma. The
command line, the documentation and the tests (tests/claims, one file a module) read it from there.
"""

from dataclasses import replace

from smoothlab.claims import (
    along_runs,
    definitions,
    descent,
    edge,
    edge_steps,
    figure_1,
    lemma_b1,
    lemma_b2,
    lemma_b3_b4,
    lemma_b5,
    lemma_b6,
    measuring,
    second_hybrid,
    theorem,
)
from smoothlab.claims.claim import Certificate, Claim, Evidence, Finding, Search, Verdict
from smoothlab.claims.search import Log, Statement

PARTS = (
    definitions, lemma_b1, lemma_b2, lemma_b3_b4, lemma_b5, lemma_b6, theorem, measuring, figure_1, along_runs, descent,
    edge, edge_steps, second_hybrid,
)  # fmt: skip
CLAIMS: dict[str, Claim] = {}
for _part in PARTS:
    for _claim in _part.CLAIMS:
        _file = f"tests/claims/test_{_part.__name__.rpartition('.')[2]}.py"
        CLAIMS[_claim.name] = replace(_claim, test=f"{_file}::test_verdicts[{_claim.name}]")

__all__ = ["CLAIMS", "Certificate", "Claim", "Evidence", "Finding", "Log", "Search", "Statement", "Verdict"]
