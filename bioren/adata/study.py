"""All that is read of an AnnData before samples are compared: read once, checked, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioren.adata.matrix import Cells, check_log_scale, read_cells
from bioren.adata.missing import missing_message
from bioren.adata.obs import (
    check_condition,
    list_of,
    read_batches,
    read_controls,
    read_covariates,
    read_shared_labels,
)
from bioren.adata.reference_argument import Reference, read_reference
from bioren.adata.standardized import warn_standardized
from bioren.arrays.blocks import is_lazy
from bioren.arrays.groups import Batches, BatchKey
from bioren.arrays.shapes import BoolPerSample, Positions
from bioren.arrays.survey import Surveyor
from bioren.effects.clusters import sketched
from bioren.effects.states import CellFacts

if TYPE_CHECKING:
    from anndata import AnnData

    from bioren.reference.population import Population

__all__ = ["Columns", "Design", "Study", "read_design", "read_study"]


class Columns(NamedTuple):
    """Where a study was read from.

    Attributes
    ----------
    batch_key
        Column, or columns, of ``adata.obs`` that name the samples.
    layer
        Layer of expression; None: ``adata.X``.
    labels_key
        Column of known cell types; None: there are none.
    covariates
        Columns of covariates.
    """

    batch_key: BatchKey
    layer: str | None
    labels_key: str | None
    covariates: list[str]


class Design(NamedTuple):
    """What is known of the cells, apart from their expression, and what samples are brought to.

    Attributes
    ----------
    columns
        Where it was read from.
    batches
        Sample of each cell.
    facts
        Sample, covariates and label of each cell.
    labels
        Names of the labels; None: there are none.
    controls
        Positions of the cells from which the samples' effects are taken; None: from all.
    in_reference
        Which samples make up the reference, boolean of shape ``(samples,)``; None: all.
    population
        The population that is the reference; None: samples are.
    """

    columns: Columns
    batches: Batches
    facts: CellFacts
    labels: list[str] | None
    controls: Positions | None
    in_reference: BoolPerSample | None
    population: Population | None

    @property
    def n_samples(self) -> int:
        """Return the number of samples."""
        return len(self.batches.names)


class Study(NamedTuple):
    """Expression of several samples, and what is known of its cells."""

    cells: Cells
    design: Design


def read_design(
    adata: AnnData,
    batch_key: BatchKey,
    *,
    reference: Reference = None,
    layer: str | None = None,
    labels_key: str | None = None,
    covariates: Sequence[str] | None = None,
    controls_key: str | None = None,
    condition_key: str | None = None,
    single: bool = False,
) -> Design:
    """Read each column of ``adata.obs`` that is named, once; see `bioren.tl.integrate`.

    Parameters
    ----------
    single
        Whether one sample will do; it always does to be brought to a population.

    Warns
    -----
    UserWarning
        The condition is confounded with the samples.
    """
    batches = read_batches(adata, batch_key, single=True)
    in_reference, population = read_reference(reference, batches)
    if population is None and not single:
        batches.check_several()
    labels, names = read_shared_labels(adata, labels_key, batches)
    given = list_of(covariates)
    facts = CellFacts(batches.codes, read_covariates(adata, given), labels)
    controls = None if controls_key is None else read_controls(adata, controls_key, batches)
    check_condition(adata, condition_key, batches)
    columns = Columns(batch_key, layer, labels_key, given)
    return Design(columns, batches, facts, names, controls, in_reference, population)


def read_study(
    adata: AnnData,
    design: Design,
    rng: np.random.Generator,
    *,
    allow_missing: bool = False,
) -> Study:
    """Read the expression that goes with a design: the matrix is looked through once.

    Parameters
    ----------
    adata, design
        What is read.
    rng
        Chooses cells that are kept in memory, where the matrix is lazy.
    allow_missing
        Whether values may be NaN; never beside a population.

    Raises
    ------
    KeyError
        There is no such layer.
    ValueError
        The values look like counts, are infinite, or missing where they may not be.

    Warns
    -----
    UserWarning
        They look standardized gene by gene.
    """

    def surveyed(x: Any, variable: Positions) -> Surveyor | None:
        # Of controls alone, or beside a population, other things are needed.
        if not is_lazy(x) or design.controls is not None or design.population is not None:
            return None
        codes, n_samples = design.facts.codes, design.n_samples
        sketch = sketched(codes, n_samples, rng, labels=design.facts.labels)
        return Surveyor(codes, n_samples, n_genes=x.shape[1], variable=variable, sketch=sketch)

    layer = design.columns.layer
    cells = read_cells(adata, layer, allow_missing=True, surveyed=surveyed)
    if cells.values.missing and not (allow_missing and design.population is None):
        raise ValueError(missing_message(cells.x, design.batches))
    check_log_scale(cells.values)
    if cells.survey is None:
        warn_standardized(cells.x)
    else:
        warn_standardized(cells.survey.of_sketch, cells.survey.whole.pooled())
    return Study(cells, design)
