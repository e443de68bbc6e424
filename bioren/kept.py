"""What strength and limits leave of the samples' effects, in the embedding."""

from __future__ import annotations

import math

import numpy as np

from bioren.alignment import Alignment
from bioren.blocks import Block
from bioren.bridge import AffineBridge
from bioren.projection import Projection

__all__ = ["embedding_of_kept", "within_limits"]


def within_limits(
    shifts: np.ndarray, alignment: Alignment, loadings: np.ndarray, d_max: float
) -> np.ndarray:
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


def embedding_of_kept(
    x: Block, codes: np.ndarray, alignment: Alignment, loadings: np.ndarray
) -> np.ndarray:
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
