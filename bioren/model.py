"""The model: fit it once, then embed and correct cells of the samples that it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from bioren.alignment import MAX_REMOVED, Alignment, Removal, align, warn_apart
from bioren.annotations import (
    Batches,
    BatchKey,
    check_condition,
    list_of,
    read_batches,
    read_controls,
    read_covariates,
    read_labels,
    read_shared_labels,
)
from bioren.autoencoder import BridgeNetwork
from bioren.blocks import Block
from bioren.bridge import AffineBridge
from bioren.cells import (
    FEWEST_DIMENSIONS,
    Cells,
    check_log_scale,
    check_strength,
    check_varies,
    has_negative,
    read_cells,
)
from bioren.denoising import Denoiser, reliability
from bioren.diagnosis import (
    Diagnosis,
    alone,
    structure_removed,
    warn_structure,
)
from bioren.expression import ExpressionBridge
from bioren.projection import Projection, gather_rows
from bioren.states import CellFacts, ConditionalBridge, default_n_states, sample_sums
from bioren.training import Epoch, TrainingOptions, decode, embed, split, train

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["RenormAutoencoder"]

#: Shifts of expression by sample, state and gene that a model may hold: 512 MiB.
SHIFT_ENTRIES = 2**27


class RenormAutoencoder:
    """Autoencoder that maps expression of several samples to their reference population.

    1. The standardised bridge removes each sample's shift and scale per gene, found by
       comparing samples within cell states (`bioren.alignment`).
    2. An autoencoder of bridged expression, which starts as its principal components, embeds
       the cells; its decoder knows the samples by learned bridges (`bioren.autoencoder`).
    3. The conditional bridge removes what still differs between samples within a cell state of
       the embedding, and what goes with a cell's depth: the number of genes detected in it, and
       covariates that the caller names (`bioren.states`).
    4. Cells are drawn towards their states as far as their places are noise (`bioren.denoising`).

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
    diagnosis_
        Signs of over-correction by sample, `bioren.diagnosis.Diagnosis`.
    reliability_
        Share of each dimension's variance within states that is not noise, ``(n_latent,)``.
    history_
        Reconstruction error by epoch: columns ``epoch``, ``training``, ``held_out``.

    Examples
    --------
    >>> model = RenormAutoencoder().fit(adata, batch_key="sample")      # doctest: +SKIP
    >>> adata.obsm["X_bioren"] = model.embed(adata)                     # doctest: +SKIP
    >>> adata.layers["bioren"] = model.correct(adata)                   # doctest: +SKIP
    """

    alignment_: Alignment
    diagnosis_: Diagnosis
    reliability_: np.ndarray
    samples_: list[str]
    genes_: pd.Index
    variable_genes_: pd.Index
    history_: pd.DataFrame

    def __init__(
        self,
        n_latent: int = 20,
        n_hidden: int = 256,
        *,
        strength: float = 1.0,
        max_removed: tuple[float, float] | None = MAX_REMOVED,
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
        batch_key: BatchKey,
        *,
        layer: str | None = None,
        reference: str | Sequence[str] | None = None,
        labels_key: str | None = None,
        covariates: Sequence[str] | None = None,
        controls_key: str | None = None,
        condition_key: str | None = None,
    ) -> Self:
        """Find bridges, network and states; `adata` is not changed.

        Parameters
        ----------
        adata
            Log-expression; ``var["highly_variable"]``, where present, marks the genes that the
            network sees.  Any gene gets a bridge.
        batch_key
            Column of ``adata.obs`` that says which sample a cell is from, or several whose
            combinations are the samples.
        layer
            Layer to read; None: ``adata.X``.
        reference
            Sample, or samples, to whose scale all are brought; None: the pooled population, in
            which each sample weighs the same.
        labels_key
            Column of known cell types; missing for some cells, if need be, but each type needs
            some.  Samples are then compared within them: no state reaches over two.
        covariates
            Columns of numbers that are regressed out of the embedding within states.
        controls_key
            Boolean column: the sample's effect is taken from these cells alone, and removed
            from all.
        condition_key
            Column of what is to be studied, such as a treatment: a warning says if it cannot be
            told from the samples.  It has no influence on the result.

        Raises
        ------
        KeyError
            There is no such column or layer.
        ValueError
            The values look like counts or are not finite; the labels cannot be samples; a
            setting is out of range; a covariate has no finite numbers; a sample has no control.
        """
        check_strength(self.strength)
        if self.n_latent < FEWEST_DIMENSIONS:
            msg = f"n_latent must be {FEWEST_DIMENSIONS} or more, received {self.n_latent}."
            raise ValueError(msg)
        batches = read_batches(adata, batch_key)
        self.batch_key_, self.layer_ = batch_key, layer
        self.labels_key_, self.covariates_ = labels_key, list_of(covariates)
        cells = read_cells(adata, layer)
        check_log_scale(cells.x)
        in_reference = batches.select(reference)
        rng = np.random.default_rng(self.rng)
        variable = cells.variable_matrix()
        check_varies(variable)
        _, self.labels_ = read_shared_labels(adata, labels_key, batches)
        facts = self._facts(adata, batches, variable)
        controls = None if controls_key is None else read_controls(adata, controls_key, batches)
        check_condition(adata, condition_key, batches)

        self.signed_ = has_negative(cells.x)
        self.samples_ = batches.names
        self.genes_ = cells.genes
        self.variable_genes_ = cells.genes[cells.variable]
        self.alignment_ = self._align(cells, variable, facts, controls, in_reference, rng)
        warn_apart(batches.names, self.alignment_)

        self.network_, history = self._fit_network(variable, cells, facts.codes, in_reference, rng)
        self.history_ = pd.DataFrame(history, columns=list(Epoch._fields))

        z = embed(self.network_, variable, facts.codes)
        compared = slice(None) if controls is None else controls
        states = ConditionalBridge.fit(
            z[compared],
            facts.of(compared),
            len(batches.names),
            rng=rng,
            in_reference=in_reference,
            n_states=self._n_states(len(z)),
            strength=self.strength,
        )
        self.states_ = states.limited(self._within_limits)
        full, share, _ = self.states_.place(z, facts)
        self.reliability_ = reliability(
            variable,
            facts.codes,
            share,
            self._of_variable_genes(self.alignment_.full),
            self._center(),
            z.shape[1],
            rng,
        )
        self.denoiser_ = Denoiser.fit(full, share, self.reliability_)
        self.expression_ = self._bridge_expression(cells.x, facts, share, controls, in_reference)
        self.diagnosis_ = self._diagnose(variable, facts.codes, share)
        warn_structure(batches.names, self.diagnosis_.structure_removed, np.bincount(facts.codes))
        return self

    def embed(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> np.ndarray:
        """Return each cell's place in the reference population, shape ``(cells, n_latent)``.

        It depends on the cell and its sample alone, not on the other cells given.

        Parameters
        ----------
        adata
            Cells of samples that the model was fitted on; the network's genes in any order.
            Covariates as in `fit`; labels count where the column is there.
        batch_key
            Column that names the samples; None: the one of `fit`.

        Raises
        ------
        RuntimeError
            The model is not fitted.
        KeyError, ValueError
            Genes are missing, samples unknown, values not finite.
        """
        cells, codes, full, share, kept = self._place(adata, batch_key)
        place: np.ndarray = self.denoiser_.apply(full, share) + kept
        place += self._kept_by_bridges(cells.variable_matrix(), codes)
        return place

    def correct(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> np.ndarray:
        """Return expression carried to the reference's scale, shape ``(cells, genes)``.

        Each cell passes the standardised bridge of its sample, and what then differs between
        samples within its states is removed as well: it keeps its own noise and the log scale.

        Parameters
        ----------
        adata, batch_key
            As for `embed`; all genes of `adata` must be known, in any order.
        """
        cells, codes, _, share, _ = self._place(adata, batch_key)
        bridge = self.expression_.of_genes(self._known(adata.var_names))
        return bridge.apply(cells.x, codes, share)

    def decode(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> pd.DataFrame:
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
        _, _, full, share, _ = self._place(adata, batch_key)
        values = decode(self.network_, self.denoiser_.apply(full, share))
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
        bridges = self.alignment_.full[:, cells.variable]

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

    def _align(
        self,
        cells: Cells,
        variable: Block,
        facts: CellFacts,
        controls: np.ndarray | None,
        in_reference: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Alignment:
        x = cells.x
        if controls is not None:
            x, variable, facts = gather_rows(x, controls), variable[controls], facts.of(controls)
        return align(
            x,
            facts,
            int(facts.codes.max()) + 1,
            rng=rng,
            variable=(variable, cells.variable),
            in_reference=in_reference,
            removal=Removal(self.strength, max_removed=self.max_removed),
        )

    def _facts(self, adata: AnnData, batches: Batches, variable: Block) -> CellFacts:
        """Read what is known of the cells; the first covariate is how many genes are detected."""
        detected = np.asarray((variable != 0).sum(axis=1), dtype=np.float64).reshape(-1, 1)
        covariates = np.hstack([np.log1p(detected), read_covariates(adata, self.covariates_)])
        labels = None
        if self.labels_key_ is not None and self.labels_key_ in adata.obs:
            labels, _ = read_labels(adata, self.labels_key_, names=self.labels_)
        return CellFacts(batches.codes, covariates, labels)

    def _bridge_expression(
        self,
        x: Any,
        facts: CellFacts,
        share: np.ndarray,
        controls: np.ndarray | None,
        in_reference: np.ndarray | None,
    ) -> ExpressionBridge:
        codes, effects = facts.codes, self.alignment_
        if controls is not None:
            x, codes, share = gather_rows(x, controls), codes[controls], share[controls]
        spread = effects.reference.std()
        return ExpressionBridge.fit(
            x,
            codes,
            share,
            effects.full,
            kept=effects.bridges,
            in_reference=in_reference,
            strength=self.strength,
            most=self._d_max * np.where(spread > 0, spread, 1.0),
        )

    def _diagnose(self, x: Block, codes: np.ndarray, share: np.ndarray) -> Diagnosis:
        """Compare the cells' places along the components before and after all bridges."""
        projection = Projection(self._center(), self._loadings())
        bridges = self._of_variable_genes(self.alignment_.bridges)
        nothing = AffineBridge(np.ones_like(bridges.scale), np.zeros_like(bridges.shift))
        before = projection.apply(x, codes, nothing)
        after = projection.apply(x, codes, bridges) - self.states_.removed(share, codes)
        n_samples = len(self.samples_)
        return Diagnosis(
            overlap_before=self.alignment_.overlap_before,
            overlap=self.alignment_.overlap,
            alone=alone(sample_sums(share, codes, n_samples)),
            structure_removed=structure_removed(before, after, codes, n_samples),
        )

    def _n_states(self, n_cells: int) -> int:
        """Return the number of states, fewer where samples times genes are many."""
        entries = len(self.samples_) * len(self.genes_)
        return max(1, min(default_n_states(n_cells), SHIFT_ENTRIES // entries))

    def _center(self) -> np.ndarray:
        center: np.ndarray = self._of_variable_genes(self.alignment_.reference.mean)
        return center

    def _of_variable_genes(self, table: Any) -> Any:
        """Return the variable genes' columns of an array or bridge whose last axis is genes."""
        columns = self.genes_.get_indexer(self.variable_genes_)
        return table[:, columns] if isinstance(table, AffineBridge) else table[..., columns]

    def _loadings(self) -> np.ndarray:
        loadings: np.ndarray = self.network_.components.detach().cpu().numpy()
        return loadings

    @property
    def _d_max(self) -> float:
        """Return how many standard deviations a gene may be moved by."""
        return math.inf if self.max_removed is None else self.max_removed[1]

    def _within_limits(self, shifts: np.ndarray) -> np.ndarray:
        """Cut shifts of the embedding such that no gene moves by more than `max_removed`.

        What the bridges of the genes remove counts towards the limit, which holds for the genes
        as the components rebuild them.
        """
        if math.isinf(self._d_max):
            return shifts
        effects = self.alignment_
        spread = effects.reference.std()
        removed = self._of_variable_genes(effects.d * effects.removed * spread)
        most = self._d_max * self._of_variable_genes(spread)
        loadings = self._loadings()
        cut = np.empty_like(shifts)
        for sample, before in enumerate(removed):
            whole = before + shifts[sample] @ loadings.T  # states x genes
            allowed = (whole.clip(-most, most) - before) @ loadings
            # What the components make of it may leave the limits again: go only so far.
            move = allowed @ loadings.T
            room = most - np.sign(move) * before
            far = np.divide(room, np.abs(move), out=np.full_like(move, np.inf), where=move != 0)
            cut[sample] = allowed * far.min(axis=1, keepdims=True).clip(0, 1)
        return cut

    def _kept_by_bridges(self, x: Block, codes: np.ndarray) -> np.ndarray:
        """Return what strength and limits leave of the genes' effects, in the embedding."""
        bridges, full = map(
            self._of_variable_genes, (self.alignment_.bridges, self.alignment_.full)
        )
        kept = AffineBridge(bridges.scale - full.scale, bridges.shift - full.shift)
        if not (kept.scale.any() or kept.shift.any()):
            return np.zeros((len(codes), self.network_.components.shape[1]), dtype=np.float32)
        loadings = self._loadings()
        return Projection(np.zeros(len(loadings)), loadings).apply(x, codes, kept)

    def _fitted(self) -> Self:
        if not hasattr(self, "states_"):
            raise RuntimeError("The model is not fitted yet: call fit(adata, batch_key=...) first.")
        return self

    def _place(
        self, adata: AnnData, batch_key: BatchKey | None
    ) -> tuple[Cells, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the cells, their samples, and what `ConditionalBridge.place` makes of them."""
        cells, batches = self._read(adata, batch_key)
        x = cells.variable_matrix()
        facts = self._facts(adata, batches, x)
        placed = self.states_.place(embed(self.network_, x, facts.codes), facts)
        return cells, facts.codes, *placed

    def _read(self, adata: AnnData, batch_key: BatchKey | None) -> tuple[Cells, Batches]:
        self._fitted()
        batches = read_batches(adata, batch_key or self.batch_key_, names=self.samples_)
        cells = read_cells(adata, self.layer_, genes=self.variable_genes_)
        if not self.signed_:  # else a single cell without negative values might be refused
            check_log_scale(cells.x)
        return cells, batches

    def _known(self, genes: pd.Index) -> np.ndarray:
        columns: np.ndarray = self.genes_.get_indexer(genes)
        if (columns < 0).any():
            msg = (
                f"{int((columns < 0).sum())} of {len(genes)} genes were not there when the model "
                f"was fitted, such as {genes[columns < 0][0]!r}. Leave them out."
            )
            raise KeyError(msg)
        return columns
