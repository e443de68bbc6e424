"""A new sample on a reference population: closed-form iterations, no training.

States tell which cells of the sample compare with which of the reference, the bridge of the
genes takes the sample's effect away, and what is left of it shows the states more clearly.  The
reference stays as it is, and every sample is mapped by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bioren.arrays.blocks import gather_rows, spaced_rows
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import CellsByCovariates, CellsByDims, Positions
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Alignment, Removal, compare
from bioren.effects.errors import variance_of_squares
from bioren.effects.standardization import standardize_onto
from bioren.effects.state_profile import StateProfile
from bioren.effects.states import ConditionalBridge, PlacedQuery
from bioren.effects.unmeasured import find_unmeasured

__all__ = ["Frame", "MappedSample", "map_sample", "stack"]

#: States are sought so many times, with a better bridge each time.
ITERATIONS = 4

#: Cells of a sample that tell how certain its effects are.
SKETCH = 2000


class Frame(NamedTuple):
    """What of a reference population a sample is mapped by.

    Attributes
    ----------
    profile
        The reference by state, in gene space.
    states
        The states in an embedding.
    embedded
        Groups ``(states,)``: the reference's cells in that embedding, without what is
        sample-specific.
    coordinates
        The same with it.
    """

    profile: StateProfile
    states: ConditionalBridge
    embedded: Moments
    coordinates: Moments

    def of_genes(self, index: Positions) -> Frame:
        """Return the frame of some genes; the embedding stays."""
        return self._replace(profile=self.profile.of_genes(index))


class MappedSample(NamedTuple):
    """One sample, mapped.

    Attributes
    ----------
    alignment
        Its effects and bridges against the reference; one sample, the genes given.
    bridged
        Embedding of its cells after the bridge of the genes, shape ``(cells, dims)``.
    placed
        The cells in their states, after what still differed within them was shifted away.
    by_state
        Groups ``(1, states)``: its moments as measured.
    profile
        The reference that it was compared with.
    """

    alignment: Alignment
    bridged: CellsByDims
    placed: PlacedQuery
    by_state: Moments
    profile: StateProfile

    def with_errors(self, x: Any) -> Alignment:
        """Return the alignment with the standard errors that the sample's own values have.

        Parameters
        ----------
        x
            The expression that was mapped, shape ``(cells, genes)``; of many cells, some are taken
            that are evenly spaced.
        """
        some = spaced_rows(x.shape[0], SKETCH)
        variance = variance_of_squares(
            gather_rows(x, some),
            np.zeros(len(some), dtype=np.intp),
            self.placed.share[some],
            bridges=self.alignment.full,
            profile=self.profile,
        )
        return self.alignment.with_errors(variance)


def map_sample(
    x: Any,
    covariates: CellsByCovariates | None,
    frame: Frame,
    *,
    encode: Callable[[AffineBridge], CellsByDims],
    variable: tuple[Any, Positions],
    removal: Removal,
    start: AffineBridge | None = None,
    iterations: int = ITERATIONS,
) -> MappedSample:
    """Map the cells of one sample.

    Parameters
    ----------
    x
        Log-expression, shape ``(cells, genes)``, any kind that `row_blocks` reads.
    covariates
        Of the cells, as `frame.states` was fitted with.
    frame
        The reference; its profile is those of the genes of `x`.
    encode
        Returns the cells' embedding after a bridge, of shape ``(1, variable genes)``.
    variable
        The genes in which states are sought, as ``(matrix, indices)``: their part of `x` and
        their columns in it.
    removal
        How much of the effect is removed; states are sought where all of it is.
    start
        Bridge of the variable genes to begin with; None: expression as it is.
    iterations
        Number of iterations of states and bridge.
    """
    some, columns = variable
    of_some = frame.profile.of_genes(columns)
    one = np.zeros(x.shape[0], dtype=np.intp)
    bridge = start or AffineBridge.identity(1, len(columns))
    overlaps: list[np.ndarray] = []
    for turn in range(iterations):
        bridged = encode(bridge)
        placed = frame.states.place_query(bridged, covariates, frame.embedded)
        # Before the last iteration the bridge serves to find states, in the genes that tell them.
        last = turn == iterations - 1
        by_state = Moments.by_group(x if last else some, one, 1, placed.share)
        profile = frame.profile if last else of_some
        unmeasured = find_unmeasured(by_state, profile)
        alignment = compare(standardize_onto(by_state, profile), removal).left_alone(unmeasured)
        bridge = alignment.filled
        overlaps.append(alignment.overlap)
    alignment = alignment._replace(overlap_before=overlaps[0])
    return MappedSample(alignment, bridged, placed, by_state, frame.profile)


def stack(alignments: list[Alignment]) -> Alignment:
    """Return alignments with the same reference and genes as one, sample below sample."""
    fields: dict[str, Any] = {"reference": alignments[0].reference}
    for name in set(Alignment._fields) - set(fields):
        parts = [getattr(one, name) for one in alignments]
        if isinstance(parts[0], Moments):
            fields[name] = Moments.stacked(parts)
        elif isinstance(parts[0], AffineBridge):
            scales, shifts = ([getattr(one, of) for one in parts] for of in ("scale", "shift"))
            fields[name] = AffineBridge(np.concatenate(scales), np.concatenate(shifts))
        else:
            fields[name] = np.concatenate(parts)
    return Alignment(**fields)
