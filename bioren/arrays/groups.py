"""Cells by sample and by state: which sample each is from, and sums over groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bioren.arrays.shapes import (
    BoolPerSample,
    CellsByDims,
    CellsByStates,
    SampleCodes,
    SamplesByStates,
    SamplesByStatesByDims,
)
from bioren.wording import listed

__all__ = ["TINY", "BatchKey", "Batches", "effective_cells", "mixed", "sample_sums"]

#: Guards divisions by a sum of weights that may be zero; no real weight is as small.
TINY = 1e-12

#: One column of ``obs``, or several whose combinations are the samples.
BatchKey: TypeAlias = str | Sequence[str]


class Batches(NamedTuple):
    """Which sample each cell belongs to.

    Attributes
    ----------
    key
        Column, or columns, of ``adata.obs``.
    names
        Samples that have cells, in the order of the categories, or sorted.
    codes
        Position of each cell's sample in `names`, shape ``(cells,)``, int64.
    """

    key: BatchKey
    names: list[str]
    codes: SampleCodes

    def check_several(self) -> None:
        """Refuse a single sample.

        Raises
        ------
        ValueError
            There is one only.
        """
        if len(self.names) == 1:
            msg = (
                f"obs[{self.key!r}] names one sample only, {self.names[0]!r}: there is no batch "
                "effect to remove. Choose another column, or go on without integration."
            )
            raise ValueError(msg)

    def select(self, reference: Any) -> BoolPerSample | None:
        """Return which samples `reference` names, boolean of shape ``(samples,)``; None for None.

        Parameters
        ----------
        reference
            A name or several, or labels that read like them, such as 1 for "1"; or None.

        Raises
        ------
        ValueError
            A name is not among the samples, or no name is given.
        """
        if reference is None:
            return None
        wanted = [str(name) for name in np.atleast_1d(np.array(reference, dtype=object))]
        unknown = [name for name in wanted if name not in self.names]
        if unknown or not wanted:
            msg = (
                f"reference={reference!r} must name samples of obs[{self.key!r}]: "
                f"{listed(self.names)}. None stands for all of them; a population is named by its "
                "file, and there is no such file."
            )
            raise ValueError(msg)
        return np.isin(self.names, wanted)


def sample_sums(share: CellsByStates, codes: SampleCodes, n_samples: int) -> SamplesByStates:
    """Sum the rows of each sample, samples x states, in double precision."""
    sums = np.zeros((n_samples, share.shape[1]))
    order = np.argsort(codes, kind="stable")
    samples, starts = np.unique(codes[order], return_index=True)
    if len(samples):
        sums[samples] = np.add.reduceat(share[order], starts, axis=0, dtype=np.float64)
    return sums


def mixed(share: CellsByStates, codes: SampleCodes, table: SamplesByStatesByDims) -> CellsByDims:
    """Return the mean of a table's rows, samples x states x dims, by each cell's shares."""
    mixed = np.empty((len(share), table.shape[-1]))
    for sample in np.unique(codes):
        cells = codes == sample
        mixed[cells] = share[cells] @ table[sample]
    return mixed


def effective_cells(share: CellsByStates, codes: SampleCodes, n_samples: int) -> SamplesByStates:
    """Return how many whole cells the shares are worth, samples x states (Kish 1965)."""
    total = sample_sums(share, codes, n_samples)
    square = sample_sums(share**2, codes, n_samples)
    return total**2 / np.maximum(square, TINY)
