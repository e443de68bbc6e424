"""Count, mean and spread per gene: exact, mergeable, in one pass over the data.

Moments merge as if the cells had been pooled (Chan, Golub & LeVeque 1983), in double precision
and without ever forming ``E[x**2] - E[x]**2``.  Leading axes hold groups: samples, or samples x
states.  Implicit zeros of sparse matrices are counted and never filled in.  A value that is NaN was
not measured: each gene is then counted by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self

import numpy as np
from scipy import sparse

from bioren.arrays.blocks import Block, check_matrix, row_blocks, to_dense
from bioren.arrays.shapes import (
    BoolCellsByGenes,
    CellsByGenes,
    CellsByStates,
    PerGene,
    PerState,
    Positions,
    SampleCodes,
    StatesByGenes,
)
from bioren.bridge import Array, per_gene

__all__ = ["Moments"]


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single truth value
class Moments(Generic[Array]):
    """Count, mean and sum of squared deviations of a set of cells, per gene.

    Attributes
    ----------
    count
        Number of cells, or sum of their weights; shape ``(*groups,)``.  Where values are missing,
        the cells that have one: shape ``(*groups, genes)``.
    mean
        Shape ``(*groups, genes)``, float64; 0 where nothing was measured.
    m2
        Sum of squared deviations from the mean, of the shape of `mean`.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.arange(6.0).reshape(3, 2), np.ones((2, 2))
    >>> merged = Moments.of(a).merge(Moments.of(b))
    >>> bool(np.allclose(merged.mean, np.vstack([a, b]).mean(axis=0)))
    True
    >>> Moments.of(np.array([[1.0, np.nan], [2.0, 5.0]])).count
    array([2., 1.])
    """

    count: Array
    mean: Array
    m2: Array

    @property
    def incomplete(self) -> bool:
        """Return whether values are missing, so that each gene has a count of its own."""
        return self.count.ndim == self.mean.ndim

    @property
    def count_per_gene(self) -> Array:
        """Return `count` with an axis of genes, of length 1 unless values are missing."""
        return per_gene(self.count, self.mean)

    @classmethod
    def of(cls, x: Any) -> Moments[Any]:
        """Return the moments of all rows of `x`.

        Parameters
        ----------
        x
            Shape ``(cells, genes)``: ndarray, SciPy sparse matrix, dask array, matrix of a
            backed AnnData (all read in blocks of rows), or torch tensor (stays on its device).
            NaN stands for what was not measured.

        Raises
        ------
        ValueError
            `x` does not have two dimensions.
        """
        check_matrix(x)
        if _is_torch(x):
            return cls._of_tensor(x)
        grouped = cls.by_group(x, np.zeros(x.shape[0], dtype=np.intp), 1)
        return grouped[0]

    @classmethod
    def by_group(
        cls, x: Any, codes: np.ndarray, n_groups: int, weights: np.ndarray | None = None
    ) -> Moments[np.ndarray]:
        """Return the moments of the rows of each group.

        Parameters
        ----------
        x
            Matrix of shape ``(cells, genes)``, anything but a torch tensor that `of` takes.
        codes
            Group of each cell in ``range(n_groups)``, shape ``(cells,)``.
        n_groups
            Number of groups; some may be empty.
        weights
            Share of each cell in each state, shape ``(cells, states)``.  The result then has
            groups ``(n_groups, states)`` and weighted counts.

        Raises
        ------
        ValueError
            `codes` or `weights` do not have one row per cell, a code lies out of range, or `x`
            does not have two dimensions.
        """
        for name, given in (("codes", codes), ("weights", weights)):
            if given is not None and len(given) != x.shape[0]:
                raise ValueError(f"{name} has {len(given)} rows for {x.shape[0]} cells.")
        if len(codes) and not (codes.min() >= 0 and codes.max() < n_groups):
            msg = f"codes must lie in 0..{n_groups - 1}, found {codes.min()}..{codes.max()}."
            raise ValueError(msg)
        n_states = 1 if weights is None else weights.shape[1]
        total = cls.empty((n_groups, n_states), x.shape[1])
        for rows, block in row_blocks(x):
            share = np.ones((block.shape[0], 1)) if weights is None else weights[rows]
            total = total.with_block(block, codes[rows], share)
        return total[:, 0] if weights is None else total

    def with_block(self, block: Block, codes: SampleCodes, share: CellsByStates) -> Moments[Any]:
        """Return the moments by group and state with those of a block's cells; `self` may change.

        Parameters
        ----------
        block
            Rows in memory.
        codes, share
            Their groups, and weights in the states, ``(cells, states)``.
        """
        total: Moments[Any] = self
        for group, part, cells in _parts(block, codes):
            found = self._weighted(part, share[cells])
            if found.incomplete and not total.incomplete:
                total = total._by_gene()
            total._add(group, found)
        return total

    @classmethod
    def empty(cls, groups: tuple[int, ...], n_genes: int) -> Moments[np.ndarray]:
        """Return the moments of no cells."""
        shape = (*groups, n_genes)
        return Moments(np.zeros(groups), np.zeros(shape), np.zeros(shape))

    @classmethod
    def stacked(cls, parts: Sequence[Moments[np.ndarray]]) -> Moments[np.ndarray]:
        """Return the groups of all parts, one below the other along the first axis."""
        if any(part.incomplete for part in parts):
            parts = [part._by_gene() for part in parts]
        return Moments(
            np.concatenate([part.count for part in parts]),
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.m2 for part in parts]),
        )

    def merge(self, other: Moments[Array]) -> Self:
        """Return the moments of both sets of cells together."""
        ours, theirs = self._counts(other)
        count = ours + theirs
        share = theirs / (count + (count == 0))
        difference = other.mean - self.mean
        mean = self.mean + difference * per_gene(share, difference)
        m2 = self.m2 + other.m2 + difference**2 * per_gene(ours * share, difference)
        return type(self)(count, mean, m2)

    def moved(self, scale: Array, shift: Array) -> Self:
        """Return the moments of ``scale * x + shift``.

        Parameters
        ----------
        scale, shift
            Of shapes that broadcast with `mean`.
        """
        return type(self)(self.count, scale * self.mean + shift, scale**2 * self.m2)

    def subtract(self, other: Moments[Array]) -> Self:
        """Return the moments of what is left once the cells of `other` are taken out again.

        Raises
        ------
        ValueError
            `other` holds more cells than `self`.
        """
        ours, theirs = self._counts(other)
        count = ours - theirs
        rounding = 1e-12 * ours  # sums of weights seldom cancel to exactly nothing
        if (count < -rounding).any():
            msg = f"Cannot take {other.count} cells out of {self.count}."
            raise ValueError(msg)
        count = count * (count > rounding)
        left = per_gene(count > 0, self.mean)
        share = per_gene(theirs / (count + (count == 0)), self.mean)
        mean = (self.mean + (self.mean - other.mean) * share) * left
        between = per_gene(count * theirs / (ours + (ours == 0)), self.mean)
        spread = self.m2 - other.m2 - (other.mean - mean) ** 2 * between
        return type(self)(count, mean, spread.clip(0) * left)

    def pooled(self) -> Self:
        """Return the moments of the groups of the first axis merged into one."""
        total = self[0]
        for group in range(1, len(self.count)):
            total = total.merge(self[group])
        return total

    def var(self, ddof: int = 0) -> Array:
        """Return the variance per gene; 0 where no more than `ddof` cells are there."""
        cells = self.count_per_gene - ddof
        return self.m2 * (cells > 0) / (cells * (cells > 0) + (cells <= 0))

    def std(self, ddof: int = 0) -> Array:
        """Return the standard deviation per gene, the root of `var`."""
        return self.var(ddof) ** 0.5

    def __getitem__(self, index: Any) -> Self:
        """Return the groups at `index` of the leading axes."""
        return type(self)(self.count[index], self.mean[index], self.m2[index])

    def of_genes(self, index: Any) -> Self:
        """Return the moments of the genes at `index` of the last axis."""
        count = self.count[..., index] if self.incomplete else self.count
        return type(self)(count, self.mean[..., index], self.m2[..., index])

    def _counts(self, other: Moments[Array]) -> tuple[Array, Array]:
        """Return both counts, with an axis of genes if either has one."""
        if self.incomplete == other.incomplete:
            return self.count, other.count
        return self.count_per_gene, other.count_per_gene

    def _by_gene(self) -> Moments[np.ndarray]:
        """Return the same with a count for each gene."""
        count = np.broadcast_to(self.count_per_gene, self.mean.shape).copy()
        return Moments(count, self.mean, self.m2)

    def _add(self, group: int, other: Moments[Array]) -> None:
        merged = self[group].merge(other)
        self.count[group], self.mean[group], self.m2[group] = merged.count, merged.mean, merged.m2

    @classmethod
    def _weighted(cls, x: Block, weights: CellsByStates) -> Moments[np.ndarray]:
        """Return the moments of one block per state: x is cells x genes, weights cells x states.

        Deviations are taken from the block's own mean, so that nothing large cancels.  Weights
        in double precision: implicit zeros are counted by what is left of their sum.
        """
        weights = weights.astype(np.float64, copy=False)
        count = weights.sum(axis=0)  # states
        center = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()  # genes
        if np.isnan(center).any():  # so it is where a value is missing
            x, center, measured = _without_missing(to_dense(x))
            count = weights.T @ measured  # states x genes
        if sparse.issparse(x):
            first, second = _sparse_sums(x, center, weights, count=count)
        else:
            deviation = x - center
            first = weights.T @ deviation  # states x genes
            second = weights.T @ np.square(deviation, out=deviation)
        some = per_gene(count, first)
        offset = first / (some + (some == 0))
        mean = (center + offset) * (some > 0)
        return Moments(count, mean, (second - first * offset).clip(0))

    @classmethod
    def _of_tensor(cls, x: Any) -> Moments[Any]:
        import torch

        # Apple's GPUs have no double precision.
        x = x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)
        count = torch.tensor(float(len(x)), dtype=x.dtype, device=x.device)
        mean = x.sum(dim=0) / count.clamp(min=1)
        if mean.isnan().any():
            measured = ~x.isnan()
            count = measured.sum(dim=0).to(x.dtype)
            mean = x.nansum(dim=0) / count.clamp(min=1)
            x = x.where(measured, mean)
        return Moments(count, mean, (x - mean).square().sum(dim=0))


def _without_missing(x: CellsByGenes) -> tuple[CellsByGenes, PerGene, BoolCellsByGenes]:
    """Return values with each gene's mean where one is missing, the means, and what was measured.

    Deviations from the means are then 0 where nothing was measured.
    """
    measured = ~np.isnan(x)
    total = np.sum(x, axis=0, where=measured, dtype=np.float64)
    mean = total / np.maximum(measured.sum(axis=0), 1)
    return np.where(measured, x, mean), mean, measured


def _sparse_sums(
    x: sparse.csr_matrix, center: PerGene, weights: CellsByStates, *, count: PerState
) -> tuple[StatesByGenes, StatesByGenes]:
    """Sum deviations from `center` and their squares; states x genes, implicit zeros counted."""
    stored = x.astype(np.float64)  # a copy whose data are overwritten in turn

    def total(data: np.ndarray) -> StatesByGenes:
        stored.data = data
        return (stored.T @ weights).T  # states x genes

    deviation = stored.data - center[x.indices]
    zeros = count[:, None] - total(np.ones(x.nnz))
    first = total(deviation) - zeros * center
    second = total(deviation**2) + zeros * center**2
    return first, second


def _parts(block: Block, codes: SampleCodes) -> Iterator[tuple[int, Block, Positions | slice]]:
    """Yield (group, its rows of the block, their positions), each group once."""
    order = np.argsort(codes, kind="stable")
    groups, starts = np.unique(codes[order], return_index=True)
    if len(groups) == 1:
        yield int(groups[0]), block, slice(None)
        return
    for group, cells in zip(groups, np.split(order, starts[1:]), strict=True):
        yield int(group), block[cells], cells


def _is_torch(x: Any) -> bool:
    return type(x).__module__.split(".")[0] == "torch"
