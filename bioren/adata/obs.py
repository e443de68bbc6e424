"""What ``obs`` says of each cell: sample, label, covariates, whether it is a control."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bioren.adata.columns import column_of
from bioren.adata.given import check_adata
from bioren.arrays.groups import Batches, BatchKey
from bioren.arrays.shapes import CellsByCovariates, LabelCodes, Positions
from bioren.effects.diagnosis import ConditionDesign, confounded_message
from bioren.wording import choices, listed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "check_condition",
    "check_shared",
    "condition_message",
    "list_of",
    "one_sample",
    "read_batches",
    "read_controls",
    "read_covariates",
    "read_labels",
    "read_shared_labels",
]


#: What was given in the place of a column's name is shown where it is no longer.
LONGEST = 60


def read_batches(
    adata: AnnData,
    batch_key: BatchKey,
    *,
    names: Sequence[str] | None = None,
    single: bool = False,
) -> Batches:
    """Read the sample of each cell.

    Parameters
    ----------
    adata
        Its ``obs[batch_key]`` may hold strings, categories, integers or booleans.
    batch_key
        Column of ``adata.obs``, or several: each combination that occurs is a sample, such as
        ``"donor1 + 10x"``.  Labels that read the same, such as 1 and "1", are one sample.
    names
        The samples that a fitted model knows; None: those found.
    single
        Whether one sample will do, too.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        Labels are missing; there is one sample only, or so many that they look like barcodes; a
        sample is unknown; no column is named.
    TypeError
        `batch_key` is neither a string nor several, or `adata` is no AnnData.

    Warns
    -----
    UserWarning
        Labels are floating-point numbers: a quantity is no batch.
    """
    check_adata(adata)
    labels = _batch_labels(adata, batch_key)
    missing = int(labels.isna().sum())
    if missing:
        some = (
            f"adata.obs[{batch_key!r}].notna()"
            if _is_name(batch_key)
            else f"adata.obs[{list(batch_key)!r}].notna().all(axis=1)"
        )
        msg = (
            f"obs[{batch_key!r}] has no label for {missing} of {len(labels)} cells. Drop them "
            f"(adata[{some}]) or give them a sample of their own."
        )
        raise ValueError(msg)
    if pd.api.types.is_float_dtype(labels):
        _warn_float(batch_key, labels)
    labels = labels.astype("category").cat.remove_unused_categories()
    labels_read = [str(label) for label in labels.cat.categories]
    found = list(dict.fromkeys(labels_read))
    codes = _positions(labels_read, found)[labels.cat.codes]
    if names is None:
        batches = Batches(batch_key, found, codes)
        _check_barcodes(batches)
        if not single:
            batches.check_several()
        return batches
    unknown = [name for name in found if name not in names]
    if unknown:
        msg = (
            f"obs[{batch_key!r}] holds samples that the model was not fitted on: "
            f"{listed(unknown)}. It knows {listed(names)}."
        )
        raise ValueError(msg)
    return Batches(batch_key, list(names), _positions(found, names)[codes])


def one_sample(adata: AnnData, key: str = "bioren_sample", name: str = "query") -> Batches:
    """Return all cells as one sample."""
    return Batches(key, [name], np.zeros(adata.n_obs, dtype=np.int64))


def read_labels(
    adata: AnnData, labels_key: str, *, names: Sequence[str] | None = None
) -> tuple[LabelCodes, list[str]]:
    """Read the label of each cell; missing ones are allowed.

    Parameters
    ----------
    adata, labels_key
        ``adata.obs[labels_key]`` holds strings, categories, integers or booleans.
    names
        The labels that a fitted model knows, the others count as missing; None: those found.

    Returns
    -------
    codes
        Position of each cell's label, -1 where there is none, shape ``(cells,)``.
    names
        The labels.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        No cell has a label.
    """
    check_adata(adata)
    labels = _column(adata, labels_key, "labels_key")
    found = labels.astype("category").cat.remove_unused_categories()
    read = [str(label) for label in found.cat.categories]
    if names is None:
        names = list(dict.fromkeys(read))
        if not names:
            raise ValueError(f"obs[{labels_key!r}] is empty: no cell has a label. Leave it out.")
    position = {name: i for i, name in enumerate(names)}
    of_category = np.array([position.get(label, -1) for label in read] + [-1], dtype=np.int64)
    return of_category[found.cat.codes], list(names)


def read_covariates(adata: AnnData, keys: Sequence[str] | None) -> CellsByCovariates:
    """Read continuous covariates, shape ``(cells, len(keys))``, float64.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        A column does not hold finite numbers.
    """
    keys = list_of(keys)
    columns = np.empty((adata.n_obs, len(keys)))
    for i, key in enumerate(keys):
        column = _column(adata, key, "covariates")
        if not pd.api.types.is_numeric_dtype(column):
            msg = (
                f"The covariate obs[{key!r}] is of type {column.dtype}, expected numbers. "
                "Categories are no covariates: name them among the batch keys."
            )
            raise ValueError(msg)
        columns[:, i] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = int((~np.isfinite(columns[:, i])).sum())
        if wrong:
            raise ValueError(f"obs[{key!r}] is missing or infinite in {wrong} cells.")
    return columns


def list_of(keys: str | Sequence[str] | None) -> list[str]:
    """Return names of columns as a list; None stands for none."""
    if keys is None:
        return []
    return [keys] if isinstance(keys, str) else list(keys)


def check_shared(labels_key: str, labels: LabelCodes, batches: Batches) -> None:
    """Refuse labels of which no two samples share one: nothing could be compared within them.

    Raises
    ------
    ValueError
        Every cell has a label, and each occurs in one sample only.
    """
    pairs = np.unique(np.stack([labels, batches.codes]), axis=1)
    if (labels >= 0).all() and len(np.unique(pairs[0])) == pairs.shape[1]:
        msg = (
            f"No label of obs[{labels_key!r}] occurs in two samples of obs[{batches.key!r}], so "
            "that nothing can be compared within labels. Is it the column of cell types?"
        )
        raise ValueError(msg)


def read_shared_labels(
    adata: AnnData, labels_key: str | None, batches: Batches
) -> tuple[LabelCodes | None, list[str] | None]:
    """Read labels within which samples are compared; None: there are none.

    See `read_labels` and `check_shared`.
    """
    if labels_key is None:
        return None, None
    labels, names = read_labels(adata, labels_key)
    check_shared(labels_key, labels, batches)
    return labels, names


def check_condition(adata: AnnData, condition_key: str | None, batches: Batches) -> None:
    """Warn where the samples determine what is to be studied; None: nothing is named.

    Raises
    ------
    KeyError
        There is no such column.
    """
    if condition_key is not None and (msg := condition_message(adata, condition_key, batches)):
        warnings.warn(msg, stacklevel=4)


def condition_message(adata: AnnData, condition_key: str, batches: Batches) -> str:
    """Say how what is to be studied is confounded with the samples; nothing where it is not.

    Raises
    ------
    KeyError
        There is no such column.
    """
    condition, _ = read_labels(adata, condition_key)
    design = ConditionDesign.of(batches.codes, condition)
    return confounded_message(f"obs[{batches.key!r}]", f"obs[{condition_key!r}]", design)


def read_controls(adata: AnnData, controls_key: str, batches: Batches) -> Positions:
    """Return the positions of the cells marked as controls.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        It is not boolean, or some sample has no control cell.
    """
    column = _column(adata, controls_key, "controls_key")
    if not pd.api.types.is_bool_dtype(column) or column.isna().any():
        msg = (
            f"obs[{controls_key!r}] must say True or False for each cell, received "
            f"{column.dtype}. For a column of names: "
            f"adata.obs['control'] = adata.obs[{controls_key!r}] == 'the name of the controls'"
        )
        raise ValueError(msg)
    controls = np.flatnonzero(column.to_numpy(dtype=bool))
    counted = np.bincount(batches.codes[controls], minlength=len(batches.names))
    without = [name for name, n in zip(batches.names, counted, strict=True) if n == 0]
    if without:
        msg = (
            f"obs[{controls_key!r}] marks no control in {len(without)} of {len(batches.names)} "
            f"samples: {listed(without)}. The effect of a sample is taken from its controls."
        )
        raise ValueError(msg)
    return controls


def _batch_labels(adata: AnnData, batch_key: Any) -> pd.Series:
    if _is_name(batch_key):
        return _column(adata, batch_key, "batch_key")
    if not isinstance(batch_key, list | tuple) or not all(map(_is_name, batch_key)):
        msg = (
            "batch_key must name a column of adata.obs, or be a list of such names, received "
            f"{_briefly(batch_key)}."
        )
        raise TypeError(msg)
    if not batch_key:
        raise ValueError("batch_key is an empty list: name one or more columns of adata.obs.")
    columns = [
        _column(adata, key, "batch_key").astype("category").cat.remove_unused_categories()
        for key in batch_key
    ]
    missing = np.any([column.isna() for column in columns], axis=0)
    codes = np.stack([column.cat.codes for column in columns], axis=1)
    found, of_cell = np.unique(codes[~missing], axis=0, return_inverse=True)
    names = [
        " + ".join(str(column.cat.categories[i]) for column, i in zip(columns, row, strict=True))
        for row in found
    ]
    if len(set(names)) < len(names):
        msg = f"Two combinations of obs[{batch_key!r}] read the same; rename a category with ' + '."
        raise ValueError(msg)
    joined = np.full(adata.n_obs, -1)
    joined[~missing] = of_cell.ravel()
    return pd.Series(pd.Categorical.from_codes(joined, names), index=adata.obs_names)


def _is_name(key: Any) -> bool:
    return isinstance(key, str)


def _briefly(given: Any) -> str:
    """Return a value as it is written, or its kind where that takes many lines."""
    text = repr(given)
    if len(text) <= LONGEST and "\n" not in text:
        return text
    name = getattr(given, "name", None)
    return f"a value of type {type(given).__name__}" + (
        f" (its name is {name!r})" if _is_name(name) else ""
    )


def _column(adata: AnnData, key: Any, argument: str) -> pd.Series:
    if not _is_name(key):
        msg = f"{argument} must name one column of adata.obs, received {_briefly(key)}."
        raise TypeError(msg)
    if key not in adata.obs:
        raise KeyError(f"There is no column {key!r}; {choices('obs', key, adata.obs)}.")
    return column_of(adata.obs, key)


def _positions(wanted: Sequence[str], names: Sequence[str]) -> Positions:
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[name] for name in wanted], dtype=np.int64)


def _warn_float(batch_key: BatchKey, labels: pd.Series) -> None:
    values = labels.unique()
    msg = (
        f"obs[{batch_key!r}] holds floating-point numbers ({labels.dtype}), such as {values[0]}, "
        f"and each of {len(values):,} values is taken for a sample. A quantity is no batch: "
        "regress it out (covariates=...). If the numbers name samples, say so: "
        f"adata.obs[{batch_key!r}].astype(int).astype(str)"
    )
    warnings.warn(msg, stacklevel=5)


def _check_barcodes(batches: Batches) -> None:
    n_cells, names = len(batches.codes), batches.names
    if n_cells == 0:
        raise ValueError("adata has no cells.")
    if 2 * len(names) > n_cells and len(names) > 1:
        msg = (
            f"obs[{batches.key!r}] has {len(names)} labels for {n_cells} cells, such as "
            f"{names[0]!r}: these look like barcodes. Name the column that says which sample a "
            "cell is from; samples need two cells on average."
        )
        raise ValueError(msg)
