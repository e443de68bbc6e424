"""Figures of the last comparison and of its cost: PNG files beside the tables.

    python benchmarks/integration/figures.py [--output FOLDER]

scores.png: bio conservation against removal of batch effects, means over the seeds.
umap_DATA.png: the cells that were scored, by method (seed 0), colored by batch and by cell type;
of a graph the layout of all its cells is made and those are shown.
scaling.png: wall time and peak memory against the number of cells, where scaling.py has run.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from measure import file_stem, load
from methods import METHODS, Graph
from run import MEANS, RESULTS

mpl.use("Agg")
from matplotlib import pyplot as plt

OURS, PEERS = "tab:blue", "0.35"
# Twenty colors that differ, dark and light ones apart, so that few batches get the dark ones.
COLORS = [plt.get_cmap("tab20")(i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
ANGLES = np.arange(12) * np.pi / 6
AROUND = [(d * np.cos(a), d * np.sin(a)) for d in (8, 14, 22, 32, 44) for a in ANGLES]


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path}", flush=True)


def color_of(name: str) -> str:
    return OURS if METHODS[name].ours else PEERS


def draw_scores(runs: pd.DataFrame, path: Path) -> None:
    """Draw one panel per data set, methods labeled."""
    means = runs.groupby(["data", "method"], sort=False)[MEANS].mean().dropna()
    sets = means.index.unique("data")
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 4.2 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(sets) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, sets, strict=False):
        found = means.loc[name]
        colors = [color_of(method) for method in found.index]
        axis.scatter(found["batch"], found["bio"], c=colors, s=22, zorder=3)
        axis.margins(0.22)
        axis.set(title=name, xlabel="batch correction", ylabel="bio conservation")
        axis.grid(alpha=0.25)
    figure.canvas.draw()  # labels are placed in pixels, which the layout decides
    for axis, name in zip(axes.flat, sets, strict=False):
        label(axis, means.loc[name])
    figure.set_layout_engine("none")
    save(figure, path)


def label(axis, found: pd.DataFrame) -> None:
    """Write each method's name beside its point, where no other name or point is hidden."""
    renderer = axis.figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    points = axis.transData.transform(found[["batch", "bio"]].to_numpy())
    taken: list = []
    for method, point in zip(found.index, points, strict=True):
        best = None
        for dx, dy in AROUND:
            text = axis.annotate(
                method,
                axis.transData.inverted().transform(point),
                xytext=(dx, dy),
                textcoords="offset points",
                ha="left" if dx > 1 else "right" if dx < -1 else "center",
                va="center",
                fontsize=8,
                color=color_of(method),
                arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.6, "shrinkA": 0},
            )
            text.update_positions(renderer)  # else its extent is that of no offset
            box = mpl.text.Text.get_window_extent(text, renderer).padded(1)
            hidden = sum(box.overlaps(other) for other in taken)
            hidden += sum(box.padded(6).contains(*other) for other in points)
            hidden += 10 * (not (frame.contains(*box.p0) and frame.contains(*box.p1)))
            if best is None or hidden < best[0]:
                if best is not None:
                    best[1].remove()
                best = hidden, text, box
            else:
                text.remove()
            if hidden == 0:
                break
        taken.append(best[2])


def layout_of(result: np.ndarray | Graph, scored: np.ndarray) -> np.ndarray:
    """Return two coordinates of the cells that were scored, by UMAP as scanpy sets it."""
    import anndata
    import scanpy as sc

    if not isinstance(result, Graph):
        cells = anndata.AnnData(result[scored])
        sc.pp.neighbors(cells, use_rep="X", random_state=0)
        sc.tl.umap(cells, random_state=0)
        return cells.obsm["X_umap"]
    cells = anndata.AnnData(np.zeros((result.distances.shape[0], 1), np.float32))
    cells.obsp["connectivities"] = result.connectivities
    cells.obsp["distances"] = result.distances
    cells.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"method": "umap"},
    }
    sc.tl.umap(cells, random_state=0)
    return cells.obsm["X_umap"][scored]


def draw_layouts(folder: Path, methods: list[str], path: Path) -> None:
    """Draw a column per method; batches in the upper row, cell types in the lower."""
    with np.load(folder / "cells.npz") as cells:
        scored = cells["scored"]
        labels = {"batch": cells["batch"][scored], "cell type": cells["cell_type"][scored]}
    order = np.random.default_rng(0).permutation(len(scored))  # no batch lies on top
    figure, axes = plt.subplots(
        2, len(methods), figsize=(1.6 * len(methods) + 2, 4), layout="constrained", squeeze=False
    )
    for column, method in zip(axes.T, methods, strict=True):
        z = layout_of(load(folder / f"{file_stem(method, 0)}.npz"), scored)
        for axis, values in zip(column, labels.values(), strict=True):
            _, codes = np.unique(values, return_inverse=True)
            colors = np.array(COLORS)[codes % len(COLORS)]
            axis.scatter(*z[order].T, c=colors[order], s=4e3 / (len(z) + 1000), lw=0)
            axis.set(xticks=[], yticks=[])
            axis.set_box_aspect(1)
            axis.spines[:].set_color("0.8")
        column[0].set_title(method.replace(", ", ",\n"), fontsize=11, color=color_of(method))
    for row, (name, values) in zip(axes, labels.items(), strict=True):
        row[0].set_ylabel(name)
        dots = [
            mpl.lines.Line2D([], [], marker="o", ls="", color=COLORS[i % len(COLORS)], label=kind)
            for i, kind in enumerate(np.unique(values))
        ]
        row[-1].legend(
            handles=dots, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9
        )
    figure.suptitle(folder.name, fontsize=12)
    save(figure, path)


def draw_scaling(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds and gigabytes against cells, both axes logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    columns = {"seconds": "seconds (wall time)", "peak_gb": "peak memory, GB"}
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for name, group in table.groupby("task", sort=False):
            ours = name.startswith("bioren")
            axis.plot(group["cells"], group[column], "o-" if ours else "s--", ms=4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="cells", ylabel=title)
        cells = sorted(table["cells"].unique())
        axis.set_xticks(cells, [f"{n:,}" for n in cells], rotation=30)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    folder = parser.parse_args().output
    warnings.simplefilter("ignore")
    if (folder / "scores.csv").exists():
        runs = pd.read_csv(folder / "scores.csv")
        draw_scores(runs, folder / "scores.png")
        for name, group in runs.groupby("data", sort=False):
            methods = list(group["method"].unique())
            draw_layouts(folder / "runs" / name, methods, folder / f"umap_{name}.png")
    if (folder / "scaling.csv").exists():
        draw_scaling(pd.read_csv(folder / "scaling.csv"), folder / "scaling.png")


if __name__ == "__main__":
    main()
