"""``bioren.pp``: the bridge on expression alone, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from bioren.adata.matrix import (
    check_corrected,
    check_strength,
    check_varies,
    check_writable,
    writable,
    write_corrected,
)
from bioren.adata.missing import warn_missing
from bioren.adata.record import write_record
from bioren.adata.reference_argument import Reference, reference_text
from bioren.adata.study import Study, read_design, read_study
from bioren.arrays.apply import apply_by_sample, scale_by_sample
from bioren.arrays.groups import BatchKey
from bioren.arrays.lazy import columns_of
from bioren.arrays.missing import count_measured
from bioren.arrays.shapes import AnyCellsByGenes, CountBySamplesAndGenes
from bioren.bridge import check_limits
from bioren.effects.alignment import MAX_REMOVED, Alignment, Removal
from bioren.model.fitting import align_study, warn_of_effects

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["bridge"]


def bridge(
    adata: AnnData,
    batch_key: BatchKey,
    *,
    reference: Reference = None,
    layer: str | None = None,
    key_added: str = "bioren",
    corrected: Literal["all", "highly_variable"] | None = "all",
    center: bool = True,
    standardize: bool = True,
    labels_key: str | None = None,
    controls_key: str | None = None,
    condition_key: str | None = None,
    strength: float = 1.0,
    max_kept: tuple[float, float] | None = None,
    max_removed: tuple[float, float] | None = MAX_REMOVED,
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    """Carry each sample's expression to the reference population's scale, gene by gene.

    ``x' = m + rho_s * (x - m - delta_s)``: one affine map per sample and gene, found by
    comparing samples within cell states, shrunk where the cells are few.  Cells keep their own
    noise, values stay on the log scale.

    Parameters
    ----------
    adata
        Log-expression, or bulk values on a log scale, such as proteomes or metabolomes.  NaN stands
        for what was not measured, see the notes.  A backed or lazy AnnData
        (`anndata.experimental.read_lazy`) is read block by block.
    batch_key
        Column of ``adata.obs`` that says which sample a cell is from, or a list of columns: each
        combination that occurs is then a sample.
    reference
        Sample, or samples, to whose scale all are brought; a `bioren.Population`, or the path of
        its file; None: the pooled population, in which each sample weighs the same.
    layer
        Layer to read; None: ``adata.X``.
    key_added
        Names the corrected layer, and the record in ``uns``.
    corrected
        Genes whose corrected expression is written: all, or those that
        ``var["highly_variable"]`` marks; None: of none, and ``layers`` stay as they are.
    center
        Whether to shift as well as scale.  Without, zeros stay zero and sparse stays sparse.
    standardize
        Whether to compare samples within cell states.  Without, their plain moments are
        compared, whatever their composition.
    labels_key
        Column of known cell types; missing for some cells, if need be.  Samples are then
        compared within them.
    controls_key
        Boolean column: a sample's effect is taken from these cells alone, and removed from all.
    condition_key
        Column of what is to be studied, such as a treatment: a warning says if it is confounded
        with the samples.  It has no influence on the result.
    strength
        Share of each effect that is removed, in [0, 1].
    max_kept, max_removed
        Limits ``(r_max, d_max)`` on what may stay and on what is taken away, see
        `bioren.AffineBridge.between`.
    rng
        Seed or generator; states are found with some randomness.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    AnnData or None
        None unless `copy`.  Written are

        ``layers[key_added]``
            Expression on the reference's scale, shape ``(cells, genes)``; dense if centered,
            else in CSR form where the input is sparse.  float32 (float64 where the input is).  If
            `adata` is backed or lazy, a dask array that is computed chunk by chunk when it is read
            or written.
        ``obsm["{key_added}_corrected"]``
            The same of the genes ``uns[key_added]["variable_genes"]``, in the place of the layer,
            if `corrected` is ``"highly_variable"``.
        ``uns[key_added]``
            Effects per sample and gene, see `bioren.tl.batch_effects`.

    Raises
    ------
    KeyError
        There is no such column or layer.
    ValueError
        The values look like counts or are infinite; the labels cannot be samples; `strength`
        or a limit is out of range; `labels_key` is given without `standardize`, or either beside a
        population; values are missing beside a population.

    Warns
    -----
    UserWarning
        Values are missing, or look standardized; samples have hardly a cell state in common with
        the others, or never measured many genes; a known gene program has the largest effects; the
        condition is confounded with the samples.

    Notes
    -----
    Where values are missing (NaN), effects are found from those that were measured, gene by gene,
    and what is missing stays so: nothing is imputed.  States are sought in the cells' expression of
    all variable genes; for that search alone, a missing value is taken to be the sample's mean of
    the gene.  (A gene that the sample lacks has the reference's mean there, one that the reference
    lacks plays no part.)  A gene that a sample never measured, or that it has in no state in common
    with others, is left as it is in that sample, and its standard errors are infinite; so is a gene
    in all samples that no sample of the reference has.

    A gene that is 0 in all cells of a sample and expressed in the same states of others, such that
    zeros alone are improbable, counts as not measured there, too
    (`bioren.effects.unmeasured.find_unmeasured`).
    """
    check_strength(strength)
    check_corrected(adata, corrected)
    check_limits("max_kept", max_kept)
    check_limits("max_removed", max_removed)
    check_writable(adata, copy=copy)
    if labels_key is not None and not standardize:
        raise ValueError("labels_key serves to compare within states: standardize=True.")
    design = read_design(
        adata,
        batch_key,
        reference=reference,
        layer=layer,
        labels_key=labels_key,
        controls_key=controls_key,
        condition_key=condition_key,
    )
    if design.population is not None:
        _check_own_states(labels_key, standardize)
    seeded = np.random.default_rng(rng)
    study = read_study(adata, design, seeded, allow_missing=True)
    n_measured = _count_where_missing(study)
    cells, batches = study.cells, design.batches
    variable = cells.variable_matrix() if standardize else None
    if variable is not None:
        check_varies(variable)
    removal = Removal(strength, max_kept, max_removed)
    alignment = align_study(study, design.facts, removal, rng=seeded, variable=variable)
    warn_of_effects(batches.names, list(cells.genes), alignment)
    values = _corrected(study, alignment, corrected, center=center)

    adata = writable(adata, copy=copy)
    settings = {
        "layer": layer,
        "reference": reference_text(reference),
        "corrected": corrected,
        "center": center,
        "standardize": standardize,
        "labels_key": labels_key,
        "controls_key": controls_key,
        "condition_key": condition_key,
        "strength": strength,
        "max_kept": max_kept,
        "max_removed": max_removed,
        "rng": rng,
    }
    write_record(
        adata,
        key_added,
        batches,
        genes=cells.genes,
        alignment=alignment,
        settings=settings,
        n_measured=n_measured,
    )
    variable_genes = cells.genes[cells.variable] if corrected == "highly_variable" else None
    write_corrected(adata, key_added, values, variable_genes=variable_genes)
    return adata if copy else None


def _corrected(
    study: Study, alignment: Alignment, which: str | None, *, center: bool
) -> AnyCellsByGenes | None:
    """Return expression after the bridges, of the genes that `bridge` names by `corrected`."""
    (x, _, _, variable, _), design = study
    if which is None:
        return None
    bridges = alignment.bridges
    if which == "highly_variable":
        x, bridges = columns_of(x, variable), bridges[:, variable]
    if center:
        return apply_by_sample(x, design.batches.codes, bridges)
    return scale_by_sample(x, design.batches.codes, bridges.scale)


def _check_own_states(labels_key: str | None, standardize: bool) -> None:
    if labels_key is not None or not standardize:
        msg = (
            "A population compares samples within its own states: leave out labels_key and "
            "standardize=False."
        )
        raise ValueError(msg)


def _count_where_missing(study: Study) -> CountBySamplesAndGenes | None:
    """Return how many cells of each sample have each gene, with a warning; None: all of them."""
    cells, design = study
    if not cells.values.missing:
        return None
    measured = count_measured(cells.x, design.batches.codes, design.n_samples)
    warn_missing(measured, design.batches)
    return measured
