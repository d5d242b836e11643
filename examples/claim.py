"""A claim of one's own, `smoothlab audit --add examples/claim.py cosh-bound`, or `python examples/claim.py`.

The claim: cosh x <= 1 + x^2 for |x| <= 5. A search looks for a violation; a certificate in interval arithmetic settles
it, since rounding cannot be what makes cosh(3) exceed 10; and another one proves what holds instead.
"""

import numpy as np

from smoothlab.claims import Claim, Finding, Statement, exact

SEARCH = Statement("cosh x <= 1 + x^2 for |x| <= 5", {"x": (-5, 5)}, lambda p: np.cosh(p[:, 0]) / (1 + p[:, 0] ** 2))


def check(seed: int) -> Finding:
    """The evidence: a search, a counterexample, and the corrected statement on a dense grid."""
    x = np.linspace(-2, 2, 4001)
    return Finding(
        (
            SEARCH.falsify(seed),
            *exact.refutes("cosh 3 <= 10", exact.cosh(exact.enclosed(3)), exact.enclosed(10)),
            exact.dense(
                "cosh x <= 1 + x^2 for |x| <= 2 (series: x^2/2 + x^4/24 + ... <= x^2)",
                np.cosh(x) / (1 + x**2),
                "corrected",
            ),
        )
    )


CLAIM = Claim(
    name="cosh-bound",
    statement="cosh x <= 1 + x^2 for |x| <= 5.",
    place="nowhere",
    hypotheses="none",
    verdict="holds once corrected",
    correction="cosh x <= 1 + x^2 for |x| <= 2.",
    check=check,
)

if __name__ == "__main__":
    finding = CLAIM.finding()
    for evidence in finding.evidence:
        print(evidence)
    print(f"{CLAIM.name}: {finding.verdict}")
