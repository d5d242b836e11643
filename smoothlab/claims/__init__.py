"""Every claim of the paper as an executable check with a verdict: `CLAIMS`, by name.

A claim of your own is one Python file that `smoothlab audit --add FILE.py` reads:

    import numpy as np

    from smoothlab.claims import Claim, Finding, Statement

    # parameters of a member, drawn from their ranges -> measured/allowed
    SEARCH = Statement("cosh x <= 1 + x^2", ("x",), ((-5, 5),), lambda p: np.cosh(p[:, 0]) / (1 + p[:, 0] ** 2))

    def check(seed):
        return Finding((SEARCH.falsify(seed),))

    CLAIM = Claim("mine", "cosh x <= 1 + x^2 for |x| <= 5.", "nowhere", "none", "open", "", "no test", check)

A search alone leaves it open; certificates settle it: `exact.refutes` for a counterexample in interval arithmetic,
`exact.equal` for exact arithmetic, `exact.dense` for a proof whose inequalities are checked on a grid.
"""

from smoothlab.claims import (
    along_runs,
    definitions,
    descent,
    figure_1,
    lemma_b1,
    lemma_b2,
    lemma_b3_b4,
    lemma_b5,
    lemma_b6,
    measuring,
    theorem,
)
from smoothlab.claims.claim import Certificate, Claim, Evidence, Finding, Search, Verdict
from smoothlab.claims.search import Statement

PARTS = (
    definitions,
    lemma_b1,
    lemma_b2,
    lemma_b3_b4,
    lemma_b5,
    lemma_b6,
    theorem,
    measuring,
    figure_1,
    along_runs,
    descent,
)
CLAIMS: dict[str, Claim] = {claim.name: claim for part in PARTS for claim in part.CLAIMS}

__all__ = ["CLAIMS", "Certificate", "Claim", "Evidence", "Finding", "Search", "Statement", "Verdict"]
