"""``bioren.pl``: pictures of the batch effects that were found, and of what was done about them."""

from bioren.plotting.figures import (
    batch_effects,
    before_after,
    limits,
    samples,
    training_history,
)
from bioren.plotting.mapping import mapping_scores

__all__ = [
    "batch_effects",
    "before_after",
    "limits",
    "mapping_scores",
    "samples",
    "training_history",
]
