"""What samples are brought to: some of themselves, or a population fitted before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bioren.adata.obs import read_batches
from bioren.arrays.groups import Batches, BatchKey
from bioren.reference.population import Population

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Reference", "read_reference", "read_samples", "reference_text"]

#: All samples, some by name, a population, or its file.
Reference: TypeAlias = "str | Sequence[str] | Population | Path | None"


def read_reference(
    reference: Reference, batches: Batches
) -> tuple[np.ndarray | None, Population | None]:
    """Return the samples that make up the reference, or the population that is.

    Parameters
    ----------
    reference
        Names of samples, a population, the path of its file, or None for all samples.
    batches
        The samples that there are: a text that names one of them is no path.

    Returns
    -------
    in_reference
        Boolean of shape ``(samples,)``; None for all, or none.
    population
        None if samples make up the reference.

    Raises
    ------
    ValueError
        There is no such sample or file, or the file is damaged.
    """
    if isinstance(reference, Population):
        return None, reference
    if isinstance(reference, Path) or (
        isinstance(reference, str) and reference not in batches.names and Path(reference).is_file()
    ):
        return None, Population.load(reference)
    return batches.select(reference), None


def read_samples(
    adata: AnnData, batch_key: BatchKey, reference: Reference, *, single: bool = False
) -> tuple[Batches, np.ndarray | None, Population | None]:
    """Return the samples, and what they are brought to, see `read_reference`.

    Parameters
    ----------
    adata, batch_key
        As for `bioren.adata.obs.read_batches`.
    reference
        As for `read_reference`.
    single
        Whether one sample will do; it always does to be brought to a population.
    """
    batches = read_batches(adata, batch_key, single=True)
    in_reference, population = read_reference(reference, batches)
    if population is None and not single:
        batches = read_batches(adata, batch_key)  # says what is the matter with one sample
    return batches, in_reference, population


def reference_text(reference: Reference) -> str | Sequence[str] | None:
    """Return what a record says of the reference: names of samples, a path, or a digest."""
    if isinstance(reference, Population):
        return f"population {reference.digest[:12]}"
    return str(reference) if isinstance(reference, Path) else reference
