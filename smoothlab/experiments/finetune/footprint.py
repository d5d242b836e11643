"""Memory of a run: copies of the weights that must fit, factors that grow with the steps, and the expected peak."""

from collections.abc import Mapping, Sequence

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import NARROW, FinetuneOptions, Training
from smoothlab.llm import memory
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.factors import Factors
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.variants import variant_named


def copies(run: Training) -> int:
    """Copies of all weights that a run holds at once at least, in their own number format, the weights included."""
    only_small_blocks = run.blocks == "part" and set(run.measure) <= {"peft", "head"}
    if run.differentiates_twice and not (run.measure and only_small_blocks):
        return memory.VECTORS
    count = 1
    if run.recipe.base == "exact":
        count += 1  # a gradient
    elif run.recipe.base == "zeroth" and not run.keeps_factors:
        if not (run.widens or run.moves_in_forward):
            count += 1  # a moved copy
        if run.dtype in NARROW:
            count += 2  # masters in float32
    return count


def factor_bytes(run: Training, blocks: Mapping[str, Block], steps: int) -> int:
    """Bytes of the factors that so many steps are kept as; 0 where they are not."""
    if not run.keeps_factors:
        return 0
    plain = ZerothOrder(distribution=named(run.distribution))
    distribution = variant_named(run.variant).oracle(plain).distribution
    assert isinstance(distribution, LowRank)
    # Directions of one window share a factor, and their sum takes no more room than one of them.
    directions = run.q * -(-steps // getattr(distribution, "window", 1))
    return Factors.expected_bytes(blocks["base"], distribution, directions)


def factor_notes(run: Training, blocks: Mapping[str, Block]) -> list[str]:
    """Notes on the weights beside which steps are kept, and on the memory that these steps take.

    Raises:
        BadInput: the factors of all steps do not fit beside the weights.
    """
    if not run.keeps_factors:
        return []
    weights = sum(p.nbytes for p in blocks["base"].params)
    mapped = memory.mapped_bytes(blocks["base"].params)
    # Mapped files count as free, as they can be read again; a run whose weights have to be would crawl.
    needed_bytes, free_bytes = factor_bytes(run, blocks, run.steps), max(memory.free(run.device) - mapped, 0)
    if needed_bytes > free_bytes:
        steps_that_fit = run.steps * free_bytes // needed_bytes
        raise BadInput(
            f"--masters factors with --steps {run.steps}: their factors take {needed_bytes / 2**30:.1f} GiB, and "
            f"{free_bytes / 2**30:.1f} GiB are free beside the weights: use at most {steps_that_fit} steps, or "
            '--variant "subspace(50)", where 50 steps share factors'
        )
    return [
        f"base: {weights / 2**30:.2f} GiB, of which {mapped / 2**30:.2f} GiB are mapped from files; factors of "
        f"{run.steps} steps take {needed_bytes / 2**30:.2f} GiB"
    ]


def expected_peak(run: Training, blocks: Mapping[str, Block], measured: Sequence[Block], *, steps_made: int) -> int:
    """Bytes at the peak of a run, expected from that of so many steps and an evaluation; see `memory.expected_peak`.

    Args:
        run: as configured.
        blocks: blocks that are trained.
        measured: blocks whose curvature is measured, one after the other.
        steps_made: number of steps that were made.
    """
    kept_bytes = factor_bytes(run, blocks, run.steps) - factor_bytes(run, blocks, steps_made)
    if run.checkpoint is None and isinstance(run, FinetuneOptions):  # else the best weights are in the folder
        for name, block in blocks.items():
            if name != "base" or not run.keeps_factors:
                kept_bytes += sum(p.nbytes for p in block.params)
    sizes = [sum(p.nbytes for p in block.params) for block in measured]
    return memory.expected_peak(run.device, kept=kept_bytes, measured=max(sizes, default=0), protocol=run.protocol)
