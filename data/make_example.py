"""Make data/example.h5ad: simulated counts of four cell types in three samples.

Run it as ``python data/make_example.py``.  It needs bioren's dependencies and a second of time;
the same versions give the same file.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

N_GENES = 400
#: Cells of each type: the samples differ in composition, and one type is missing from one.
CELLS = pd.DataFrame(
    {
        "T cell": [130, 60, 90],
        "B cell": [20, 90, 40],
        "monocyte": [50, 40, 70],
        "platelet": [0, 15, 10],
    },
    index=["monday", "tuesday", "friday"],
)
#: Molecules that a typical cell of the sample yields.
DEPTH = pd.Series({"monday": 600, "tuesday": 400, "friday": 800})
#: How far a sample's yield of one gene strays from its yield of the others, on the log scale.
EFFECT = 0.6


def make_example() -> AnnData:
    """Return Poisson counts around a profile per type, times a known factor per sample and gene."""
    rng = np.random.default_rng(0)
    common = rng.lognormal(0, 1.3, N_GENES)
    specific = np.exp(rng.normal(0, 1.2, (CELLS.shape[1], N_GENES)) * (rng.random(N_GENES) < 0.3))
    profiles = common * specific  # types x genes

    log_factor = rng.normal(0, EFFECT, (CELLS.shape[0], N_GENES))
    log_factor -= log_factor.mean(axis=0)
    yields = np.exp(log_factor)  # samples x genes

    cells = CELLS.stack()
    sample, cell_type = (
        np.repeat(codes, cells.to_numpy()) for codes in np.indices(CELLS.shape).reshape(2, -1)
    )
    expected = profiles[cell_type] * yields[sample]
    expected /= expected.sum(axis=1, keepdims=True)
    depth = DEPTH[CELLS.index].to_numpy()[sample] * rng.lognormal(0, 0.3, len(sample))
    counts = rng.poisson(expected * depth[:, None])

    order = rng.permutation(len(sample))
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical(CELLS.index[sample[order]], categories=CELLS.index),
            "cell_type": pd.Categorical(CELLS.columns[cell_type[order]]),
        },
        index=[f"cell{i + 1}" for i in range(len(sample))],
    )
    var = pd.DataFrame(index=[f"gene{i + 1}" for i in range(N_GENES)])
    adata = AnnData(sparse.csr_matrix(counts[order].astype(np.float32)), obs=obs, var=var)
    adata.uns["planted_log_factor"] = log_factor.astype(np.float32)
    adata.uns["provenance"] = "Simulated by data/make_example.py of bioren; no real cells."
    return adata


if __name__ == "__main__":
    make_example().write_h5ad(Path(__file__).with_name("example.h5ad"), compression="gzip")
