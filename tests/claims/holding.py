"""What every claim's test asks: the verdict that is stored, and searches that find what they should."""

from types import ModuleType

from smoothlab.claims import Certificate, Claim, Finding, Statement


def claim(module: ModuleType, name: str) -> Claim:
    """By its name."""
    return next(entry for entry in module.CLAIMS if entry.name == name)


def holds(module: ModuleType, name: str, seed: int = 0) -> Finding:
    """The verdict is the stored one; true statements are not broken, false ones are, or the reason is stated."""
    entry = claim(module, name)
    finding = entry.finding(seed)
    assert finding.verdict == entry.verdict
    for search in finding.searches:
        if search.known is not None:
            assert not search.broken
            assert 1 - search.slack <= search.known * 1.0001, "known is the largest that was ever found"
        else:
            assert search.broken is not bool(search.unreachable), str(search)
    return finding


def all_support(found: Certificate | tuple[Certificate, ...]) -> bool:
    """Whether all certificates support what they speak of."""
    return all(c.supports for c in (found if isinstance(found, tuple) else (found,)))


def true_statements(module: ModuleType) -> list[Statement]:
    """The module's true statements, to be made false on purpose."""
    return [value for value in vars(module).values() if isinstance(value, Statement) and value.known is not None]
