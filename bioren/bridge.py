"""The affine bridge between two normalizations of the same value.

Normalize a value ``x`` by two sets of statistics, A and B::

    z_A = (x - mean_A) / std_A            z_B = (x - mean_B) / std_B

Then ``z_B = r * z_A + d`` with ``r = std_A / std_B`` and ``d = (mean_A - mean_B) / std_B``
(Ioffe 2017, arXiv:1702.03275, section 3).  `renorm_terms` is that formula, and the only place
where it is written: the torch layers, the autoencoder and the functions on AnnData call it.

Keeping all of (r, d) leaves ``x`` as it is; keeping nothing, (1, 0), gives ``x`` the mean and
standard deviation of B.  `kept_terms` says how much is kept, `AffineBridge` applies the rest.

Everything here uses plain operators, so NumPy arrays and torch tensors work alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeVar

    from bioren.arrays.moments import Moments

    #: Either, never mixed in one call; Any where it is not said which.
    Array = TypeVar("Array", np.ndarray, torch.Tensor, Any, default=Any)
else:
    from typing import TypeVar

    Array = TypeVar("Array")

__all__ = [
    "AffineBridge",
    "Limits",
    "check_limits",
    "clip_terms",
    "kept_terms",
    "mean_of_known",
    "mixed_terms",
    "per_gene",
    "renorm_terms",
    "shrinkage",
]


class Limits(NamedTuple):
    """Bounds on a pair (r, d): ``1/r_max <= r <= r_max`` and ``-d_max <= d <= d_max``."""

    r_max: float
    d_max: float


NOTHING = Limits(1.0, 0.0)
EVERYTHING = Limits(math.inf, math.inf)


def renorm_terms(mean_a: Array, std_a: Array, mean_b: Array, std_b: Array) -> tuple[Array, Array]:
    """Return ``(r, d)`` such that ``z_B = r * z_A + d``.

    Parameters
    ----------
    mean_a, std_a, mean_b, std_b
        Statistics of A and of B, of shapes that broadcast.  The standard deviations must be
        positive: nothing is guarded here.

    References
    ----------
    Ioffe (2017), *Batch Renormalization*, arXiv:1702.03275, equation (2).
    """
    return std_a / std_b, (mean_a - mean_b) / std_b


def clip_terms(r: Array, d: Array, r_max: Any, d_max: Any) -> tuple[Array, Array]:
    """Clip ``r`` to ``[1/r_max, r_max]`` and ``d`` to ``[-d_max, d_max]``."""
    return r.clip(1 / r_max, r_max), d.clip(-d_max, d_max)


def kept_terms(
    r: Array,
    d: Array,
    *,
    max_kept: tuple[float, float] | None = None,
    max_removed: tuple[float, float] | None = None,
    strength: Array | float = 1.0,
) -> tuple[Array, Array]:
    """Return the part of ``(r, d)`` that stays in the data; the rest is removed.

    Parameters
    ----------
    r, d
        The whole difference, of shape ``(..., genes)``.
    max_kept
        ``(r_max, d_max)``: what lies within these limits may stay (the clip of Batch
        Renormalization).  None stands for ``(1, 0)``: nothing stays.
    max_removed
        ``(r_max, d_max)``: no more than this is taken away, whatever the other arguments say
        (the guard against over-correction).  None stands for no such limit.
    strength
        Share of the removal that is carried out, in [0, 1]; a number, or one per gene.
        Linear in ``d`` and in ``log r``.

    Returns
    -------
    r_kept, d_kept
        Of the shape of ``r`` and ``d``.
    """
    r_most, d_most = clip_terms(r, d, *_limits("max_kept", max_kept, NOTHING))
    r_removed = (r / r_most) ** strength
    d_removed = (d - d_most) * strength
    guard = _limits("max_removed", max_removed, EVERYTHING)
    r_removed, d_removed = clip_terms(r_removed, d_removed, *guard)
    return r / r_removed, d - d_removed


def mixed_terms(r: Array, d: Array, mixing: Array | float) -> tuple[Array, Array]:
    """Return the share `mixing`, in [0, 1], of ``(r, d)``: 0 gives ``(1, 0)``, 1 all of it.

    What `kept_terms` keeps with a strength of ``1 - mixing``, in a form that is quick to
    differentiate.
    """
    return r**mixing, d * mixing


def shrinkage(effect: np.ndarray, standard_error: np.ndarray) -> np.ndarray:
    """Return how far each estimated effect can be trusted, in [0, 1].

    The effects of all genes are taken as draws around zero whose variance ``tau**2`` is what
    the observed squares leave once the squared standard errors are subtracted (empirical
    Bayes, as ComBat shrinks its batch effects).  Random halves of one sample thus give values
    near 0, effects far above their errors values near 1.

    Parameters
    ----------
    effect, standard_error
        Shape ``(..., genes)``; the last axis is pooled.  A gene with an infinite error, of which
        nothing is known, tells nothing of the others.

    Returns
    -------
    numpy.ndarray
        ``tau**2 / (tau**2 + standard_error**2)``, of the shape of `effect`.

    References
    ----------
    Johnson, Li & Rabinovic (2007), *Biostatistics* 8:118.
    """
    error2 = np.square(standard_error)
    tau2 = mean_of_known(np.square(effect) - error2, np.isfinite(error2)).clip(0)
    total = tau2 + error2
    return np.divide(tau2, total, out=np.ones_like(total), where=total > 0)


def mean_of_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, which stays with length 1, of what is known; else 0."""
    if known.all():
        return np.mean(values, axis=-1, keepdims=True)
    total = np.sum(np.where(known, values, 0), axis=-1, keepdims=True)
    return total / np.maximum(known.sum(axis=-1, keepdims=True), 1)


def per_gene(count: Array, mean: Array) -> Array:
    """Return numbers of cells in a shape that broadcasts with the genes' means.

    Parameters
    ----------
    count
        One number for all genes, shape ``(*groups,)``, or one for each, ``(*groups, genes)``.
    mean
        Shape ``(*groups, genes)``.
    """
    return count if count.ndim == mean.ndim else count[..., None]


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single truth value
class AffineBridge(Generic[Array]):
    """The map ``x -> scale * x + shift`` from one population's scale to another's.

    Attributes
    ----------
    scale, shift
        Shape ``(genes,)``, or ``(samples, genes)`` for one bridge per sample.
    """

    scale: Array
    shift: Array

    @classmethod
    def between(
        cls,
        source: Moments[Array],
        target: Moments[Array],
        *,
        max_kept: tuple[float, float] | None = None,
        max_removed: tuple[float, float] | None = None,
        strength: Array | float = 1.0,
    ) -> Self:
        """Build the bridge that carries `source` to `target`.

        A feature without spread on either side has no scale to compare: it is shifted, never
        scaled, and stays finite.  One that either side has not measured is left as it is.

        Parameters
        ----------
        source, target
            Moments whose shapes broadcast; each must hold at least one cell, though not a value of
            each feature.
        max_kept, max_removed, strength
            See `kept_terms`.  By default the source gets the target's mean and standard
            deviation exactly; ``max_kept=(inf, inf)`` or ``strength=0`` is the identity.

        Raises
        ------
        ValueError
            A population is empty, a limit lies out of range, or `strength` outside [0, 1].
        """
        for name, moments in (("source", source), ("target", target)):
            if moments.count.ndim < moments.mean.ndim and not (moments.count > 0).all():
                msg = f"{name} holds no cells; the bridge needs at least one on either side."
                raise ValueError(msg)
        if not ((np.asarray(strength) >= 0).all() and (np.asarray(strength) <= 1).all()):
            raise ValueError(f"strength must lie in [0, 1], received {strength!r}.")

        std_a, std_b = comparable(source.std(), target.std())
        r, d = renorm_terms(source.mean, std_a, target.mean, std_b)
        r_kept, d_kept = kept_terms(
            r, d, max_kept=max_kept, max_removed=max_removed, strength=strength
        )
        scale = r_kept / r
        # target.mean + std_b * d_kept - scale * source.mean, in a form that is exactly 0 where
        # nothing is removed.
        shift = source.mean * (1 - scale) - std_b * (d - d_kept)
        if any(of.count.ndim == of.mean.ndim for of in (source, target)):
            there, known = (per_gene(of.count, of.mean) > 0 for of in (source, target))
            measured = there & known
            scale, shift = scale * measured + ~measured, shift * measured
        return cls(scale, shift)

    @classmethod
    def identity(cls, *shape: int) -> AffineBridge[np.ndarray]:
        """Return bridges that leave all values as they are.

        Parameters
        ----------
        shape
            Of the NumPy arrays ``scale`` and ``shift``: ``genes``, or ``samples, genes``.
        """
        return AffineBridge(np.ones(shape), np.zeros(shape))

    def apply(self, x: Array) -> Array:
        """Return ``scale * x + shift`` for ``x`` of shape ``(..., genes)``.

        The dtype is that of `x`; float64 for NumPy and SciPy input that is not floating point.
        A SciPy sparse matrix stays sparse, which needs a shift of zero.

        Raises
        ------
        TypeError
            `x` is sparse and the shift would fill its zeros.
        """
        if hasattr(x, "tocsr"):
            return self._apply_sparse(x)
        if not isinstance(x, np.ndarray):
            y = x * self.scale + self.shift
            return y.to(x.dtype) if x.is_floating_point() else y
        # In double precision, as x and the shift may nearly cancel.
        y = np.multiply(x, self.scale, dtype=np.float64)
        y += self.shift
        return y.astype(_float_dtype(x.dtype), copy=False)

    def invert(self) -> Self:
        """Return the bridge that leads back.

        Raises
        ------
        ValueError
            Some scale is zero, so that the map cannot be undone.
        """
        if (self.scale == 0).any():
            msg = f"{int((self.scale == 0).sum())} features have scale 0: nothing leads back."
            raise ValueError(msg)
        return type(self)(1 / self.scale, -self.shift / self.scale)

    def compose(self, other: AffineBridge[Array]) -> Self:
        """Return the bridge that applies `self` first and `other` after it."""
        return type(self)(self.scale * other.scale, self.shift * other.scale + other.shift)

    def __getitem__(self, index: Any) -> Self:
        """Return the bridges at `index` of the leading axes."""
        return type(self)(self.scale[index], self.shift[index])

    def _apply_sparse(self, x: Any) -> Any:
        if (self.shift != 0).any():
            msg = (
                "The bridge shifts values, which would turn every zero of a sparse matrix into "
                "a number. Pass x.toarray() (in row blocks, if large), or use a bridge without "
                "shift (center=False)."
            )
            raise TypeError(msg)
        return x.multiply(self.scale).asformat(x.format).astype(_float_dtype(x.dtype))


def _float_dtype(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _limits(name: str, limits: tuple[float, float] | None, default: Limits) -> Limits:
    if limits is None:
        return default
    check_limits(name, limits)
    return Limits(*limits)


def check_limits(name: str, limits: Any) -> None:
    """Refuse what is no pair of limits ``(r_max >= 1, d_max >= 0)``; None is no limit.

    Raises
    ------
    TypeError
        It is no pair of numbers.
    ValueError
        One is out of range.
    """
    if limits is None:
        return
    pair = isinstance(limits, tuple | list | np.ndarray) and len(limits) == 2
    if not pair or not all(isinstance(of, int | float | np.number) for of in limits):
        msg = (
            f"{name} must be two numbers, (r_max, d_max), such as (2.0, 1.0) or (2.0, math.inf), "
            f"or None, received {limits!r}."
        )
        raise TypeError(msg)
    r_max, d_max = limits
    if not (r_max >= 1 and d_max >= 0):
        raise ValueError(f"{name} must be (r_max >= 1, d_max >= 0), received {tuple(limits)!r}.")


def comparable(std_a: Array, std_b: Array) -> tuple[Array, Array]:
    """Give both sides the same positive spread wherever either side has none."""
    both = (std_a > 0) & (std_b > 0)
    spread = std_a + std_b
    stand_in = spread + (spread == 0)
    return both * std_a + ~both * stand_in, both * std_b + ~both * stand_in
