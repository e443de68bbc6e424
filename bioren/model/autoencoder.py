"""The model: fit it once, then embed and correct its samples, save it, map others onto it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from bioren.adata.genes import match_genes
from bioren.adata.given import check_adata
from bioren.adata.matrix import check_log_scale, check_same_sum, read_cells, read_matrix
from bioren.adata.missing import missing_message
from bioren.adata.obs import one_sample, read_batches, read_covariates, read_labels
from bioren.adata.reference_argument import Reference
from bioren.adata.standardized import warn_standardized
from bioren.adata.study import Design, read_design, read_study
from bioren.arrays.groups import BatchKey
from bioren.arrays.shapes import AnyCellsByGenes, CellsByDims, PerDim
from bioren.effects.alignment import MAX_REMOVED, Alignment
from bioren.effects.diagnosis import Diagnosis
from bioren.effects.gene_programs import warn_programs
from bioren.effects.states import CellFacts, ConditionalBridge
from bioren.effects.unmeasured import warn_unmeasured
from bioren.model import file as model_file
from bioren.model.fitted import Fitted, Placement, Settings
from bioren.model.fitting import check_settings, fit
from bioren.network.bridge_network import BridgeNetwork
from bioren.network.training import NO_TRAINING, TrainingOptions
from bioren.reference.confidence import warn_low_scores
from bioren.reference.labels import LabelTransfer
from bioren.reference.mapper import Mapped, Mapper
from bioren.reference.population import MIN_CELLS, Population

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["RenormAutoencoder", "load"]


class RenormAutoencoder:
    """Autoencoder that maps expression of several samples to their reference population.

    1. The standardized bridge removes each sample's shift and scale per gene, found by
       comparing samples within cell states (`bioren.effects.alignment`).
    2. An autoencoder of bridged expression, which starts as its principal components, embeds
       the cells; its decoder knows the samples by learned bridges
       (`bioren.network.bridge_network`).
    3. The conditional bridge removes what still differs between samples within a cell state of
       the embedding, and what goes with a cell's depth: the number of genes detected in it, and
       covariates that the caller names (`bioren.effects.states`).
    4. Cells are shrunk towards their states as far as their coordinates are noise
       (`bioren.effects.denoising`).

    Parameters
    ----------
    n_latent
        Dimensions of the embedding.
    n_hidden
        Width of the network's hidden layers.
    strength
        Share of each batch effect that is removed, in [0, 1].
    max_removed
        ``(r_max, d_max)``: no gene of a sample is rescaled by more than ``r_max``, and none has its
        mean shifted by more than ``d_max`` standard deviations, apart from what the
        rescaling does; None: no such limit.
    rng
        Seed; the same seed gives the same result on the same machine.
    training
        Whether and how to train a network that starts from principal components and bends them; see
        `bioren.network.training.TrainingOptions`.  None: the components stay, which on public sets
        were as good and take a third of the time.

    Attributes
    ----------
    fitted_
        All that the fit knows, `bioren.model.fitted.Fitted`; the other names that end in ``_`` are
        parts of it.
    path
        The file that the model was read from; None: it was fitted here.

    Examples
    --------
    >>> model = RenormAutoencoder().fit(adata, batch_key="sample")      # doctest: +SKIP
    >>> adata.obsm["X_bioren"] = model.embed(adata)                     # doctest: +SKIP
    >>> adata.layers["bioren"] = model.correct(adata)                   # doctest: +SKIP
    >>> model.save("blood.bioren")                                      # doctest: +SKIP
    >>> bioren.tl.map_query(query, "blood.bioren")                      # doctest: +SKIP
    """

    fitted_: Fitted
    path: Path | None = None

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
        self.training = training or NO_TRAINING

    def fit(
        self,
        adata: AnnData,
        batch_key: BatchKey,
        *,
        layer: str | None = None,
        reference: Reference = None,
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
            combinations are the samples.  A single sample will do, as a reference for others.
        layer
            Layer to read; None: ``adata.X``.
        reference
            Sample, or samples, to whose scale all are brought; a `Population`, or the path of
            its file; None: the pooled population, in which each sample weighs the same.
        labels_key
            Column of known cell types; missing for some cells, if need be, but each type needs
            some.  Samples are then compared within them: no state reaches over two.
        covariates
            Columns of numbers that are regressed out of the embedding within states.
        controls_key
            Boolean column: the sample's effect is taken from these cells alone, and removed
            from all.
        condition_key
            Column of what is to be studied, such as a treatment: a warning says if it is
            confounded with the samples.  It has no influence on the result.

        Raises
        ------
        KeyError
            There is no such column or layer.
        ValueError
            The values look like counts or are not finite; the labels cannot be samples; a
            setting is out of range; a covariate has no finite numbers; a sample has no control.
        """
        check_settings(self.n_latent, self.strength, max_removed=self.max_removed)
        design = read_design(
            adata,
            batch_key,
            reference=reference,
            layer=layer,
            labels_key=labels_key,
            covariates=covariates,
            controls_key=controls_key,
            condition_key=condition_key,
            single=True,
        )
        self.fit_design(adata, design)
        return self

    def fit_design(self, adata: AnnData, design: Design, *, scored: bool = True) -> Placement:
        """Read expression, fit, and return the cells as the network has placed them.

        A model that was fitted before stays whole if this fails.

        Parameters
        ----------
        adata
            As for `fit`.
        design
            What else was read of it.
        scored
            See `bioren.model.fitting.fit`.
        """
        rng = np.random.default_rng(self.rng)
        study = read_study(adata, design, rng)
        self.fitted_, placement = fit(study, self.settings, rng, scored=scored)
        return placement

    @property
    def settings(self) -> Settings:
        """Return what the model is fitted with.

        Raises
        ------
        TypeError, ValueError
            A setting is out of range or of another kind.
        """
        check_settings(self.n_latent, self.strength, max_removed=self.max_removed)
        return Settings(
            self.n_latent, self.n_hidden, self.strength, self.max_removed, self.training
        )

    @property
    def alignment_(self) -> Alignment:
        """Return effects and bridges; axes samples and genes."""
        return self._fitted().samples().alignment

    @property
    def diagnosis_(self) -> Diagnosis:
        """Return signs of over-correction by sample."""
        return self._fitted().samples().diagnosis

    @property
    def history_(self) -> pd.DataFrame:
        """Return the reconstruction error by epoch."""
        return self._fitted().samples().history

    @property
    def samples_(self) -> list[str]:
        """Return the names of the samples that the model was fitted on."""
        own = self._fitted().own
        return [] if own is None else own.names

    @property
    def genes_(self) -> pd.Index:
        """Return the names of the genes."""
        return self._fitted().genes

    @property
    def variable_genes_(self) -> pd.Index:
        """Return the names of the genes that the network sees."""
        return self._fitted().variable_genes

    @property
    def network_(self) -> BridgeNetwork:
        """Return the network."""
        return self._fitted().network

    @property
    def states_(self) -> ConditionalBridge:
        """Return the states of the embedding, and the bridge per state."""
        return self._fitted().states

    @property
    def reliability_(self) -> PerDim:
        """Return the share of each dimension's variance within states that is not noise."""
        return self._fitted().denoiser.reliability

    @property
    def mapper_(self) -> Mapper:
        """Return what maps other samples onto these."""
        return self._fitted().mapper

    @property
    def population_(self) -> Population:
        """Return the reference population: moments by sample and state, no cells."""
        return self._fitted().population

    def learn_labels(self, adata: AnnData, labels_key: str) -> Self:
        """Learn labels of the reference's cells, for `map` to carry over; nothing else changes.

        Parameters
        ----------
        adata
            Labeled cells of samples that the model was fitted on; some may lack a label.
        labels_key
            Column of ``adata.obs``.  Several may be learned, one after the other.

        Raises
        ------
        KeyError, ValueError
            There is no such column; no cell has a label; see `embed`.
        """
        codes, names = read_labels(adata, labels_key)
        transfer = LabelTransfer.fit(self.embed(adata), codes, names)
        labels = {**self.mapper_.labels, labels_key: transfer}
        self.fitted_ = self.fitted_.with_mapper(replace(self.mapper_, labels=labels))
        return self

    def map(
        self,
        adata: AnnData,
        *,
        batch_key: BatchKey | None = None,
        layer: str | None = None,
        genes_key: str | None = None,
    ) -> Mapped:
        """Map cells of other samples onto the reference; nothing is trained or changed.

        Each sample is mapped by itself: its result does not depend on the others given.

        Parameters
        ----------
        adata
            Log-expression, normalized as the reference was.  Its genes may be in any order;
            genes that it lacks are taken to be at the reference's mean, others that it has are
            left alone.  Covariates as in `fit`.
        batch_key
            Column, or columns, that name the samples; None: all cells are one sample.
        layer
            Layer to read; None: ``adata.X``.
        genes_key
            Column of ``adata.var`` that names genes as the reference does; None: ``var_names``.

        Raises
        ------
        RuntimeError
            The model is not fitted.
        KeyError
            There is no such column or layer.
        ValueError
            Query and reference have too few genes in common; the values look like counts or are
            not finite; the labels cannot be samples.

        Warns
        -----
        UserWarning
            Samples fit the reference badly, by their mean mapping score; a known gene program has
            the largest effects; the query is normalized otherwise.
        """
        fitted = self._fitted()
        check_adata(adata)
        population = fitted.population
        genes = match_genes(adata, population.genes, population.variable, genes_key=genes_key)
        batches = (
            one_sample(adata) if batch_key is None else read_batches(adata, batch_key, single=True)
        )
        x, values = read_matrix(adata, layer, allow_missing=True)
        if values.missing:
            raise ValueError(missing_message(x, batches))
        check_log_scale(values)
        check_same_sum(x, population.target_sum)
        warn_standardized(x)
        covariates = read_covariates(adata, fitted.columns.covariates)
        mapped = fitted.mapper.map(
            x, genes, batches, covariates=covariates, rng=np.random.default_rng(0)
        )
        warn_low_scores(batches.names, mapped.samples["mapping_score"].to_numpy())
        shared = list(population.genes[genes.reference])
        warn_unmeasured(batches.names, shared, mapped.alignment.unmeasured)
        warn_programs(batches.names, shared, mapped.alignment)
        return mapped

    def add(
        self,
        mapped: Mapped,
        names: Sequence[str] | None = None,
        *,
        in_reference: bool | None = None,
    ) -> Self:
        """Add mapped samples to the reference population; no cell and no network is needed.

        What is mapped from now on is compared with the larger population.  The embedding, its
        states and the samples that the model can `embed` stay as they are.

        Parameters
        ----------
        mapped
            What `map` returned.
        names
            Names for its samples; None: as they were in the query.
        in_reference
            Whether they become part of what others are compared with; None: if all samples are,
            and not if the model was fitted to the scale of some.

        Raises
        ------
        ValueError
            The population has a sample of that name already, or the query was mapped onto another
            reference.
        """
        fitted = self._fitted()
        mapper = fitted.mapper.add(
            mapped, None if names is None else list(names), in_reference=in_reference
        )
        self.fitted_ = fitted.with_mapper(mapper)
        return self

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a file, for `bioren.load`; to share it, see `publish`.

        Parameters
        ----------
        path
            File to write, such as ``"blood.bioren"``: safetensors and JSON.  It is whole or absent.
        overwrite
            Whether a file that is there may be replaced.

        Raises
        ------
        RuntimeError
            The model is not fitted.
        FileExistsError, OSError
            The file exists, or cannot be written.
        """
        model_file.save(self._fitted(), path, rng=self.rng, overwrite=overwrite)

    def publish(
        self, path: str | Path, *, min_cells: int = MIN_CELLS, overwrite: bool = False
    ) -> None:
        """Write what others need to map their samples, and nothing that is told by few cells.

        The samples of the reference are pooled; their bridges, shifts and moments are left out.
        What `bioren.load` returns can `map`, but not `embed` or `correct` the reference's samples.

        Parameters
        ----------
        path, overwrite
            As for `save`.
        min_cells
            States, and samples within them, of fewer cells are left out; see
            `Population.reduced`.

        Raises
        ------
        RuntimeError
            The model is not fitted.
        ValueError
            `min_cells` is below 3, or nothing is left.
        FileExistsError, OSError
            The file exists, or cannot be written.
        """
        model_file.publish(self._fitted(), path, min_cells=min_cells, overwrite=overwrite)

    def embed(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> CellsByDims:
        """Return each cell's coordinates in the reference population, ``(cells, n_latent)``.

        They depend on the cell and its sample alone, not on the other cells given, and are shrunk
        towards its states as far as they are noise (`bioren.effects.denoising`).

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
        return self._fitted().embedding(self._place(adata, batch_key))

    def correct(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> AnyCellsByGenes:
        """Return expression carried to the reference's scale, shape ``(cells, genes)``.

        Of a backed or lazy `adata` it is a dask array, computed chunk by chunk when it is read.

        Each cell passes the standardized bridge of its sample, and what then differs between
        samples within its states is removed as well: it keeps its own noise and the log scale.

        Parameters
        ----------
        adata, batch_key
            As for `embed`; all genes of `adata` must be known, in any order.
        """
        return self._fitted().corrected(self._place(adata, batch_key))

    def decode(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> pd.DataFrame:
        """Return denoised expression as if measured in the reference population.

        Parameters
        ----------
        adata, batch_key
            As for `embed`.

        Returns
        -------
        pandas.DataFrame
            Cells x variable genes: what the decoder makes of the cells' expected true coordinates.
        """
        values = self._fitted().decoded(self._place(adata, batch_key))
        return pd.DataFrame(values, index=adata.obs_names, columns=self.variable_genes_)

    def __repr__(self) -> str:
        """Return the settings, and what the model was fitted on."""
        state = "not fitted"
        if hasattr(self, "fitted_"):
            published = self.population_.published
            n_samples = len(self.samples_) if published is None else len(published)
            how = "fitted on" if published is None else "published,"
            state = f"{how} {n_samples} samples, {len(self.genes_)} genes"
        return f"RenormAutoencoder(n_latent={self.n_latent}, n_hidden={self.n_hidden}): {state}"

    def _fitted(self) -> Fitted:
        if not hasattr(self, "fitted_"):
            raise RuntimeError("The model is not fitted yet: call fit(adata, batch_key=...) first.")
        return self.fitted_

    def _place(self, adata: AnnData, batch_key: BatchKey | None) -> Placement:
        """Read cells of the model's own samples, and place them in the reference population."""
        fitted = self._fitted()
        hint = "The model reads the cells' expression and samples, whatever it returns of them."
        check_adata(adata, hint="" if isinstance(adata, str | Path) else hint)
        names, columns = fitted.samples().names, fitted.columns
        batches = read_batches(adata, batch_key or columns.batch_key, names=names)
        cells = read_cells(adata, columns.layer, genes=fitted.variable_genes)
        if not fitted.signed:  # else a single cell without negative values might be refused
            check_log_scale(cells.values)
        labels = None
        if columns.labels_key is not None and columns.labels_key in adata.obs:
            labels, _ = read_labels(adata, columns.labels_key, names=fitted.labels)
        covariates = read_covariates(adata, columns.covariates)
        return fitted.place(cells, CellFacts(batches.codes, covariates, labels))


def load(path: str | Path) -> RenormAutoencoder:
    """Read a model that `RenormAutoencoder.save` or `RenormAutoencoder.publish` wrote.

    Its network is on the CPU: ``model.network_.to("cuda")`` moves it.

    Parameters
    ----------
    path
        File to read.

    Raises
    ------
    TypeError
        `path` is none.
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        It is damaged, was changed after it was written, is of a newer format, or no model.  No
        part of it is used then.
    """
    given: object = path
    if not isinstance(given, str | Path):
        msg = f"Expected a model or the path of its file, received {type(given).__name__}."
        raise TypeError(msg)
    fitted, rng = model_file.load(path)
    settings = fitted.settings
    model = RenormAutoencoder(
        settings.n_latent,
        settings.n_hidden,
        strength=settings.strength,
        max_removed=settings.max_removed,
        # A generator is not kept.
        rng=np.random.default_rng() if rng is None else rng,
    )
    model.fitted_ = fitted
    model.path = Path(path)
    return model
