"""``bioren.pl``: pictures of the batch effects that were found, and of what was done about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bioren.adata.matrix import check_log_scale, read_cells, read_embedding
from bioren.adata.obs import read_batches
from bioren.adata.record import Effects, read_effects, read_history
from bioren.arrays.groups import BatchKey
from bioren.effects.sizes import beyond_chance, clipped, effect_sizes
from bioren.plotting.style import (
    DIVERGING,
    PALETTE,
    category_style,
    label_axis,
    new_axes,
    settle,
    shortened,
)
from bioren.wording import choices, listed

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["batch_effects", "before_after", "limits", "samples", "training_history"]

#: Names of so many samples, or categories, fit into a legend.
LONGEST_LEGEND = 40

#: Whole numbers of so many different values name categories; more are a quantity.
MAX_CODES = 20

#: Cells are shrunk in so many handfuls, each with all categories.
HANDFULS = 6

INK, MUTED, ALARM = "#222222", "#8a8a8a", "#D55E00"


def batch_effects(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 30,
    key: str = "bioren",
    ax: Axes | None = None,
) -> Axes:
    """Draw the shift d of each sample for the genes that are most affected, as a heatmap.

    Red: the sample measures more of the gene than the reference does; blue: less.  A dot marks
    what lies within two standard errors of 0 and may be chance.

    Parameters
    ----------
    adata
        After `bioren.tl.integrate` or `bioren.pp.bridge`.
    genes
        Genes to draw, in this order; None: the most affected ones.
    n_genes
        How many genes are drawn if `genes` is None: in turn those of each sample whose d is
        furthest beyond two standard errors.  They stand beside genes of which the same samples
        have more or less.
    key
        Name of the record in ``adata.uns``.
    ax
        Where to draw; None: a new figure that is tall enough for all names.  In a small one
        letters get smaller, then names are left out.

    Returns
    -------
    matplotlib.axes.Axes
        Genes from left to right, samples from top to bottom.

    Raises
    ------
    KeyError
        There is no such record or gene.
    ValueError
        `n_genes` is below 1, or `genes` is empty.
    """
    effects = read_effects(adata, key)
    columns = _affected(effects, n_genes) if genes is None else _positions(effects, genes)
    d, error = effects.d[:, columns], effects.standard_error_d[:, columns]
    # Five more rows' height for the names of genes and the colors.
    ax = ax or new_axes(len(effects.samples) + 5, 3.5 + 0.2 * len(columns))
    # The few most extreme values alone would leave all others pale.
    most = max(float(np.quantile(np.abs(d), 0.98)), 1e-6)
    image = ax.imshow(d, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto")
    samples, positions = np.nonzero(np.abs(d) < 2 * error)
    ax.scatter(positions, samples, s=2, color=INK, linewidths=0)
    extend = "both" if np.abs(d).max() > most else "neither"
    bar = ax.figure.colorbar(
        image, ax=ax, extend=extend, location="top", shrink=0.7, aspect=40, pad=0.02
    )
    bar.set_label("d (standard deviations)", fontsize=9)
    ax.set(xlabel="gene (dot: may be chance)", ylabel="sample")
    names = shortened([effects.genes[i] for i in columns], 16), shortened(effects.samples)
    for _ in range(2):  # the first labels take room, in which the second ones have to fit
        settle(ax)
        for axis, labels in zip((ax.xaxis, ax.yaxis), names, strict=True):
            label_axis(axis, labels)
    return ax


def samples(adata: AnnData, *, key: str = "bioren", ax: Axes | None = None) -> Axes:
    """Draw the size of each sample's batch effect; samples that stand out are named in red.

    The size of the shift is the root mean square of d over the genes, that of the scale the root
    mean square of ``log2(r)``; squared standard errors are subtracted before, so that chance
    alone gives a size near 0.  A sample stands out that lies more than three robust standard
    deviations (1.4826 times the median absolute deviation, at least a tenth of the median and
    .02) above the median of the samples, by either size; the fewer cells it has, the farther, as
    its size is uncertain.  Among fewer than four samples none does.

    Parameters
    ----------
    adata
        After `bioren.tl.integrate` or `bioren.pp.bridge`.
    key
        Name of the record in ``adata.uns``.
    ax
        Where to draw; None: a new figure that is tall enough for all names.

    Returns
    -------
    matplotlib.axes.Axes
        Samples from top to bottom, the largest shift first; with numbers of cells.

    Raises
    ------
    KeyError
        There is no such record.
    """
    effects = read_effects(adata, key)
    sizes = effect_sizes(
        effects.r, effects.d, effects.standard_error_r, error_d=effects.standard_error_d
    )
    order = np.argsort(-sizes.shift, kind="stable")
    ax = ax or new_axes(len(order), 7.0)
    coordinates = np.arange(len(order))
    ax.hlines(coordinates, 0, np.maximum(sizes.shift, sizes.scale)[order], color="0.88", zorder=1)
    for size, far, color, marker, name in (
        (sizes.shift, sizes.far_shift, PALETTE[0], "o", "shift (from d)"),
        (sizes.scale, sizes.far_scale, PALETTE[1], "D", "scale (from log2 r)"),
    ):
        ax.scatter(size[order], coordinates, s=26, color=color, marker=marker, label=name, zorder=3)
        there = np.isfinite(far[order])
        ax.vlines(
            far[order][there],
            coordinates[there] - 0.5,
            coordinates[there] + 0.5,
            color=color,
            linestyle=":",
        )
    if np.isfinite(sizes.far_shift).any():
        ax.plot([], [], color=INK, linestyle=":", label="beyond: stands out")
    ax.set_xlim(left=0)
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set(xlabel="root mean square over all genes", ylabel="sample (cells)")
    outlier = sizes.outlier[order]
    short = shortened(effects.samples)
    names = [f"{short[i]} ({effects.cells[i]:,})" for i in order]
    _legend_above(ax)
    settle(ax)
    label_axis(ax.yaxis, names, first=np.flatnonzero(outlier).tolist())
    for place, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True):
        if outlier[int(place)]:
            label.set(color=ALARM, fontweight="bold")
    return ax


def limits(
    adata: AnnData,
    *,
    of: Literal["d", "r"] = "d",
    key: str = "bioren",
    ax: Axes | None = None,
) -> Axes:
    """Draw how ``|d|``, or r, spreads over the genes of each sample, and the limit that applied.

    Parameters
    ----------
    adata
        After `bioren.tl.integrate` or `bioren.pp.bridge`.
    of
        ``"d"``, the shift, or ``"r"``, the scale.
    key
        Name of the record in ``adata.uns``.
    ax
        Where to draw; None: a new figure that is tall enough for all names.

    Returns
    -------
    matplotlib.axes.Axes
        Samples from top to bottom: the median (point), the middle half (thick) and all but the
        outermost hundredths (thin) of the genes.  A dashed line is the limit that
        ``max_removed`` sets; on the right, the share of genes of which more would have been
        removed without it.

    Raises
    ------
    KeyError
        There is no such record.
    ValueError
        `of` is neither ``"d"`` nor ``"r"``.
    """
    if of not in ("d", "r"):
        raise ValueError(f"of={of!r}: name 'd', the shift, or 'r', the scale.")
    effects = read_effects(adata, key)
    ax = ax or new_axes(len(effects.samples), 7.0)
    most = effects.settings.get("max_removed", (np.inf, np.inf))[0 if of == "r" else 1]
    values = np.abs(effects.d) if of == "d" else effects.r
    held_back = clipped(
        effects.removable_r, effects.d, effects.standard_error_d, settings=effects.settings
    )[of == "d"]

    coordinates = np.arange(len(effects.samples))
    low, first, median, third, high = np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99], axis=1)
    ax.hlines(coordinates, low, high, color=PALETTE[0], linewidth=1)
    ax.hlines(coordinates, first, third, color=PALETTE[0], linewidth=4)
    ax.scatter(median, coordinates, s=22, color="white", edgecolors=PALETTE[0], zorder=3)
    if of == "d":
        ax.set_xlim(left=0)
        lines = [most]
        ax.set_xlabel("|d| (standard deviations)")
    else:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: _fraction(value))
        lines = [1 / most, most]
        ax.axvline(1, color="0.85", zorder=0)
        ax.set_xlabel("r (ratio of standard deviations)")
    shown = [line for line in lines if 0 < line < np.inf]
    for line in shown:
        ax.axvline(line, color=ALARM, linestyle="--", linewidth=1.2)
    strength = effects.settings.get("strength", 1.0)
    title = f"limit {' and '.join(map(_fraction, shown))}" if shown else "no limit"
    title += f", strength {strength:g}" if strength < 1 else ""
    ax.set_title(title, loc="left", fontsize=9, color=ALARM if shown else INK)
    ax.set_ylim(len(coordinates) - 0.4, -0.6)
    ax.set_ylabel("sample")
    settle(ax)
    size = label_axis(ax.yaxis, shortened(effects.samples))
    if shown:
        at_edge = ax.get_yaxis_transform()
        for place in ax.get_yticks().astype(int):
            text = f"{held_back[place]:.1%}"
            ax.text(1.02, place, text, transform=at_edge, fontsize=size, va="center")
        ax.annotate(
            "held\nback",
            (1.02, 1),
            xytext=(0, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=size,
            va="bottom",
        )
    return ax


def training_history(adata: AnnData, *, key: str = "bioren", ax: Axes | None = None) -> Axes:
    """Draw the reconstruction error of training and held-out cells by epoch.

    Epoch 0 is the start, the principal components.  Where training did not help, the network
    stays there.

    Parameters
    ----------
    adata
        After `bioren.tl.integrate`.
    key
        Name of the record in ``adata.uns``.
    ax
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The dotted line marks the epoch that was kept.

    Raises
    ------
    KeyError
        There is no such record, or it has no history.
    """
    from matplotlib.ticker import MaxNLocator

    history = read_history(adata, key)
    ax = ax or new_axes(8, 6.0)
    for column, name, color, style in (
        ("training", "training cells", PALETTE[0], "o-"),
        ("held_out", "held-out cells", PALETTE[1], "^-"),
    ):
        ax.plot(history["epoch"], history[column], style, color=color, label=name, markersize=4)
    best = int(history["epoch"][history["kept"]].iloc[0])
    ax.axvline(best, color=MUTED, linestyle=":", label=f"kept: epoch {best}", zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(history) == 1:
        ax.set_xlim(-0.5, 0.5)
    ax.set(xlabel="epoch", ylabel="error (share of variance)")
    _legend_above(ax)
    return ax


def before_after(
    adata: AnnData,
    *,
    color: str | None = None,
    before: str = "X_pca",
    after: str = "X_bioren",
    key: str = "bioren",
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> np.ndarray:
    """Draw the cells before and after the correction, side by side.

    Of an embedding of more than two dimensions the first two principal components are drawn.

    Parameters
    ----------
    adata
        After `bioren.tl.integrate`.
    color
        Column of ``adata.obs``; None: the samples that were integrated.
    before, after
        Embeddings in ``adata.obsm``.  If there is no ``"X_pca"``, the principal components of
        the variable genes are computed, and not kept.
    key
        Name of the record in ``adata.uns``.
    ax
        Two axes to draw on; None: a new figure.

    Returns
    -------
    numpy.ndarray
        The two `matplotlib.axes.Axes`.

    Raises
    ------
    KeyError
        There is no such record, column or embedding.
    ValueError
        `ax` are not two; an embedding cannot be drawn.
    """
    record = read_effects(adata, key)
    given = None if ax is None else np.array(ax, dtype=object).ravel()
    if given is not None and len(given) != 2:
        raise ValueError(f"before_after draws on two axes, received {len(given)}: ax=(one, two)")
    coordinates = [
        _components(adata, record)
        if basis == "X_pca" and basis not in adata.obsm
        else _plane(adata, basis)
        for basis in (before, after)
    ]
    values = _colors(adata, color if color is not None else record.batch_key)
    axes = new_axes(10, 11.0, columns=2) if given is None else given
    # No sample hides another, whatever the order of cells; large data in smaller points.
    order = np.random.default_rng(0).permutation(adata.n_obs)
    size = float(np.clip(20_000 / adata.n_obs, 1.5, 14))
    for panel, basis, place, title in zip(
        axes, (before, after), coordinates, ("before", "after"), strict=True
    ):
        name = basis.removeprefix("X_")
        _scatter(panel, place[order], values, order=order, size=size)
        panel.set_title(title, loc="left")
        panel.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
    _explain_colors(axes[1], values)
    return axes


def _affected(effects: Effects, n_genes: int) -> np.ndarray:
    """Return the genes that are most affected in each sample in turn, similar ones together."""
    if n_genes < 1:
        raise ValueError(f"n_genes must be 1 or more, received {n_genes}.")
    excess = beyond_chance(effects.d, effects.standard_error_d)
    rank = np.argsort(np.argsort(-excess, axis=1, kind="stable"), axis=1).min(axis=0)
    chosen = np.lexsort([-excess.max(axis=0), rank])[:n_genes]
    if len(chosen) < 3:
        return chosen
    from scipy.cluster.hierarchy import leaves_list, linkage

    d = effects.d[:, chosen].T
    length = np.linalg.norm(d, axis=1, keepdims=True)
    tree = linkage(d / np.where(length > 0, length, 1), "average", optimal_ordering=True)
    return chosen[leaves_list(tree)]


def _positions(effects: Effects, genes: Sequence[str]) -> np.ndarray:
    wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if not wanted:
        raise ValueError("genes is empty: name some, or leave it out for the most affected ones.")
    found = pd.Index(effects.genes).get_indexer(wanted)
    missing = [name for name, place in zip(wanted, found, strict=True) if place < 0]
    if missing:
        msg = (
            f"The record has no effect on {len(missing)} of the genes: {listed(missing)}; "
            f"{choices('it', missing[0], effects.genes)}."
        )
        raise KeyError(msg)
    return found


def _fraction(value: float) -> str:
    """Write powers of two as 1/4, 1/2, 1, 2, and others as numbers."""
    if value < 1 and float(1 / value).is_integer():
        return f"1/{1 / value:.0f}"
    return f"{value:.3g}"


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, fontsize=8, frameon=False)


def _components(adata: AnnData, effects: Effects) -> np.ndarray:
    """Return the first two principal components of the variable genes."""
    cells = read_cells(adata, effects.settings.get("layer"))
    check_log_scale(cells.values)
    return _two_components(cells.variable_matrix())


def _plane(adata: AnnData, basis: str) -> np.ndarray:
    z = read_embedding(adata, basis)
    return z if z.shape[1] == 2 else _two_components(z)


def _two_components(x: Any) -> np.ndarray:
    from sklearn.decomposition import PCA

    solver = "arpack" if min(x.shape) > 2 else "full"
    return PCA(2, svd_solver=solver, random_state=0).fit_transform(x)


def _colors(adata: AnnData, key: BatchKey) -> pd.Series:
    """Return numbers, or categories, in which a missing value is a category of its own."""
    if not isinstance(key, str):  # several columns, whose combinations are the samples
        batches = read_batches(adata, key)
        return pd.Series(pd.Categorical.from_codes(batches.codes, batches.names))
    if key not in adata.obs:
        raise KeyError(f"obs has no column {key!r}; {choices('obs', key, adata.obs)}.")
    column = adata.obs[key].reset_index(drop=True)
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if number and (pd.api.types.is_float_dtype(column) or column.nunique() > MAX_CODES):
        return column.astype(float)
    column = column.astype("category").cat.remove_unused_categories()
    column = column.cat.rename_categories([str(name) for name in column.cat.categories])
    if column.isna().any():
        missing = "missing" if "missing" not in column.cat.categories else "(missing)"
        column = column.cat.add_categories(missing).fillna(missing)
    return column


def _scatter(ax: Axes, z: np.ndarray, values: pd.Series, *, order: np.ndarray, size: float) -> None:
    if values.dtype == float:
        shown = values.to_numpy()[order]
        ax.scatter(z[:, 0], z[:, 1], c=shown, cmap="cividis", s=size, linewidths=0, rasterized=True)
        return
    codes = values.cat.codes.to_numpy()[order]
    styles = [category_style(number) for number in range(len(values.cat.categories))]
    colors, markers = (np.array(part) for part in zip(*styles, strict=True))
    # Drawn in handfuls, as a scatter has one marker only: else the last shape lies on top.
    for part in np.array_split(np.arange(len(codes)), min(HANDFULS, len(codes))):
        for marker in dict.fromkeys(markers[codes[part]]):
            there = part[markers[codes[part]] == marker]
            x, y = z[there].T
            color = colors[codes[there]]
            ax.scatter(x, y, c=color, marker=marker, s=size, linewidths=0, rasterized=True)


def _explain_colors(ax: Axes, values: pd.Series) -> None:
    if values.dtype == float:
        ax.figure.colorbar(ax.collections[0], ax=ax, label=str(values.name), shrink=0.8)
        return
    names = list(values.cat.categories)
    for number, label in enumerate(shortened(names[:LONGEST_LEGEND])):
        color, marker = category_style(number)
        ax.scatter([], [], color=color, marker=marker, s=24, linewidths=0, label=label)
    if len(names) > LONGEST_LEGEND:
        ax.scatter([], [], s=0, label=f"and {len(names) - LONGEST_LEGEND} more")
    columns = 1 if len(names) <= 14 else 2
    size = 8 if len(names) <= 14 else 7
    ax.legend(
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=columns,
        fontsize=size,
        frameon=False,
        handletextpad=0.2,
        columnspacing=0.8,
    )
