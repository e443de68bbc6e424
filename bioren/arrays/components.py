"""Principal components of bridged expression, without forming it.

Bridging shifts every zero, so bridged expression is dense.  Its components need only products
with it, and those split into a product with the scaled sparse matrix and a term per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from bioren.arrays.apply import scale_rows
from bioren.arrays.blocks import Block, gather_rows, row_blocks
from bioren.arrays.shapes import CellsByDims, GenesByDims, PerGene, SampleCodes
from bioren.bridge import AffineBridge

__all__ = ["Projection"]

Product = Callable[[np.ndarray], np.ndarray]

#: Variances are found to this relative precision; the components are then as good as exact.
TOLERANCE = 1e-4

#: Components are found on at most so many cells; all cells are projected.
MAX_CELLS = 20_000


@dataclass(frozen=True)
class Projection:
    """A linear map from bridged expression to an embedding.

    Attributes
    ----------
    center
        Mean that is subtracted, shape ``(genes,)``.
    loadings
        Orthonormal columns, shape ``(genes, components)``.
    """

    center: PerGene
    loadings: GenesByDims

    @classmethod
    def fit(
        cls,
        x: Any,
        codes: SampleCodes,
        bridges: AffineBridge,
        *,
        center: PerGene,
        n_components: int,
        rng: np.random.Generator,
    ) -> Projection:
        """Find the leading components of expression after the bridge of each cell's sample.

        Parameters
        ----------
        x
            Matrix of shape ``(cells, genes)``, any kind that `row_blocks` reads.
        codes
            Sample of each cell.
        bridges
            One bridge per sample: ``scale`` and ``shift`` of shape ``(samples, genes)``.
        center
            Origin of the embedding, shape ``(genes,)``.
        n_components
            Number of components; fewer come back where cells or genes are not more.
        rng
            Chooses the cells, where there are too many, and the start vector.

        Raises
        ------
        ValueError
            There are fewer than 2 cells or 2 genes.
        """
        cells = np.arange(x.shape[0])
        if len(cells) > MAX_CELLS:
            cells = np.sort(rng.choice(cells, MAX_CELLS, replace=False))
        n_genes = x.shape[1]
        n_components = min(n_components, len(cells) - 1, n_genes - 1)
        if n_components < 1:
            raise ValueError(f"Components need 2 cells and 2 genes, received {x.shape}.")
        forward, backward = _centered(gather_rows(x, cells), codes[cells], bridges, center=center)
        squares = LinearOperator(
            (n_genes, n_genes), matvec=lambda v: backward(forward(v)), dtype=np.float64
        )
        start = rng.standard_normal(n_genes)
        try:
            size, columns = eigsh(squares, k=n_components, v0=start, tol=TOLERANCE)
        except ArpackNoConvergence:
            raise
        except ArpackError:  # all cells lie at the center: any components will do
            return cls(center, np.eye(n_genes, n_components))
        rows = columns.T[np.argsort(-size)]
        # The sign of a component is arbitrary: make its largest loading positive.
        largest = np.abs(rows).argmax(axis=1)
        rows *= np.where(rows[np.arange(len(rows)), largest] < 0, -1.0, 1.0)[:, None]
        return cls(center, np.ascontiguousarray(rows.T))

    def apply(self, x: Any, codes: SampleCodes, bridges: AffineBridge) -> CellsByDims:
        """Return the embedding of all rows of `x`, shape ``(cells, components)``, float32."""
        out = np.empty((x.shape[0], self.loadings.shape[1]), dtype=np.float32)
        for rows, block in row_blocks(x):
            forward, _ = _centered(block, codes[rows], bridges, center=self.center)
            out[rows] = forward(self.loadings)
        return out


def _centered(
    block: Block, codes: SampleCodes, bridges: AffineBridge, *, center: PerGene
) -> tuple[Product, Product]:
    """Return products with ``scale[codes] * block + shift[codes] - center``, and its transpose."""
    scaled = scale_rows(block, bridges.scale, codes)
    offset = bridges.shift - center  # samples x genes
    membership = sparse.csr_matrix(  # samples x cells
        (np.ones(len(codes)), (codes, np.arange(len(codes)))),
        shape=(len(offset), len(codes)),
    )

    def forward(v: np.ndarray) -> np.ndarray:
        return scaled @ v + (offset @ v)[codes]

    def backward(u: np.ndarray) -> np.ndarray:
        return scaled.T @ u + offset.T @ (membership @ u)

    return forward, backward
