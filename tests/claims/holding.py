"""What every claim's test asks: the verdict that is stored, and searches that find what they should."""

from types import ModuleType

from smoothlab.claims import Claim, Finding


def claim(module: ModuleType, name: str) -> Claim:
    """By its name."""
    return next(one for one in module.CLAIMS if one.name == name)


def holds(module: ModuleType, name: str, seed: int = 0) -> Finding:
    """The verdict is the stored one; true statements are not broken, false ones are or it is told why not."""
    one = claim(module, name)
    finding = one.found(seed)
    assert finding.verdict == one.verdict
    for search in finding.searches:
        if search.known is not None:
            assert not search.broken
            assert 1 - search.slack <= search.known * 1.0001, "known is the largest that was ever found"
        else:
            assert search.broken is not bool(search.unreachable), str(search)
    return finding


def mutated(module: ModuleType) -> list[int]:
    """Numbers of the true statements, to be made false on purpose."""
    return [number for number, one in enumerate(module.STATEMENTS) if one.known is not None]
