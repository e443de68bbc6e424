"""What samples are brought to: some of themselves, or a population fitted before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from bioren.arrays.groups import Batches
from bioren.arrays.shapes import BoolPerSample
from bioren.reference.population import Population

__all__ = ["Reference", "read_reference", "reference_text"]

#: All samples, some by name, a population, or its file.
Reference: TypeAlias = "str | Sequence[str] | Population | Path | None"


def read_reference(
    reference: Reference, batches: Batches
) -> tuple[BoolPerSample | None, Population | None]:
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


def reference_text(reference: Reference) -> str | Sequence[str] | None:
    """Return what a record says of the reference: names of samples, a path, or a digest."""
    if isinstance(reference, Population):
        return f"population {reference.digest[:12]}"
    return str(reference) if isinstance(reference, Path) else reference
