"""What a claim is, and the two kinds of evidence for or against it, which are never mixed.

A *certificate* settles something: exact arithmetic, an enclosure in interval arithmetic, or a proof with a dense check
of every inequality that it uses. A *search* tries to break an inequality, on random members of families and by
optimization from them; where it breaks nothing it says so, with the number of cases and the smallest slack, and proves
nothing. The verdict follows from the evidence (`Finding.verdict`); nobody writes it down but as the one to be held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from smoothlab.errors import BadInput

Verdict = Literal["holds", "holds once corrected", "false as printed", "open"]
About = Literal["printed", "corrected"]
How = Literal["exact", "interval", "proof and dense check", "records"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Facts = Mapping[str, float | str]


@dataclass(frozen=True)
class Certificate:
    """A piece of evidence that settles something: an exact result, a proof with a dense check, or records."""

    what: str  # it, in plain mathematics
    about: About  # whether it speaks of the statement as printed or of the corrected one
    supports: bool | None  # whether it supports that statement, or refutes it; None: it leaves it open
    # exact or interval arithmetic, a proof whose inequalities were checked on a dense grid, or records of measurements
    # with their intervals
    how: How
    facts: Facts = field(default_factory=dict)  # the numbers, by name


@dataclass(frozen=True)
class Search:
    """One attempt to break an inequality measured <= allowed."""

    what: str  # the inequality, and where it was looked for
    about: About  # the statement as printed, or the corrected one
    cases: int  # random members and points tried
    evaluations: int  # of the optimizations that started from the worst of them
    slack: float  # smallest 1 - measured/allowed; negative where it is broken
    at: Facts  # the parameters of that case, by name
    # largest measured/allowed that is known, for a true inequality; None for one that is to be broken
    known: float | None = None
    unreachable: str = ""  # why random members do not reach the known counterexample; empty if they do
    facts: Facts = field(default_factory=dict)  # more numbers, by name: how tight a true inequality is

    @property
    def broken(self) -> bool:
        """Whether a violation was found, beyond rounding."""
        return self.slack < -1e-8

    def __str__(self) -> str:
        effort = f"{self.cases:,} cases and {self.evaluations:,} steps of optimization"
        if not self.broken:
            text = f"no violation in {effort}, smallest slack {self.slack:.3g}"
            if self.unreachable:
                text += f"; out of reach: {self.unreachable}"
            return text
        point = ", ".join(f"{name} = {as_text(value)}" for name, value in self.at.items())
        return f"violated within {effort}: measured is {1 - self.slack:.4g} times what is allowed, at {point}"


Evidence = Certificate | Search


@dataclass(frozen=True)
class Finding:
    """The result of a check: certificates and searches, in the order in which they are read."""

    evidence: tuple[Evidence, ...]

    @property
    def certificates(self) -> list[Certificate]:
        """The certificates among the evidence."""
        return [item for item in self.evidence if isinstance(item, Certificate)]

    @property
    def searches(self) -> list[Search]:
        """The searches among the evidence."""
        return [item for item in self.evidence if isinstance(item, Search)]

    @property
    def verdict(self) -> Verdict:
        """The verdict of the certificates. A search settles nothing, but one that breaks what they certify opens it.

        false as printed: a certificate refutes the printed statement. holds once corrected: and another one supports
        the corrected statement. holds: one supports the printed statement and none refutes it. open: the rest.
        """
        supported = {(c.about, c.supports) for c in self.certificates}
        broken = {s.about for s in self.searches if s.broken}
        if ("printed", False) not in supported:
            if ("printed", True) in supported and ("printed", None) not in supported and "printed" not in broken:
                return "holds"
            return "open"
        if ("printed", True) in supported:
            return "open"
        # A search that breaks the printed statement agrees with what refutes it; only a broken correction counts.
        if ("corrected", True) in supported and ("corrected", False) not in supported and "corrected" not in broken:
            return "holds once corrected"
        return "false as printed"


@dataclass(frozen=True)
class Claim:
    """One statement with the check that decides it.

    Attributes:
        name: how it is asked for.
        statement: in plain mathematics.
        place: where the paper has it.
        hypotheses: what it assumes.
        verdict: the one that is held; `smoothlab audit` fails if the check gives another.
        correction: what holds instead; empty if the statement holds, or nothing is known.
        check: takes the seed of the searches, runs for seconds at most, returns a Finding.
        records: patterns of the record files in benchmarks/results that the check reads, unless the user names others:
            it then also takes their paths. Empty: it reads none.
        experiments: experiments whose record files it understands.
        test: the test that holds the verdict.
    """

    name: str
    statement: str
    place: str
    hypotheses: str
    verdict: Verdict
    correction: str
    check: Callable[..., Finding] = field(repr=False)
    records: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ("smoothness", "hook")
    test: str = "no test"

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise BadInput(f"claim '{self.name}' stores the verdict '{self.verdict}': use one of {', '.join(VERDICTS)}")

    def finding(self, seed: int = 0, records: Sequence[Path] = ()) -> Finding:
        """Run the check.

        Raises:
            BadInput: it returned something that is no Finding.
        """
        if self.records:
            finding = self.check(seed, records)
        else:
            finding = self.check(seed)
        if not isinstance(finding, Finding):
            raise BadInput(f"the check of claim '{self.name}' returned {type(finding).__name__}: return a Finding")
        return finding


def as_text(value: float | str) -> str:
    """A fact as it is printed: text as it is, numbers with six significant digits."""
    if isinstance(value, str):
        return value
    return f"{value:.6g}"
