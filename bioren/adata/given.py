"""What is given in the place of an AnnData, and what to give instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["check_adata"]


def check_adata(adata: Any, *, hint: str = "") -> None:
    """Refuse what is no AnnData: a path, swapped arguments, a matrix, several modalities.

    Parameters
    ----------
    adata
        What was given.
    hint
        What to do instead, where more is known than follows from the kind; empty: nothing is.

    Raises
    ------
    TypeError
        It is none.
    """
    if all(hasattr(adata, slot) for slot in ("obs", "var", "uns", "layers")):
        return
    raise TypeError(f"Expected an AnnData, received {_what(adata)}. {hint or _advice(adata)}")


def _what(given: Any) -> str:
    if isinstance(given, str | Path):
        return f"the text {str(given)!r}" if isinstance(given, str) else f"the path {str(given)!r}"
    if given is None:
        return "None"
    kind = type(given).__name__
    article = "an" if kind[0].lower() in "aeiou" or kind == "ndarray" else "a"
    shape = getattr(given, "shape", None)
    return f"{article} {kind}" + (f" of shape {tuple(shape)}" if shape else "")


def _advice(given: Any) -> str:
    """Say what may have been meant."""
    if isinstance(given, Path) or (isinstance(given, str) and Path(given).suffix):
        return f"Read the file first: anndata.read_h5ad({str(given)!r})."
    if isinstance(given, str):
        return "The AnnData comes first, and then what is said of it, such as the batch key."
    if given is None:
        return "Functions that change an AnnData in place return None: copy=True returns a copy."
    if isinstance(getattr(given, "mod", None), Mapping):
        return (
            "Of several modalities, give the one with gene expression: "
            f"mdata[{next(iter(given.mod), 'rna')!r}]."
        )
    if hasattr(given, "fitted_"):
        return "The AnnData comes first, and then the model."
    if isinstance(given, np.ndarray) or hasattr(given, "shape"):
        return "A matrix needs to know its cells and genes: anndata.AnnData(x, obs=..., var=...)."
    return "See https://anndata.readthedocs.io for how to make one."
