"""``bioren.tl``: integrate samples, map others onto them, look at what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bioren.adata.matrix import (
    check_corrected,
    check_strength,
    check_writable,
    kept,
    matrix_of,
    read_embedding,
    writable,
    write_corrected,
)
from bioren.adata.record import (
    read_diagnosis,
    read_effects,
    write_fit,
    write_mapping,
    write_record,
)
from bioren.adata.reference_argument import Reference, reference_text
from bioren.adata.study import read_design
from bioren.arrays.groups import Batches, BatchKey
from bioren.effects.alignment import MAX_REMOVED
from bioren.files.atomic import check_target
from bioren.model.autoencoder import RenormAutoencoder, load
from bioren.model.fitted import Fitted, Results
from bioren.model.fitting import check_settings, find_states
from bioren.network.training import NO_TRAINING, TrainingOptions

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["batch_effects", "diagnose", "integrate", "integrate_embedding", "map_query"]

#: Where `integrate` and `bioren.pp.bridge` write corrected expression and their record.
KEY = "bioren"


def integrate(
    adata: AnnData,
    batch_key: BatchKey,
    *,
    reference: Reference = None,
    layer: str | None = None,
    use_rep: str | None = None,
    key_added: str = "X_bioren",
    labels_key: str | None = None,
    covariates: Sequence[str] | None = None,
    controls_key: str | None = None,
    condition_key: str | None = None,
    n_latent: int = 20,
    strength: float = 1.0,
    max_removed: tuple[float, float] | None = MAX_REMOVED,
    corrected: Literal["all", "highly_variable"] | None = "all",
    decoded: bool = False,
    rng: int | np.random.Generator = 0,
    training: TrainingOptions | None = None,
    save_model: str | Path | None = None,
    progress: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Remove batch effects: an embedding, corrected expression, and the effects themselves.

    Fits a `bioren.RenormAutoencoder` and writes what it gives for the same cells.  The order of
    cells and genes stays, and so does everything else in `adata`.

    Parameters
    ----------
    adata
        Log-expression (``sc.pp.normalize_total``, ``sc.pp.log1p``).  Genes marked in
        ``var["highly_variable"]``, where present, make the embedding.  A backed or lazy one
        (`anndata.experimental.read_lazy`) is read block by block.
    batch_key
        Column of ``adata.obs`` that says which sample a cell is from, or a list of columns: each
        combination that occurs is then a sample.
    reference
        Sample, or samples, to whose scale all are brought; a `bioren.Population`, or the path of
        its file; None: the pooled population, in which each sample weighs the same.
    layer
        Layer to read; None: ``adata.X``.
    use_rep
        Embedding in ``adata.obsm`` to start from, such as ``"X_pca"``.  Then no gene is read,
        `key_added` is all that is written, and `n_latent` and `training` play no part; see
        `integrate_embedding`.
    key_added
        Name of the embedding in ``adata.obsm``.
    labels_key
        Column of known cell types; missing for some cells, if need be, but each type needs some.
        Samples are then compared within them: no state reaches over two.
    covariates
        Columns of numbers that are regressed out of the embedding within states.  (The number of
        genes detected in a cell always is, but for `use_rep`.)
    controls_key
        Boolean column: a sample's effect is taken from these cells alone, and removed from all.
    condition_key
        Column of what is to be studied, such as a treatment: a warning says if it is confounded
        with the samples.  It has no influence on the result.
    n_latent
        Dimensions of the embedding.
    strength
        Share of each effect that is removed, in [0, 1].
    max_removed
        ``(r_max, d_max)``: no gene of a sample is rescaled by more than ``r_max``, and none has its
        mean shifted by more than ``d_max`` standard deviations, in expression or by way of the
        embedding, apart from what the rescaling does; None: no such limit.
    corrected
        Genes whose corrected expression is written: all, or those that
        ``var["highly_variable"]`` marks; None: of none, and ``layers`` stay as they are.
    decoded
        Whether to write decoded expression too.
    rng
        Seed or generator; the same seed gives the same result on the same machine.
    training
        Whether and how to train a network; None: the embedding is made of principal components of
        bridged expression, corrected by state.  See `bioren.RenormAutoencoder`.
    save_model
        File to write the fitted model to, for `map_query` and `bioren.load`; it is written before
        `adata` is changed, and must not exist.
    progress
        Whether to show a progress bar.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    AnnData or None
        None unless `copy`.  Written are

        ``obsm[key_added]``
            Embedding for ``sc.pp.neighbors(use_rep=...)``, shape ``(cells, n_latent)``,
            float32.
        ``layers["bioren"]``
            Corrected log-expression of all genes, dense, shape ``(cells, genes)``; if `adata` is
            backed or lazy, a dask array that is computed chunk by chunk when it is read or written.
        ``obsm["bioren_corrected"]``
            The same of the genes ``uns["bioren"]["variable_genes"]``, in the place of the layer,
            if `corrected` is ``"highly_variable"``.
        ``uns["bioren"]``
            Effects per sample and gene, see `batch_effects`; signs of over-correction, see
            `diagnose`; the reliability of each dimension; and the training history.
        ``obsm["bioren_decoded"]``
            If `decoded`: denoised expression of the genes ``uns["bioren"]["variable_genes"]``,
            as if measured in the reference population.

    Raises
    ------
    KeyError
        There is no such column, layer or embedding.
    ValueError
        The values look like counts or are not finite; the labels cannot be samples; `strength`
        or a limit is out of range; `layer`, `decoded`, `max_removed`, `save_model` or a population
        is given beside `use_rep`.
    FileExistsError
        `save_model` exists.

    Warns
    -----
    UserWarning
        The condition is confounded with the samples; values look standardized; samples have hardly
        a cell state in common with the others, or never measured many genes; a known gene program
        has the largest effects; the correction changed much of a sample's structure.

    Examples
    --------
    >>> bioren.tl.integrate(adata, "sample")                            # doctest: +SKIP
    >>> sc.pp.neighbors(adata, use_rep="X_bioren")                      # doctest: +SKIP
    """
    if use_rep is not None:
        if layer is not None or decoded or save_model is not None or max_removed != MAX_REMOVED:
            raise ValueError(_of_genes(use_rep))
        return integrate_embedding(
            adata,
            batch_key,
            use_rep,
            reference=reference,
            key_added=key_added,
            labels_key=labels_key,
            covariates=covariates,
            controls_key=controls_key,
            condition_key=condition_key,
            strength=strength,
            rng=rng,
            copy=copy,
        )
    options = (training or NO_TRAINING)._replace(progress=progress)
    model = RenormAutoencoder(
        n_latent, strength=strength, max_removed=max_removed, rng=rng, training=options
    )
    check_settings(n_latent, strength, max_removed=max_removed)
    check_corrected(adata, corrected)
    check_writable(adata, copy=copy)
    design = read_design(
        adata,
        batch_key,
        reference=reference,
        layer=layer,
        labels_key=labels_key,
        covariates=covariates,
        controls_key=controls_key,
        condition_key=condition_key,
        single=save_model is not None,  # one sample can be a reference itself
    )
    if save_model is not None:
        check_target(Path(save_model))
    placement = model.fit_design(adata, design, scored=save_model is not None)
    fitted = model.fitted_
    results = fitted.apply(placement, corrected=corrected, decoded=decoded)
    settings = {
        "layer": layer,
        "reference": reference_text(reference),
        "labels_key": labels_key,
        "covariates": design.columns.covariates or None,
        "controls_key": controls_key,
        "condition_key": condition_key,
        "corrected": corrected,
        "embedding": key_added,
        "n_latent": results.embedding.shape[1],
        "strength": strength,
        "max_removed": max_removed,
        "rng": rng,
    }
    if save_model is not None:
        model.save(save_model)

    adata = writable(adata, copy=copy)
    adata.obsm[key_added] = results.embedding
    _write(adata, results, fitted, batches=design.batches, settings=settings)
    return adata if copy else None


def integrate_embedding(
    adata: AnnData,
    batch_key: BatchKey,
    use_rep: str,
    *,
    reference: Reference = None,
    key_added: str = "X_bioren",
    labels_key: str | None = None,
    covariates: Sequence[str] | None = None,
    controls_key: str | None = None,
    condition_key: str | None = None,
    strength: float = 1.0,
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    """Remove batch effects from an embedding that there is: the bridge per state alone.

    No gene is read, and no network is trained.

    Parameters
    ----------
    adata
        Has the embedding.
    batch_key
        Column, or columns, of ``adata.obs`` that say which sample a cell is from.
    use_rep
        Embedding in ``adata.obsm``, such as ``"X_pca"``, shape ``(cells, dims)``.
    reference
        Sample, or samples, to which all are brought; None: the pooled population.
    key_added
        Name of the corrected embedding in ``adata.obsm``.
    labels_key, covariates, controls_key, condition_key, strength, rng, copy
        As for `integrate`; the number of genes detected is not known here.

    Returns
    -------
    AnnData or None
        None unless `copy`.  Written is ``obsm[key_added]``, of the shape and dtype of the
        embedding.

    Raises
    ------
    KeyError
        There is no such column or embedding.
    ValueError
        The labels cannot be samples; values are not finite; `strength` is out of range; a
        population is given as reference, which has genes.
    """
    check_strength(strength)
    check_writable(adata, copy=copy)
    design = read_design(
        adata,
        batch_key,
        reference=reference,
        labels_key=labels_key,
        covariates=covariates,
        controls_key=controls_key,
        condition_key=condition_key,
    )
    if design.population is not None:
        raise ValueError(_of_genes(use_rep))
    z = read_embedding(adata, use_rep)
    states = find_states(z, design.facts, design, strength=strength, rng=np.random.default_rng(rng))
    embedding = states.apply(z, design.facts)
    adata = writable(adata, copy=copy)
    adata.obsm[key_added] = embedding
    return adata if copy else None


def _write(
    adata: AnnData,
    results: Results,
    fitted: Fitted,
    *,
    batches: Batches,
    settings: dict[str, Any],
) -> None:
    """Write all results of a fit but the embedding, which the caller names."""
    if results.decoded is not None:
        adata.obsm[f"{KEY}_decoded"] = results.decoded
    own = fitted.samples()
    write_record(
        adata, KEY, batches, genes=fitted.genes, alignment=own.alignment, settings=settings
    )
    found = own.diagnosis, fitted.denoiser.reliability, fitted.variable_genes, own.history
    write_fit(adata, KEY, *found)
    if settings["corrected"] == "highly_variable":
        write_corrected(adata, KEY, results.corrected, variable_genes=fitted.variable_genes)
    else:
        write_corrected(adata, KEY, results.corrected)


def _of_genes(use_rep: str) -> str:
    return (
        f"use_rep={use_rep!r} starts from an embedding and reads no gene: leave out layer, "
        "decoded, max_removed, save_model and populations, or leave out use_rep."
    )


def map_query(
    adata: AnnData,
    model: RenormAutoencoder | str | Path,
    *,
    batch_key: BatchKey | None = None,
    layer: str | None = None,
    genes_key: str | None = None,
    key_added: str = "X_bioren",
    copy: bool = False,
) -> AnnData | None:
    """Map new cells onto a reference that was fitted before: no training, no cell of it needed.

    A few closed-form iterations find each sample's batch effect against the reference and take it
    away (`bioren.reference.mapping`).  Samples do not influence one another.

    Parameters
    ----------
    adata
        Log-expression, normalized as the reference was (``sc.pp.normalize_total``,
        ``sc.pp.log1p``).  Give all genes that were measured, in any order: those that it lacks
        are taken to be at the reference's mean, others that it has are left alone.
    model
        A fitted `bioren.RenormAutoencoder`, or the path of its file.
    batch_key
        Column of ``adata.obs``, or several, that name the samples; None: all cells are one.
    layer
        Layer to read; None: ``adata.X``.
    genes_key
        Column of ``adata.var`` that names genes as the reference does, such as Ensembl
        identifiers; None: ``adata.var_names``.
    key_added
        Name of the embedding in ``adata.obsm``.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    AnnData or None
        None unless `copy`.  Written are

        ``obsm[key_added]``
            Each cell's place in the reference population, as the reference's own from
            `RenormAutoencoder.embed`; shape ``(cells, n_latent)``, float32.
        ``layers["bioren"]``
            Log-expression on the reference's scale, dense, shape ``(cells, genes)``; genes that
            the reference does not have are as they were.
        ``var["bioren_mapped"]``
            Which genes the reference has.
        ``obs["bioren_mapping_score"]``
            Probability that the reference holds the cell's type (known and unknown types being
            equally frequent), learned by withholding states of the reference; NaN where it was
            too small for that, and in samples of fewer than five cells.
        ``obs["bioren_sample"]``
            ``"query"``, if `batch_key` is None.
        ``obs["bioren_KEY"]``, ``obs["bioren_KEY_probability"]``
            For each KEY of labels that the model learned (`RenormAutoencoder.learn_labels`): the
            most probable label, and its probability if the reference holds the cell's type.
        ``uns["bioren"]``
            Effects per sample and gene against the reference, see `batch_effects`;
            ``"mapping_score"``, the mean of each sample's cells; and ``"mapping"``: how many of
            the reference's genes there are, the name of its file, which labels were transferred.

    Raises
    ------
    RuntimeError
        The model is not fitted.
    KeyError
        There is no such column or layer.
    ValueError
        Query and reference have too few genes in common; a gene of the reference occurs twice;
        the values look like counts or are not finite; the labels cannot be samples; the model's
        file is damaged.
    FileNotFoundError
        There is no such file.

    Warns
    -----
    UserWarning
        Samples fit the reference badly: the mean mapping score of their cells is below .5 (usual
        is above .7); or see `RenormAutoencoder.map`.

    Examples
    --------
    >>> bioren.tl.map_query(query, "blood.bioren", batch_key="sample")  # doctest: +SKIP
    >>> query.obs["bioren_mapping_score"].groupby(query.obs["sample"]).mean()  # doctest: +SKIP
    """
    check_writable(adata, copy=copy)
    if not isinstance(model, RenormAutoencoder):
        model = load(model)
    mapped = model.map(adata, batch_key=batch_key, layer=layer, genes_key=genes_key)
    whole = mapped.expression(matrix_of(adata, layer))
    batches = mapped.batches
    is_mapped = np.zeros(adata.n_vars, dtype=bool)
    is_mapped[mapped.genes.query] = True

    adata = writable(adata, copy=copy)
    adata.obsm[key_added] = mapped.embedding
    adata.layers[KEY] = kept(whole, adata)
    adata.var[f"{KEY}_mapped"] = is_mapped
    if batch_key is None:
        adata.obs[str(batches.key)] = pd.Categorical.from_codes(batches.codes, batches.names)
    adata.obs[f"{KEY}_mapping_score"] = mapped.score
    for key, (labels, probability) in mapped.labels.items():
        adata.obs[f"{KEY}_{key}"] = pd.Categorical(labels)
        adata.obs[f"{KEY}_{key}_probability"] = probability
    settings = {
        "layer": layer,
        "genes_key": genes_key,
        "reference": reference_text(model.population_),
        "strength": model.strength,
        "max_removed": model.max_removed,
    }
    genes = adata.var_names[mapped.genes.query]
    write_record(adata, KEY, batches, genes=genes, alignment=mapped.alignment, settings=settings)
    write_mapping(adata, KEY, mapped, model="" if model.path is None else model.path.name)
    return adata if copy else None


def batch_effects(adata: AnnData, *, key: str = KEY) -> pd.DataFrame:
    """Return the batch effect of each sample on each gene, as found by the last run.

    Parameters
    ----------
    adata
        After `integrate` or `bioren.pp.bridge`.
    key
        Name of the record in ``adata.uns``.

    Returns
    -------
    pandas.DataFrame
        A row per sample and gene, with the columns

        ``sample``, ``gene``, ``cells``, ``n_measured``
            Names, the sample's number of cells, and how many of them have a value of the gene:
            all, unless values are missing; 0 where values say 0 and a sample never measured the
            gene (`bioren.effects.unmeasured`), whose r and d are then 1 and 0.
        ``r``, ``d``
            ``sd_sample / sd_reference`` and ``(mean_sample - mean_reference) / sd_reference``,
            standardized to the reference's composition of cell states.
        ``standard_error_r``, ``standard_error_d``
            Of ``r`` and of ``d``; larger for genes that few cells express, by the measured
            variance of squared deviations within states (a model or record of an earlier version
            may hold what normal values would have,
            ``r * sqrt((1 / n_sample + 1 / n_reference) / 2)``).  Too large where the sample makes
            up much of the reference, infinite where values are missing and nothing can be compared.
        ``standardized``
            Whether cells were compared within states; if not, the plain moments of samples were.
        ``removed``, ``kept``
            Share of ``d`` that was removed, less than 1 where it may be chance; and the rest.
        ``removed_r``
            Share of ``log r`` that was removed, by which expression was rescaled: less than 1 where
            the effect may be chance, beyond the limit of `max_removed`, and in samples whose scale
            does not hold for the differences between their states.  NaN in records of earlier
            versions.

    Raises
    ------
    KeyError
        There is no such record, or an earlier version of bioren wrote it.
    """
    return read_effects(adata, key).table()


def diagnose(adata: AnnData, *, key: str = KEY) -> pd.DataFrame:
    """Return signs of over-correction for each sample, as found by the last `integrate`.

    Parameters
    ----------
    adata
        After `integrate`.
    key
        Name of the record in ``adata.uns``.

    Returns
    -------
    pandas.DataFrame
        A row per sample, with the columns

        ``cells``
            The sample's number of cells.
        ``overlap_before``, ``overlap``
            Share of the sample in cell states that other samples have too, before correction and
            after it.  Near 0: nothing to compare it with.  Where the share is small but makes up
            much of another sample, the geometric mean of both shares, if that is larger.
        ``unmatched``
            Share of the sample in states of the embedding that it has for itself.  They keep
            their place; a type that should be shared and is not was not integrated.
        ``sample_specific``
            Share of the sample that lies in shared states, but much farther from the other samples'
            cells there than the rest of the sample does from theirs.  It was taken for a type of
            its own and left where it was; if it is none, name the types (`labels_key`).
        ``structure_removed``
            How much the correction changed the sample's own structure, relative to its own
            variance.  A shift of all cells alike changes nothing; above .25 there is a warning.
        ``leading_program``
            Known gene program that the largest effects are of, such as interferon-stimulated
            genes: what was removed may be a treatment (`bioren.effects.gene_programs`).  Empty
            where there is none, or where genes do not go by their symbols.

    Raises
    ------
    KeyError
        There is no such record.
    """
    return read_diagnosis(adata, key)
