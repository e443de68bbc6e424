"""The model: fit it once, then embed and correct cells of the samples that it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
import torch

from bioren.alignment import Alignment, Removal, align, warn_apart
from bioren.autoencoder import BridgeNetwork
from bioren.blocks import Block
from bioren.by_sample import apply_by_sample
from bioren.cells import (
    FEWEST_DIMENSIONS,
    Cells,
    check_log_scale,
    check_strength,
    check_varies,
    has_negative,
    read_batches,
    read_cells,
)
from bioren.projection import Projection
from bioren.states import ConditionalBridge
from bioren.training import Epoch, TrainingOptions, decode, embed, split, train

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["RenormAutoencoder"]


class RenormAutoencoder:
    """Autoencoder that maps expression of several samples to their reference population.

    1. The standardised bridge removes each sample's shift and scale per gene, found by
       comparing samples within cell states (`bioren.alignment`).
    2. An autoencoder of bridged expression, which starts as its principal components, embeds
       the cells; its decoder knows the samples by learned bridges (`bioren.autoencoder`).
    3. The conditional bridge removes what still differs between samples within a cell state of
       the embedding (`bioren.states`).

    Parameters
    ----------
    n_latent
        Dimensions of the embedding.
    n_hidden
        Width of the network's hidden layers.
    strength
        Share of each batch effect that is removed, in [0, 1].
    max_removed
        ``(r_max, d_max)``: no gene of a sample is rescaled by more than ``r_max`` or shifted by
        more than ``d_max`` standard deviations; None: no such limit.
    rng
        Seed; the same seed gives the same result on the same machine.
    training
        See `bioren.training.TrainingOptions`.

    Attributes
    ----------
    alignment_
        Effects and bridges, `bioren.alignment.Alignment`; axes samples and genes.
    samples_, genes_
        Names along these axes.
    variable_genes_
        Genes that the network sees.
    history_
        Reconstruction error by epoch: columns ``epoch``, ``training``, ``held_out``.

    Examples
    --------
    >>> model = RenormAutoencoder().fit(adata, batch_key="sample")      # doctest: +SKIP
    >>> adata.obsm["X_bioren"] = model.embed(adata)                     # doctest: +SKIP
    >>> adata.layers["bioren"] = model.correct(adata)                   # doctest: +SKIP
    """

    alignment_: Alignment
    samples_: list[str]
    genes_: pd.Index
    variable_genes_: pd.Index
    history_: pd.DataFrame

    def __init__(
        self,
        n_latent: int = 30,
        n_hidden: int = 256,
        *,
        strength: float = 1.0,
        max_removed: tuple[float, float] | None = (2.0, math.inf),
        rng: int | np.random.Generator = 0,
        training: TrainingOptions | None = None,
    ) -> None:
        self.n_latent = n_latent
        self.n_hidden = n_hidden
        self.strength = strength
        self.max_removed = max_removed
        self.rng = rng
        self.training = training or TrainingOptions()

    def fit(
        self,
        adata: AnnData,
        batch_key: str,
        *,
        layer: str | None = None,
        reference: str | Sequence[str] | None = None,
    ) -> Self:
        """Find bridges, network and states; `adata` is not changed.

        Parameters
        ----------
        adata
            Log-expression; ``var["highly_variable"]``, where present, marks the genes that the
            network sees.  Any gene gets a bridge.
        batch_key
            Column of ``adata.obs`` that says which sample a cell is from.
        layer
            Layer to read; None: ``adata.X``.
        reference
            Sample, or samples, to whose scale all are brought; None: the pooled population, in
            which each sample weighs the same.

        Raises
        ------
        KeyError
            There is no such column or layer.
        ValueError
            The values look like counts or are not finite; the labels cannot be samples; a
            setting is out of range.
        """
        check_strength(self.strength)
        if self.n_latent < FEWEST_DIMENSIONS:
            msg = f"n_latent must be {FEWEST_DIMENSIONS} or more, received {self.n_latent}."
            raise ValueError(msg)
        batches = read_batches(adata, batch_key)
        cells = read_cells(adata, layer)
        check_log_scale(cells.x)
        in_reference = batches.select(reference)
        rng = np.random.default_rng(self.rng)
        codes, n_samples = batches.codes, len(batches.names)
        variable = cells.variable_matrix()
        check_varies(variable)

        self.batch_key_ = batch_key
        self.layer_ = layer
        self.signed_ = has_negative(cells.x)
        self.samples_ = batches.names
        self.genes_ = cells.genes
        self.variable_genes_ = cells.genes[cells.variable]
        self.alignment_ = align(
            cells.x,
            codes,
            n_samples,
            rng=rng,
            variable=(variable, cells.variable),
            in_reference=in_reference,
            removal=Removal(self.strength, max_removed=self.max_removed),
        )
        warn_apart(batches.names, self.alignment_)

        self.network_, history = self._fit_network(variable, cells, codes, in_reference, rng)
        self.history_ = pd.DataFrame(history, columns=list(Epoch._fields))

        z = embed(self.network_, variable, codes)
        self.states_ = ConditionalBridge.fit(
            z, codes, n_samples, rng=rng, in_reference=in_reference, strength=self.strength
        )
        return self

    def embed(self, adata: AnnData, *, batch_key: str | None = None) -> np.ndarray:
        """Return each cell's place in the reference population, shape ``(cells, n_latent)``.

        It depends on the cell and its sample alone, not on the other cells given.

        Parameters
        ----------
        adata
            Cells of samples that the model was fitted on; the network's genes in any order.
        batch_key
            Column that names the samples; None: the one of `fit`.

        Raises
        ------
        RuntimeError
            The model is not fitted.
        KeyError, ValueError
            Genes are missing, samples unknown, values not finite.
        """
        cells, codes = self._read(adata, batch_key, self._fitted().variable_genes_)
        z = embed(self.network_, cells.variable_matrix(), codes)
        return self.states_.apply(z, codes)

    def correct(self, adata: AnnData, *, batch_key: str | None = None) -> np.ndarray:
        """Return expression carried to the reference's scale, shape ``(cells, genes)``.

        Each cell passes the standardised bridge of its sample: it keeps its own noise and the
        log scale, and ``alignment_.bridges`` leads back exactly.

        Parameters
        ----------
        adata, batch_key
            As for `embed`; all genes of `adata` must be known, in any order.
        """
        cells, codes = self._read(adata, batch_key, None)
        columns = self._known(adata.var_names)
        return apply_by_sample(cells.x, codes, self.alignment_.bridges[:, columns])

    def decode(self, adata: AnnData, *, batch_key: str | None = None) -> pd.DataFrame:
        """Return denoised expression as if measured in the reference population.

        Parameters
        ----------
        adata, batch_key
            As for `embed`.

        Returns
        -------
        pandas.DataFrame
            Cells x variable genes: what the decoder makes of the embedding.
        """
        z = self.embed(adata, batch_key=batch_key)
        values = decode(self.network_, z)
        return pd.DataFrame(values, index=adata.obs_names, columns=self.variable_genes_)

    def __repr__(self) -> str:
        """Return the settings, and what the model was fitted on."""
        state = "not fitted"
        if hasattr(self, "states_"):
            state = f"fitted on {len(self.samples_)} samples, {len(self.genes_)} genes"
        return f"RenormAutoencoder(n_latent={self.n_latent}, n_hidden={self.n_hidden}): {state}"

    def _fit_network(
        self,
        x: Block,
        cells: Cells,
        codes: np.ndarray,
        in_reference: np.ndarray | None,
        rng: np.random.Generator,
    ) -> tuple[BridgeNetwork, list[Epoch]]:
        """Train from the principal components of the training cells; `x` is the variable genes."""
        samples = self.alignment_.samples.of_genes(cells.variable)
        population = self.alignment_.reference.of_genes(cells.variable)
        bridges = self.alignment_.bridges[:, cells.variable]

        def components(rows: np.ndarray | slice, most: int) -> np.ndarray:
            found = Projection.fit(x[rows], codes[rows], bridges, population.mean, most, rng)
            return found.loadings

        training, held_out = split(len(codes), self.training.held_out, rng)
        start = components(training, self.n_latent)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            network = BridgeNetwork(len(start), len(samples.count), start.shape[1], self.n_hidden)
        network.start_from(samples, population, start, in_reference)
        history = train(network, x, codes, (training, held_out), self.training, rng)
        if min(history, key=lambda epoch: epoch.held_out).epoch == 0:
            # Training does not help here, so that no cell need be held out of the components.
            everything = components(slice(None), start.shape[1])
            network.start_from(samples, population, everything, in_reference)
        return network, history

    def _fitted(self) -> Self:
        if not hasattr(self, "states_"):
            raise RuntimeError("The model is not fitted yet: call fit(adata, batch_key=...) first.")
        return self

    def _read(
        self, adata: AnnData, batch_key: str | None, genes: pd.Index | None
    ) -> tuple[Cells, np.ndarray]:
        self._fitted()
        batches = read_batches(adata, batch_key or self.batch_key_, names=self.samples_)
        cells = read_cells(adata, self.layer_, genes=genes)
        if not self.signed_:  # else a single cell without negative values might be refused
            check_log_scale(cells.x)
        return cells, batches.codes

    def _known(self, genes: pd.Index) -> np.ndarray:
        columns: np.ndarray = self.genes_.get_indexer(genes)
        if (columns < 0).any():
            msg = (
                f"{int((columns < 0).sum())} of {len(genes)} genes were not there when the model "
                f"was fitted, such as {genes[columns < 0][0]!r}. Leave them out."
            )
            raise KeyError(msg)
        return columns
