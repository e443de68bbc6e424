"""The bridge as a scikit-learn transformer, for bulk matrices and other frameworks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from bioren.adata.matrix import check_strength
from bioren.arrays.apply import apply_by_sample
from bioren.arrays.shapes import LabelCodes, SampleCodes
from bioren.bridge import check_limits
from bioren.effects.alignment import MAX_REMOVED, Removal, align, warn_isolated
from bioren.effects.diagnosis import CONFOUNDED, ConditionDesign
from bioren.effects.states import CellFacts
from bioren.effects.unmeasured import warn_unmeasured

__all__ = ["BridgeTransformer"]


class BridgeTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Carry each batch of a matrix to the scale of the reference population, feature by feature.

    Learns an affine map per batch and feature in `fit` and applies it in `transform`, to the
    same rows or to new ones of the same batches.

    Parameters
    ----------
    reference
        Batch, or batches, to whose scale all are brought; None: the pooled population, in
        which each batch weighs the same.
    standardize
        Whether to compare batches within states (clusters of similar rows), so that different
        compositions are no batch effect.  Needs dozens of rows per batch.  Where labels are given
        to `fit`, batches are compared within them in any case.
    strength
        Share of each effect that is removed, in [0, 1].
    max_kept, max_removed
        Limits ``(r_max, d_max)`` on what may stay and on what is taken away, see
        `bioren.AffineBridge.between`.
    random_state
        Seed; used if `standardize`.

    Attributes
    ----------
    batches_
        Labels of the batches seen in `fit`, sorted.
    alignment_
        Effects and maps, `bioren.effects.alignment.Alignment`; axes batches and features.

    Notes
    -----
    NaN stands for what was not measured, and stays: maps are found from the values that there are.
    A feature that a batch, or the reference, has not measured is left as it is there.

    Batches are metadata of the rows: ``fit(X, batch=b)``, ``transform(X, batch=b)``.  So are known
    types, which `fit` alone takes: ``fit(X, batch=b, labels=t)``.  Without them, batches that hold
    different types lose part of what the types differ by: name them where they are known, or give
    the classes as `y`, and a warning says whether they are confounded with the batches.

    In a pipeline, metadata have to be requested, and each step gets what it asked for::

        import sklearn
        from sklearn.decomposition import PCA
        from sklearn.pipeline import make_pipeline

        sklearn.set_config(enable_metadata_routing=True)
        bridge = (
            BridgeTransformer()
            .set_fit_request(batch=True, labels=True)
            .set_transform_request(batch=True)
        )
        steps = make_pipeline(bridge, PCA(10))
        steps.fit(X, batch=batch, labels=cell_type)
        z = steps.transform(X_new, batch=batch_new)  # no labels are needed of new rows

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(40, 3)); x[:20] += 5
    >>> batch = ["a"] * 20 + ["b"] * 20
    >>> y = BridgeTransformer().fit_transform(x, batch=batch)
    >>> bool(np.abs(y[:20].mean(axis=0) - y[20:].mean(axis=0)).max() < 0.1)
    True
    """

    def __init__(
        self,
        *,
        reference: str | Sequence[str] | None = None,
        standardize: bool = False,
        strength: float = 1.0,
        max_kept: tuple[float, float] | None = None,
        max_removed: tuple[float, float] | None = MAX_REMOVED,
        random_state: int = 0,
    ) -> None:
        self.reference = reference
        self.standardize = standardize
        self.strength = strength
        self.max_kept = max_kept
        self.max_removed = max_removed
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, labels: Any = None) -> Self:
        """Learn the maps.

        Parameters
        ----------
        X
            Dense matrix of shape ``(rows, features)`` on a log or another additive scale.
        y
            Class of each row, to warn of where it is confounded with the batches and there are no
            `labels`; else ignored.
        batch
            Label of each row, shape ``(rows,)``.
        labels
            Known type of each row, shape ``(rows,)``, missing for some, if need be: batches are
            compared within types.  None: there are none.

        Raises
        ------
        ValueError
            `batch` is missing, incomplete or not one per row, or names a single batch; no two
            batches share one of `labels`; the values are infinite; `reference` names no batch;
            `strength` or a limit is out of range.

        Warns
        -----
        UserWarning
            `y` is confounded with the batches; batches have hardly a state, or label, in common.
        """
        check_strength(self.strength)
        check_limits("max_kept", self.max_kept)
        check_limits("max_removed", self.max_removed)
        X = self._validated(X, reset=True)
        self.batches_, codes = np.unique(_labels(batch, len(X)), return_inverse=True)
        if len(self.batches_) < 2:
            raise ValueError(
                f"batch names one batch only, '{self.batches_[0]}': nothing to bridge."
            )
        types = None if labels is None else _types(labels, codes)
        if types is None:
            _warn_confounded(y, codes)
        self.alignment_ = align(
            X,
            CellFacts(codes, labels=types),
            len(self.batches_),
            rng=np.random.default_rng(self.random_state),
            in_reference=self._in_reference(),
            removal=Removal(self.strength, self.max_kept, self.max_removed),
            iterations=2 if self.standardize or types is not None else 0,
        )
        warn_isolated(self.batches_.tolist(), self.alignment_)
        features = getattr(self, "feature_names_in_", np.arange(X.shape[1])).astype(str).tolist()
        warn_unmeasured(self.batches_.tolist(), features, self.alignment_.unmeasured)
        return self

    def transform(self, X: Any, *, batch: Any = None) -> np.ndarray:
        """Return rows on the reference's scale, of the shape of `X`.

        Parameters
        ----------
        X
            As for `fit`, with the same features.
        batch
            Label of each row, each one known from `fit`.

        Raises
        ------
        ValueError
            As for `fit`, or a batch is unknown.
        """
        return self._apply(X, batch, self._fitted().bridges)

    def inverse_transform(self, X: Any, *, batch: Any = None) -> np.ndarray:
        """Return rows on the scale of their own batch again; undoes `transform`."""
        return self._apply(X, batch, self._fitted().bridges.invert())

    def fit_transform(
        self, X: Any, y: Any = None, *, batch: Any = None, labels: Any = None
    ) -> np.ndarray:
        """Fit to the rows and return them on the reference's scale.

        Parameters
        ----------
        X, y, batch, labels
            As for `fit`.
        """
        return self.fit(X, y, batch=batch, labels=labels).transform(X, batch=batch)

    def _apply(self, X: Any, batch: Any, bridges: Any) -> np.ndarray:
        X = self._validated(X, reset=False)
        labels = _labels(batch, len(X))
        codes = np.searchsorted(self.batches_, labels).clip(max=len(self.batches_) - 1)
        unknown = np.unique(labels[self.batches_[codes] != labels])
        if len(unknown):
            known = ", ".join(map(str, self.batches_))
            raise ValueError(f"Batches not seen in fit: {', '.join(unknown)}. Known: {known}.")
        return apply_by_sample(X, codes, bridges)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _validated(self, X: Any, *, reset: bool) -> np.ndarray:
        return validate_data(
            self, X, dtype=(np.float64, np.float32), ensure_all_finite="allow-nan", reset=reset
        )

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.alignment_

    def _in_reference(self) -> np.ndarray | None:
        if self.reference is None:
            return None
        wanted = np.atleast_1d(np.asarray(self.reference, dtype=object)).astype(str)
        if not len(wanted) or not np.isin(wanted, self.batches_).all():
            known = ", ".join(map(str, self.batches_))
            raise ValueError(f"reference={self.reference!r} must name batches: {known}.")
        return np.isin(self.batches_, wanted)


def _labels(batch: Any, n_rows: int) -> np.ndarray:
    if batch is None:
        msg = "batch is missing: pass the batch of each row, such as transform(X, batch=labels)."
        raise ValueError(msg)
    labels = _of_rows("batch", batch, n_rows)
    if labels.isna().any():
        raise ValueError(f"batch has no label for {int(labels.isna().sum())} rows.")
    return labels.astype(str).to_numpy(dtype=str)


def _of_rows(name: str, values: Any, n_rows: int) -> pd.Series:
    """Return one value per row; str would make NaN a label."""
    column = pd.Series(np.asarray(values, dtype=object).ravel())
    if len(column) != n_rows:
        raise ValueError(f"{name} has {len(column)} labels for {n_rows} rows.")
    return column


def _types(labels: Any, codes: SampleCodes) -> LabelCodes:
    """Return the known type of each row, -1 where there is none."""
    column = _of_rows("labels", labels, len(codes))
    there = column.notna().to_numpy()
    types = np.full(len(codes), -1)
    types[there] = np.unique(column[there].astype(str), return_inverse=True)[1]
    pairs = np.unique(np.stack([types[there], codes[there]]), axis=1)
    if there.all() and len(np.unique(pairs[0])) == pairs.shape[1]:
        msg = (
            "No two batches share a label: labels and batch divide the rows alike, and nothing can "
            "be compared within labels. Leave labels out, or name types that several batches have."
        )
        raise ValueError(msg)
    return types


def _warn_confounded(y: Any, codes: SampleCodes) -> None:
    """Warn where classes are confounded with the batches; numbers that are measured have none."""
    classes = None if y is None else pd.Series(np.asarray(y).ravel())
    if classes is None or len(classes) != len(codes) or pd.api.types.is_float_dtype(classes):
        return
    found = pd.factorize(classes)[0].astype(np.int64)
    if 2 * (found.max() + 1) > len(codes):
        return  # names of rows, not classes
    design = ConditionDesign.of(codes, found)
    if design.degree < CONFOUNDED:
        return
    msg = (
        f"y is confounded with batch, which determines it to {design.degree:.0%} "
        f"({design.one_condition} of {codes.max() + 1} batches have one class only). Batches are "
        "compared as if they held the same rows, so that what the classes differ by is removed in "
        "part. Name the known type of each row, and batches are compared within types: "
        "fit(X, batch=..., labels=...), with set_fit_request(batch=True, labels=True) in a "
        "pipeline. Or remove less: strength=..."
    )
    warnings.warn(msg, stacklevel=3)
