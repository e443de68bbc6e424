"""Does denoised expression tell molecules that it has not seen?  Molecular cross-validation.

    python benchmarks/integration/molecules.py [--seeds 2] [--cells 6000] [--patience 8]

Needs the public sets in the folder BIOREN_DATA.  As Batson, Royer and Webber (2019, bioRxiv
786269) propose, the molecules of each cell are divided in two at random.  One half is prepared as
in data.py and seen by the methods; what they make of a cell has to tell the other half's counts of
the same genes.  Where counts are molecules, the halves' noise is independent, and the best guess
of a cell's expression has the least deviance.  Where they are reads (two of the five technologies
in pancreas), copies of one molecule come into both halves: noise is told, too, and the half
itself is hard to beat.

All is judged within batches, so that bioren's expression is put back on the scale of each cell's
own batch, see `own_scale`.  Log-expression becomes a cell's shares of its molecules, see
`Halves.shares`; told is the share of the Poisson deviance from the mean of the cell's batch that a
method explains, each batch weighing the same: 0 for the batch's mean, below 0 for what tells less.
A perfect guess is short of 1, as the held-out molecules have noise of their own.

The mean of logarithms is not the logarithm of the mean: what is averaged on the log scale is too
low for genes that are on in few cells.  So there are two tables: as it is, and with each gene's
total in each batch set to that of the seen half, for all methods alike.

A last table is about batches: with the largest batch as the reference, how much nearer the mean
decoded expression of a type is to the type's mean in the reference than the batch's own was.

Written is benchmarks/results/integration/molecules.csv, a row per run.  scVI is run where
scvi-tools is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from run import RESULTS, markdown, number
from scipy.sparse import csr_matrix
from scipy.special import xlogy
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from bioren import RenormAutoencoder
from bioren.adata.study import read_design, read_study
from bioren.network.training import LARGE_BATCH, TrainingOptions
from data import CORE, normalized, read

N_COMPONENTS = 20  # as many as bioren's embedding has dimensions
N_NEIGHBORS = 20
#: No gene is predicted below this share of its mean in the batch.
FLOOR = 0.1
#: Types of fewer cells in a batch or in the reference are not compared across batches.
MIN_CELLS = 20
TRAININGS = {
    "no training": TrainingOptions(max_epochs=0, progress=False),
    "trained": TrainingOptions(max_epochs=40, progress=False),
}


class Halves(NamedTuple):
    """Cells whose molecules are divided in two.

    Attributes
    ----------
    seen
        The first half, as data.py prepares it; counts in layers["counts"].
    held_out
        Counts of the second half, cells x genes of `seen`.
    held_out_log
        The same as log-expression.
    batch
        Batch of each cell, in ``range(batches)``.
    """

    seen: object
    held_out: np.ndarray
    held_out_log: np.ndarray
    batch: np.ndarray

    def batches(self) -> list[np.ndarray]:
        """Return the positions of each batch's cells."""
        return [np.flatnonzero(self.batch == b) for b in np.unique(self.batch)]

    def log_expression(self) -> np.ndarray:
        return self.seen.X.toarray()

    def counts(self) -> np.ndarray:
        return self.seen.layers["counts"].toarray().astype(float)

    def mean_shares(self) -> np.ndarray:
        """Return each gene's share of the seen molecules of the cell's batch; none is 0."""
        shares = np.empty(self.held_out.shape)
        for cells in self.batches():
            total = self.seen.layers["counts"][cells].sum(axis=0).A1 + 0.5
            shares[cells] = total / total.sum()
        return shares

    def shares(self, log_expression: np.ndarray, *, level: bool) -> np.ndarray:
        """Return predicted shares of each cell's molecules, which sum to 1.

        Parameters
        ----------
        log_expression
            On the scale of each cell's batch, cells x genes.
        level
            Whether to set each gene's total in each batch to that of the seen half.
        """
        mean = self.mean_shares()
        rate = np.expm1(np.clip(log_expression, 0, np.log1p(1e4)).astype(float)) / 1e4
        # Log-expression counts per 10,000 molecules of all genes, shares are of these genes.
        rate /= np.maximum(rate.sum(axis=1, keepdims=True), 1e-12)
        counts = self.counts()
        depth = counts.sum(axis=1)
        if level:
            for cells in self.batches():
                told = depth[cells] @ rate[cells]
                seen = mean[cells[0]] * depth[cells].sum()
                rate[cells] *= np.divide(seen, told, out=np.ones_like(told), where=told > 0)
        rate = np.maximum(rate, FLOOR * mean)
        return rate / rate.sum(axis=1, keepdims=True)

    def deviance(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the Poisson deviance of the held-out counts, and their number, by batch."""
        y = self.held_out
        expected = shares * y.sum(axis=1, keepdims=True)
        # Expected and observed counts have the same sum in each cell.
        by_cell = 2 * (xlogy(y, y) - xlogy(y, np.where(y > 0, expected, 1))).sum(axis=1)
        parts = [(by_cell[cells].sum(), y[cells].sum()) for cells in self.batches()]
        return tuple(np.array(parts).T)


def divided(name: str, n_cells: int, seed: int) -> Halves:
    """Return at most so many cells of a public set, each count divided by a fair coin."""
    rng = np.random.default_rng(seed)
    adata = read(Path(os.environ["BIOREN_DATA"]) / f"{name}.h5ad")
    adata = adata[np.sort(rng.permutation(adata.n_obs)[:n_cells])].copy()
    counts = csr_matrix(adata.X)
    counts.data = np.rint(counts.data).astype(np.int64)  # some of pancreas are not whole
    first = counts.copy()
    first.data = rng.binomial(counts.data, 0.5)
    second = counts - first
    adata.X = first.astype(np.float32)
    adata.X.eliminate_zeros()
    adata.layers["held_out"] = second.astype(np.float32)
    total = np.maximum(second.sum(axis=1).A1, 1)
    seen = normalized(adata)
    held_out = seen.layers.pop("held_out").toarray().astype(float)
    log = np.log1p(held_out / total[:, None] * 1e4)
    return Halves(seen, held_out, log, seen.obs["batch"].cat.codes.to_numpy())


def components(halves: Halves) -> tuple[np.ndarray, np.ndarray]:
    """Return log-expression rebuilt from each batch's own components, and smoothed over neighbors.

    Neighbors are those in the components, the cell itself among them.
    """
    x = halves.log_expression()
    rebuilt, smoothed = np.empty_like(x), np.empty_like(x)
    for cells in halves.batches():
        pca = PCA(min(N_COMPONENTS, len(cells) - 1), random_state=0)
        z = pca.fit_transform(x[cells])
        rebuilt[cells] = pca.inverse_transform(z)
        k = min(N_NEIGHBORS, len(cells))
        nearest = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(z)[1]
        smoothed[cells] = [x[cells[others]].mean(axis=0) for others in nearest]
    return rebuilt, smoothed


def fitted(halves: Halves, training: TrainingOptions, seed: int, reference: str | None = None):
    """Return a fitted model, its cells' placement, and the expression that it decodes."""
    model = RenormAutoencoder(training=training, rng=seed)
    design = read_design(halves.seen, "batch", reference=reference)
    placement = model.fit_study(read_study(halves.seen, design))
    if list(model.variable_genes_) != list(halves.seen.var_names):
        raise RuntimeError("The network does not see all genes that are scored.")
    return model, placement, model.fitted_.decoded(placement)


def own_scale(model: RenormAutoencoder, placement, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Return what bioren predicts of each cell in its own batch, in three ways.

    Returns
    -------
    dict
        ``"decoded"``: what users get, ``obsm["bioren_decoded"]``, after the bridge of the genes is
        undone.  It lacks what was removed in the embedding: the shifts by state and sample, and
        what goes with depth.
        ``"way back"``: these are put back too, and the decoder is told the sample, so that every
        step that led to the reference is undone.  This is the model's prediction for the cell.
        ``"network"``: the same without states and denoising, that is encoder and decoder alone.
    """
    import torch

    alignment = model.alignment_.of_genes(model.fitted_.population.variable)
    codes, placed = placement.codes, placement.placed
    network, denoiser = model.network_, model.fitted_.denoiser

    def undone(x: np.ndarray) -> np.ndarray:
        return alignment.full[codes].invert().apply(x)

    @torch.no_grad()
    def rebuilt(z: np.ndarray) -> np.ndarray:
        parts = [
            network.decode(torch.from_numpy(z[part]), torch.from_numpy(codes[part])).numpy()
            for part in np.array_split(np.arange(len(z)), len(z) // LARGE_BATCH + 1)
        ]
        return undone(np.concatenate(parts))

    @torch.no_grad()
    def encoded() -> np.ndarray:
        x = torch.from_numpy(placement.variable.toarray().astype(np.float32))
        return network.encode(x, torch.from_numpy(codes)).numpy()

    z = encoded()
    denoised = denoiser.denoised(placed.corrected, placed.share, placed.sample_specific)
    return {
        "decoded": undone(decoded),
        "way back": rebuilt(denoised + (z - placed.corrected)),
        "network": rebuilt(z),
    }


def scvi_expression(halves: Halves, seed: int) -> np.ndarray:
    """Return scVI's expected expression in each cell's own batch, log CP10k of these genes."""
    import scvi

    scvi.settings.seed = seed
    adata = halves.seen.copy()
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi.model.SCVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
    model.train(enable_progress_bar=False)
    return np.log1p(1e4 * model.get_normalized_expression(return_numpy=True))


def predictions(halves: Halves, seed: int) -> Iterator[tuple[str, np.ndarray, float, float]]:
    """Yield method, log-expression in each cell's own batch, seconds, and the epoch kept.

    The epoch is 0 where training did not help and the network is the components that it began as.
    """
    yield "the half itself", halves.log_expression(), 0.0, np.nan
    start = time.perf_counter()
    rebuilt, smoothed = components(halves)
    seconds = time.perf_counter() - start
    yield f"{N_COMPONENTS} components of the batch", rebuilt, seconds, np.nan
    yield f"{N_NEIGHBORS} neighbors in the batch", smoothed, seconds, np.nan
    for name, options in TRAININGS.items():
        start = time.perf_counter()
        model, placement, decoded = fitted(halves, options, seed)
        seconds = time.perf_counter() - start
        kept = int(model.history_["held_out"].argmin())
        for way, x in own_scale(model, placement, decoded).items():
            yield f"bioren, {name}: {way}", x, seconds, kept
    if importlib.util.find_spec("scvi"):
        start = time.perf_counter()
        x = scvi_expression(halves, seed)
        yield "scVI", x, time.perf_counter() - start, np.nan


def within(name: str, halves: Halves, seed: int) -> Iterator[dict]:
    """Yield the deviance explained by each method, as it is and with genes leveled."""
    nothing, molecules = halves.deviance(halves.mean_shares())
    for method, x, seconds, kept in predictions(halves, seed):
        row = {"data": name, "seed": seed, "method": method, "seconds": seconds, "epoch": kept}
        for case, level in (("as it is", False), ("leveled", True)):
            left, _ = halves.deviance(halves.shares(x, level=level))
            row[case] = np.mean(1 - left / nothing)
            row[f"{case}, pooled"] = 1 - left.sum() / nothing.sum()
            row[f"{case}, per molecule"] = left.sum() / molecules.sum()
        yield row


def across(name: str, halves: Halves, seed: int) -> Iterator[dict]:
    """Yield how much nearer types come to the reference: 1 is there, 0 is no nearer.

    Squared distances of means over genes; the reference's are of the held-out half, so that its
    own noise is in no prediction.  Types are summed.
    """
    adata = halves.seen
    reference = adata.obs["batch"].value_counts().index[0]
    kind, batch = (adata.obs[key].to_numpy(dtype=str) for key in ("cell_type", "batch"))
    x = halves.log_expression()
    groups = [
        ((kind == k) & (batch == b), (kind == k) & (batch == reference))
        for k in np.unique(kind)
        for b in np.unique(batch[batch != reference])
    ]
    groups = [pair for pair in groups if min(cells.sum() for cells in pair) >= MIN_CELLS]

    def distance(values: np.ndarray) -> float:
        far = [values[a].mean(axis=0) - halves.held_out_log[b].mean(axis=0) for a, b in groups]
        return float(np.square(far).sum())

    for training, options in TRAININGS.items():
        model, placement, decoded = fitted(halves, options, seed, reference)
        for way, values in (
            ("corrected", model.fitted_.corrected(placement)),
            ("decoded", decoded),
        ):
            yield {
                "data": name,
                "seed": seed,
                "method": f"bioren, {training}: {way}",
                "across": 1 - distance(values) / distance(x),
            }


def table(rows: pd.DataFrame, value: str, digits: int = 3) -> str:
    """Return methods x data sets as Markdown: means over the seeds."""
    wide = rows.pivot_table(index="method", columns="data", values=value, sort=False)
    wide = wide.reindex(columns=rows["data"].unique())
    lines = [[name, *(number(v, digits) for v in row)] for name, row in wide.iterrows()]
    return markdown(["", *wide.columns], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=list(CORE), help="names of public sets")
    parser.add_argument("--seeds", type=int, default=2, help="divisions of the molecules")
    parser.add_argument("--cells", type=int, default=6000, help="at most so many of each set")
    parser.add_argument("--patience", type=int, default=8, help="of the training, in epochs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    if "BIOREN_DATA" not in os.environ:
        parser.error("set BIOREN_DATA to the folder of the public sets")
    if not importlib.util.find_spec("scvi"):
        print("scvi-tools is not installed: scVI is left out", file=sys.stderr)
    warnings.simplefilter("ignore")
    TRAININGS["trained"] = TRAININGS["trained"]._replace(patience=options.patience)

    told, nearer = [], []
    for name in options.data:
        for seed in range(options.seeds):
            halves = divided(name, options.cells, seed)
            told += within(name, halves, seed)
            nearer += across(name, halves, seed)
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    told, nearer = pd.DataFrame(told), pd.DataFrame(nearer)
    options.output.mkdir(parents=True, exist_ok=True)
    pd.concat([told, nearer]).to_csv(options.output / "molecules.csv", index=False)
    for title, rows, value in (
        ("Deviance explained, as it is", told, "as it is"),
        ("Deviance explained, genes leveled", told, "leveled"),
        ("Types across batches: share of the distance removed", nearer, "across"),
    ):
        print(f"\n## {title}\n\n{table(rows, value)}")
    print(f"\n## Seconds\n\n{table(told, 'seconds', 1)}")
    print(f"\n## Epoch kept\n\n{table(told, 'epoch', 1)}")


if __name__ == "__main__":
    main()
