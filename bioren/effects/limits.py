"""What strength and limits leave of the samples' effects, in embedding and expression."""

from __future__ import annotations

import math

import numpy as np

from bioren.arrays.blocks import Block
from bioren.arrays.components import Projection
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    CellsByDims,
    GenesByDims,
    SampleCodes,
    SamplesByStates,
    SamplesByStatesByDims,
)
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Alignment, Removal
from bioren.effects.expression import ExpressionBridge
from bioren.effects.state_profile import StateProfile
from bioren.effects.unmeasured import expected_there

__all__ = ["embedding_of_retained", "expression_bridge", "within_limits"]


def expression_bridge(
    by_state: Moments,
    alignment: Alignment,
    removal: Removal,
    *,
    inlier_weight: SamplesByStates,
    in_reference: BoolPerSample | None = None,
    onto: StateProfile | None = None,
) -> ExpressionBridge:
    """Return the bridge of expression by state, within strength and limits.

    Parameters
    ----------
    by_state
        Groups ``(samples, states)``: log-expression as it was measured.
    alignment
        Effects and bridges of the samples.
    removal
        How much is removed.
    inlier_weight, in_reference, onto
        As for `ExpressionBridge.fit`.
    """
    spread = alignment.reference.std()
    unmeasured = alignment.unmeasured
    found = ExpressionBridge.fit(
        expected_there(by_state, unmeasured) if onto is None else by_state,
        alignment.full,
        bridges=alignment.bridges,
        inlier_weight=inlier_weight,
        in_reference=in_reference,
        onto=onto,
        strength=removal.strength,
        most=removal.d_max * np.where(spread > 0, spread, 1.0),
    )
    if not unmeasured.any():
        return found
    shift = np.where(unmeasured[:, None], np.float32(0), found.shift)
    return ExpressionBridge(found.scale, shift)


def within_limits(
    shifts: SamplesByStatesByDims, alignment: Alignment, loadings: GenesByDims, *, d_max: float
) -> SamplesByStatesByDims:
    """Cut shifts of the embedding such that no gene moves by more than so many deviations.

    What the bridges of the genes remove counts towards the limit, which holds for the genes as
    the components rebuild them.

    Parameters
    ----------
    shifts
        What is to be removed, shape ``(samples, states, dims)``.
    alignment
        Effects and bridges of the genes that the embedding is made of.
    loadings
        Components, shape ``(genes, dims)``.
    d_max
        Standard deviations of the reference.
    """
    if math.isinf(d_max):
        return shifts
    spread = alignment.reference.std()
    most = d_max * spread
    cut = np.empty_like(shifts)
    for sample, before in enumerate(alignment.d * alignment.removed * spread):
        whole = before + shifts[sample] @ loadings.T  # states x genes
        allowed = (whole.clip(-most, most) - before) @ loadings
        # What the components make of it may leave the limits again: go only so far.
        move = allowed @ loadings.T
        room = most - np.sign(move) * before
        far = np.divide(room, np.abs(move), out=np.full_like(move, np.inf), where=move != 0)
        cut[sample] = allowed * far.min(axis=1, keepdims=True).clip(0, 1)
    return cut


def embedding_of_retained(
    x: Block, codes: SampleCodes, alignment: Alignment, *, loadings: GenesByDims
) -> CellsByDims:
    """Return what the bridges leave of the genes' effects, shape ``(cells, dims)``, float32.

    Parameters
    ----------
    x
        Expression of the genes of `alignment`, shape ``(cells, genes)``.
    codes
        Sample of each cell.
    alignment, loadings
        As for `within_limits`.
    """
    bridges, full = alignment.bridges, alignment.full
    kept = AffineBridge(bridges.scale - full.scale, bridges.shift - full.shift)
    if not (kept.scale.any() or kept.shift.any()):
        return np.zeros((len(codes), loadings.shape[1]), dtype=np.float32)
    return Projection(np.zeros(len(loadings)), loadings).apply(x, codes, kept)
