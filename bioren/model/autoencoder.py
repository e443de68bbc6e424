"""The model: fit it once, then embed and correct its samples, save it, map others onto it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from bioren._version import __version__
from bioren.adata.genes import match_genes
from bioren.adata.matrix import (
    FEWEST_DIMENSIONS,
    Cells,
    check_log_scale,
    check_same_sum,
    check_strength,
    check_varies,
    has_negative,
    read_cells,
    read_matrix,
    target_sum,
)
from bioren.adata.obs import (
    check_condition,
    list_of,
    one_sample,
    read_batches,
    read_controls,
    read_covariates,
    read_labels,
    read_shared_labels,
)
from bioren.adata.reference import Reference, read_reference
from bioren.arrays.blocks import Block, gather_rows
from bioren.arrays.components import Projection
from bioren.arrays.groups import Batches, BatchKey, sample_sums
from bioren.bridge import AffineBridge
from bioren.effects.alignment import MAX_REMOVED, Alignment, Removal, align, warn_isolated
from bioren.effects.denoising import Denoiser, reliability
from bioren.effects.diagnosis import Diagnosis, alone, apart, structure_removed, warn_structure
from bioren.effects.limits import embedding_of_kept, expression_bridge, within_limits
from bioren.effects.state_profile import moments_by_state
from bioren.effects.states import CellFacts, ConditionalBridge, Placed, default_n_states, depth
from bioren.model import file as model_file
from bioren.network.training import Epoch, TrainingOptions, decode, embed, fit_network
from bioren.reference.labels import LabelTransfer
from bioren.reference.mapper import Mapped, Mapper
from bioren.reference.population import LEAST_CELLS, Population

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["RenormAutoencoder", "load"]

#: Entries of a table samples x states x genes, of which a model holds three: 256 MiB each.
SHIFT_ENTRIES = 2**26


class RenormAutoencoder:
    """Autoencoder that maps expression of several samples to their reference population.

    1. The standardised bridge removes each sample's shift and scale per gene, found by
       comparing samples within cell states (`bioren.effects.alignment`).
    2. An autoencoder of bridged expression, which starts as its principal components, embeds
       the cells; its decoder knows the samples by learned bridges (`bioren.network.autoencoder`).
    3. The conditional bridge removes what still differs between samples within a cell state of
       the embedding, and what goes with a cell's depth: the number of genes detected in it, and
       covariates that the caller names (`bioren.effects.states`).
    4. Cells are drawn towards their states as far as their places are noise, and for the embedding
       a little further (`bioren.effects.denoising`).

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
        See `bioren.network.training.TrainingOptions`.

    Attributes
    ----------
    alignment_
        Effects and bridges, `bioren.effects.alignment.Alignment`; axes samples and genes.
    samples_, genes_
        Names along these axes.
    variable_genes_
        Genes that the network sees.
    diagnosis_
        Signs of over-correction by sample, `bioren.effects.diagnosis.Diagnosis`.
    reliability_
        Share of each dimension's variance within states that is not noise, ``(n_latent,)``.
    mapper_
        What maps other samples onto these, `bioren.reference.mapper.Mapper`; holds the reference
        population, see `population_`.
    history_
        Reconstruction error by epoch: columns ``epoch``, ``training``, ``held_out``.

    Examples
    --------
    >>> model = RenormAutoencoder().fit(adata, batch_key="sample")      # doctest: +SKIP
    >>> adata.obsm["X_bioren"] = model.embed(adata)                     # doctest: +SKIP
    >>> adata.layers["bioren"] = model.correct(adata)                   # doctest: +SKIP
    >>> model.save("blood.bioren")                                      # doctest: +SKIP
    >>> bioren.tl.map_query(query, "blood.bioren")                      # doctest: +SKIP
    """

    alignment_: Alignment
    diagnosis_: Diagnosis
    reliability_: np.ndarray
    samples_: list[str]
    genes_: pd.Index
    variable_genes_: pd.Index
    history_: pd.DataFrame
    mapper_: Mapper

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
        # Into a model of its own, so that one that was fitted before stays whole if this fails.
        fresh = self._unfitted()
        fresh._fit(
            adata,
            batch_key,
            layer,
            reference,
            labels_key,
            covariates,
            controls_key,
            condition_key,
        )
        self.__dict__.update(fresh.__dict__)
        return self

    @property
    def population_(self) -> Population:
        """Return the reference population: moments by sample and state, no cells."""
        population: Population = self._fitted().mapper_.population
        return population

    def learn_labels(self, adata: AnnData, labels_key: str) -> Self:
        """Learn labels of the reference's cells, for `map` to carry over; nothing else changes.

        Parameters
        ----------
        adata
            Labelled cells of samples that the model was fitted on; some may lack a label.
        labels_key
            Column of ``adata.obs``.  Several may be learned, one after the other.

        Raises
        ------
        KeyError, ValueError
            There is no such column; no cell has a label; see `embed`.
        """
        codes, names = read_labels(adata, labels_key)
        transfer = LabelTransfer.fit(self.embed(adata), codes, names)
        self.mapper_ = replace(self.mapper_, labels={**self.mapper_.labels, labels_key: transfer})
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
            Log-expression, normalised as the reference was.  Its genes may be in any order;
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
        """
        self._fitted()
        population = self.population_
        genes = match_genes(adata, population.genes, population.variable, genes_key)
        batches = (
            one_sample(adata) if batch_key is None else read_batches(adata, batch_key, single=True)
        )
        x = read_matrix(adata, layer)
        check_log_scale(x)
        check_same_sum(x, population.target_sum)
        covariates = read_covariates(adata, self.covariates_)
        return self.mapper_.map(x, genes, batches, covariates, np.random.default_rng(0))

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
        self._fitted()
        self.mapper_ = self.mapper_.add(
            mapped, None if names is None else list(names), in_reference=in_reference
        )
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
        model_file.save(self._fitted(), path, overwrite=overwrite)

    def publish(
        self, path: str | Path, *, min_cells: int = LEAST_CELLS, overwrite: bool = False
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

    def embed(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> np.ndarray:
        """Return each cell's place in the reference population, shape ``(cells, n_latent)``.

        It depends on the cell and its sample alone, not on the other cells given.  Noise within
        states is drawn in, and distances there count less (`bioren.effects.denoising`).

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
        cells, codes, placed = self._place(adata, batch_key)
        place: np.ndarray = (
            self.denoiser_.embedding(placed.full, placed.share, placed.apart) + placed.kept
        )
        place += embedding_of_kept(
            cells.variable_matrix(), codes, self._of_variable, self._loadings()
        )
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
        cells, codes, placed = self._place(adata, batch_key)
        bridge = self.expression_.of_genes(self._known(adata.var_names))
        return bridge.apply(cells.x, codes, placed.share)

    def decode(self, adata: AnnData, *, batch_key: BatchKey | None = None) -> pd.DataFrame:
        """Return denoised expression as if measured in the reference population.

        Parameters
        ----------
        adata, batch_key
            As for `embed`.

        Returns
        -------
        pandas.DataFrame
            Cells x variable genes: what the decoder makes of the cells' expected true places.
        """
        _, _, placed = self._place(adata, batch_key)
        z = self.denoiser_.true_places(placed.full, placed.share, placed.apart)
        values = decode(self.network_, z)
        return pd.DataFrame(values, index=adata.obs_names, columns=self.variable_genes_)

    def __repr__(self) -> str:
        """Return the settings, and what the model was fitted on."""
        state = "not fitted"
        if hasattr(self, "mapper_"):
            published = self.population_.published
            n_samples = len(self.samples_) if published is None else len(published)
            how = "fitted on" if published is None else "published,"
            state = f"{how} {n_samples} samples, {len(self.genes_)} genes"
        return f"RenormAutoencoder(n_latent={self.n_latent}, n_hidden={self.n_hidden}): {state}"

    def _unfitted(self) -> Self:
        """Return a model of the same settings."""
        return type(self)(
            self.n_latent,
            self.n_hidden,
            strength=self.strength,
            max_removed=self.max_removed,
            rng=self.rng,
            training=self.training,
        )

    def _fit(
        self,
        adata: AnnData,
        batch_key: BatchKey,
        layer: str | None,
        reference: Reference,
        labels_key: str | None,
        covariates: Sequence[str] | None,
        controls_key: str | None,
        condition_key: str | None,
    ) -> None:
        check_strength(self.strength)
        if self.n_latent < FEWEST_DIMENSIONS:
            msg = f"n_latent must be {FEWEST_DIMENSIONS} or more, received {self.n_latent}."
            raise ValueError(msg)
        batches = read_batches(adata, batch_key, single=True)
        self.batch_key_, self.layer_ = batch_key, layer
        self.labels_key_, self.covariates_ = labels_key, list_of(covariates)
        cells = read_cells(adata, layer)
        check_log_scale(cells.x)
        in_reference, onto = read_reference(reference, batches)
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
        self.alignment_ = self._align(cells, variable, facts, controls, in_reference, onto, rng)
        warn_isolated(batches.names, self.alignment_)

        of_variable = self._of_variable
        self.network_, history = fit_network(
            variable,
            facts.codes,
            of_variable.samples,
            of_variable.reference,
            sizes=(self.n_latent, self.n_hidden),
            in_reference=in_reference,
            options=self.training,
            rng=rng,
        )
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
        loadings = self._loadings()
        self.states_ = states.limited(
            lambda shifts: within_limits(shifts, of_variable, loadings, self._removal.d_max)
        )
        full, share, _, away = self.states_.place(z, facts)
        self.reliability_ = reliability(
            variable,
            facts.codes,
            share,
            of_variable.full,
            of_variable.reference.mean,
            z.shape[1],
            rng,
        )
        self.denoiser_ = Denoiser.fit(full, share, away, self.reliability_)
        population = self._population(cells, facts.codes, share, in_reference)
        by_state = population.by_state
        if controls is not None:
            some = gather_rows(cells.x, controls)
            by_state = moments_by_state(
                some, facts.codes[controls], len(batches.names), share[controls]
            )
        self.expression_ = expression_bridge(
            by_state,
            self.alignment_,
            self._removal,
            usual=self.states_.usual,
            in_reference=in_reference,
        )
        self.diagnosis_ = self._diagnose(variable, facts.codes, share)
        warn_structure(batches.names, self.diagnosis_.structure_removed, np.bincount(facts.codes))
        self.mapper_ = Mapper.fit(
            population,
            self.network_,
            self.states_,
            self.denoiser_,
            self._removal,
            cells=(variable, facts, share, full, full - away),
            rng=rng,
        )

    def _align(
        self,
        cells: Cells,
        variable: Block,
        facts: CellFacts,
        controls: np.ndarray | None,
        in_reference: np.ndarray | None,
        onto: Population | None,
        rng: np.random.Generator,
    ) -> Alignment:
        x = cells.x
        if controls is not None:
            x, variable, facts = gather_rows(x, controls), variable[controls], facts.of(controls)
        n_samples = int(facts.codes.max()) + 1
        if onto is not None:
            columns = onto.columns_of(cells.genes)
            return onto.align(x, facts.codes, n_samples, columns, self._removal)
        return align(
            x,
            facts,
            n_samples,
            rng=rng,
            variable=(variable, cells.variable),
            in_reference=in_reference,
            removal=self._removal,
        )

    def _facts(self, adata: AnnData, batches: Batches, variable: Block) -> CellFacts:
        """Read what is known of the cells; the first covariate is how many genes are detected."""
        covariates = np.hstack([depth(variable), read_covariates(adata, self.covariates_)])
        labels = None
        if self.labels_key_ is not None and self.labels_key_ in adata.obs:
            labels, _ = read_labels(adata, self.labels_key_, names=self.labels_)
        return CellFacts(batches.codes, covariates, labels)

    def _population(
        self,
        cells: Cells,
        codes: np.ndarray,
        share: np.ndarray,
        in_reference: np.ndarray | None,
    ) -> Population:
        n_samples = len(self.samples_)
        everything = np.ones(n_samples, dtype=bool)
        return Population(
            genes=cells.genes,
            samples=self.samples_,
            by_state=moments_by_state(cells.x, codes, n_samples, share),
            bridges=self.alignment_.full,
            in_reference=everything if in_reference is None else in_reference,
            variable=cells.variable,
            components=self._loadings(),
            recipe={"bioren": __version__, "target_sum": target_sum(cells.x)},
        )

    def _diagnose(self, x: Block, codes: np.ndarray, share: np.ndarray) -> Diagnosis:
        """Compare the cells' places along the components before and after all bridges."""
        of_variable = self._of_variable
        projection = Projection(of_variable.reference.mean, self._loadings())
        bridges = of_variable.bridges
        nothing = AffineBridge.identity(*bridges.scale.shape)
        before = projection.apply(x, codes, nothing)
        after = projection.apply(x, codes, bridges) - self.states_.removed(share, codes)
        n_samples = len(self.samples_)
        count = sample_sums(share, codes, n_samples)
        return Diagnosis(
            overlap_before=self.alignment_.overlap_before,
            overlap=self.alignment_.overlap,
            alone=alone(count),
            apart=apart(count, self.states_.usual),
            structure_removed=structure_removed(before, after, codes, n_samples),
        )

    def _n_states(self, n_cells: int) -> int:
        """Return the number of states, fewer where samples times genes are many."""
        entries = len(self.samples_) * len(self.genes_)
        return max(1, min(default_n_states(n_cells), SHIFT_ENTRIES // entries))

    def _loadings(self) -> np.ndarray:
        loadings: np.ndarray = self.network_.components.detach().cpu().numpy()
        return loadings

    @property
    def _removal(self) -> Removal:
        return Removal(self.strength, max_removed=self.max_removed)

    @property
    def _of_variable(self) -> Alignment:
        """Return the effects on the genes that the network sees."""
        return self.alignment_.of_genes(self.genes_.get_indexer(self.variable_genes_))

    def _fitted(self) -> Self:
        if not hasattr(self, "mapper_"):
            raise RuntimeError("The model is not fitted yet: call fit(adata, batch_key=...) first.")
        return self

    def _place(
        self, adata: AnnData, batch_key: BatchKey | None
    ) -> tuple[Cells, np.ndarray, Placed]:
        """Return the cells, their samples, and their places in the embedding."""
        cells, batches = self._read(adata, batch_key)
        x = cells.variable_matrix()
        facts = self._facts(adata, batches, x)
        return cells, facts.codes, self.states_.place(embed(self.network_, x, facts.codes), facts)

    def _read(self, adata: AnnData, batch_key: BatchKey | None) -> tuple[Cells, Batches]:
        if self._fitted().population_.published is not None:
            msg = (
                "This model was published without its samples: it can map others, "
                "model.map(adata) or bioren.tl.map_query(adata, model)."
            )
            raise RuntimeError(msg)
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


def load(path: str | Path) -> RenormAutoencoder:
    """Read a model that `RenormAutoencoder.save` or `RenormAutoencoder.publish` wrote.

    Its network is on the CPU: ``model.network_.to("cuda")`` moves it.

    Parameters
    ----------
    path
        File to read.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        It is damaged, was changed after it was written, is of a newer format, or no model.  No
        part of it is used then.
    """
    return model_file.load(path, RenormAutoencoder)
