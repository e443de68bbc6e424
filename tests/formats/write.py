"""Write fixtures of the current file format, which later versions must be able to read.

When `bioren.files.container.FORMAT_VERSION` is raised, run this once and commit what it writes::

    .venv/bin/python tests/formats/write.py

A fixture that exists is never replaced: it is what proves that old files stay readable.  What
the query becomes, the numbers in the ``.npz`` files, is written anew for all: commit a change of
these only where mapping itself was changed on purpose.
"""

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

N_GENES = 30


def cells(sizes, seed):
    """Return log-expression of samples whose numbers depend on no random generator's version."""
    import anndata
    import pandas as pd

    sample = np.repeat(np.arange(len(sizes)), sizes)
    i, gene = np.arange(len(sample))[:, None], np.arange(N_GENES)
    kind = (i * 7 + seed) % 3
    profile = 3 + np.sin(gene * (1.3 + kind))
    noise = np.sin(i * 12.9898 + gene * 78.233 + seed) * 43758.5453
    noise = 0.8 * (noise - np.floor(noise) - 0.5)
    x = profile + noise + 0.3 * sample[:, None] * np.cos(gene * 0.7 + seed)
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical.from_codes(sample, list("abc")[: len(sizes)]),
            "type": pd.Categorical.from_codes(kind[:, 0], ["x", "y", "z"]),
            "depth": np.cos(i[:, 0] * 3.7),
        },
        index=[f"cell{n}" for n in range(len(sample))],
    )
    var = pd.DataFrame({"highly_variable": gene % 3 > 0}, index=[f"gene{g}" for g in gene])
    return anndata.AnnData(x.astype(np.float32), obs=obs, var=var)


def query():
    """Return the cells that are mapped onto each fixture: some genes missing, another order."""
    return cells((12, 9), seed=5)[:, ::-1][:, 2:].copy()


def mapped(path):
    """Return, by name, what of the query each fixture must give again."""
    import bioren

    adata, population = query(), bioren.Population.load(path)
    alone = population.place(adata.X, population.columns_of(adata.var_names))
    found = {"bridged": alone.bridged, "r": alone.alignment.r, "d": alone.alignment.d}
    if "model" in path.name:
        result = bioren.load(path).map(adata, batch_key="sample")
        found |= {"embedding": result.embedding, "corrected": result.expression(adata.X)}
        found |= {"score": result.score, "probability": result.labels["type"][1]}
        order = np.argsort(result.genes.query)
        effects = result.alignment
        found |= {"of_model_d": effects.d[:, order], "of_model_r": effects.r[:, order]}
    return {name: np.asarray(array, dtype=np.float32) for name, array in found.items()}


def main():
    """Write the fixtures of this version, and what the query becomes on any."""
    import bioren
    from bioren.files.container import FORMAT_VERSION
    from bioren.network.training import TrainingOptions

    training = TrainingOptions(max_epochs=2, progress=False)
    model = bioren.RenormAutoencoder(3, 6, training=training)
    adata = cells((60, 45), seed=1)
    model.fit(adata, "sample", labels_key="type", covariates=["depth"])
    model.learn_labels(adata, "type")
    start = f"format{FORMAT_VERSION}"
    for name, write in (
        ("model", model.save),
        ("published-model", model.publish),
        ("population", model.population_.save),
    ):
        path = FOLDER / f"{start}-{name}.bioren"
        if not path.exists():
            write(path)
    for path in sorted(FOLDER.glob("*.bioren")):
        np.savez_compressed(path.with_suffix(".npz"), **mapped(path))


if __name__ == "__main__":
    main()
