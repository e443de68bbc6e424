"""The demonstration keeps its promises."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from scipy.stats import rankdata
from typer.testing import CliRunner, Result

from bioren.cli.commands import app

LABS = ["Amsterdam", "Boston", "Chengdu", "Dakar"]


class Run(NamedTuple):
    result: Result
    folder: Path  # where it was called
    seconds: float


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run ``bioren demo --quiet`` once, as a user would, in an empty folder."""
    folder, before = tmp_path_factory.mktemp("demo"), Path.cwd()
    start = time.process_time()  # of all threads: other work on the machine does not count
    os.chdir(folder)
    try:
        result = CliRunner().invoke(app, ["demo", "--quiet"])
    finally:
        os.chdir(before)
    return Run(result, folder, time.process_time() - start)


@pytest.fixture(scope="session")
def data(demo: Run) -> anndata.AnnData:
    return anndata.read_h5ad(demo.folder / "bioren-demo" / "demo.h5ad")


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def neighbor_shares(z: np.ndarray, labels: pd.Series, k: int = 15) -> float:
    """Return how many of a cell's nearest others carry its label: all pairs, no tree."""
    z = z.astype(float)
    distance = np.square(z[:, None] - z[None]).sum(axis=-1)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :k]
    codes = labels.cat.codes.to_numpy()
    return float((codes[nearest] == codes[:, None]).mean())


def printed(demo: Run, row: str) -> list[float]:
    """Return the numbers of the row of a table that the command printed."""
    (line,) = (text for text in demo.result.stdout.splitlines() if text.startswith(f"{row} "))
    return [float(word.rstrip("%")) for word in line.removeprefix(row).split()]


def test_succeeds_in_time(demo: Run) -> None:
    assert demo.result.exit_code == 0, demo.result.output
    assert demo.result.stderr == ""
    assert demo.seconds < 60


def test_writes_its_folder_and_nothing_else(demo: Run) -> None:
    assert os.listdir(demo.folder) == ["bioren-demo"]
    assert sorted(os.listdir(demo.folder / "bioren-demo")) == ["demo.h5ad", "demo.png"]
    for name in ("demo.h5ad", "demo.png"):
        assert str(Path("bioren-demo", name)) in demo.result.stdout


def test_picture_shows_something(demo: Run) -> None:
    pixels = image.imread(demo.folder / "bioren-demo" / "demo.png")
    height, width, _ = pixels.shape
    assert 600 <= height <= 1600
    assert 1000 <= width <= 2400
    ink = (pixels[..., :3] < 0.95).any(axis=-1)
    thirds = [part.mean() for part in np.array_split(ink, 3, axis=1)]
    assert min(thirds) > 0.01  # each column of panels


def test_compositions_differ(data: anndata.AnnData) -> None:
    share = pd.crosstab(data.obs["lab"], data.obs["cell_type"], normalize="index")
    assert (share.max() - share.min()).max() > 0.1


@pytest.mark.parametrize("lab", LABS)
def test_planted_effects_are_recovered(demo: Run, data: anndata.AnnData, lab: str) -> None:
    planted, found = data.uns["planted"], data.uns["bioren"]
    p, f = list(planted["samples"]).index(lab), list(found["samples"]).index(lab)
    d = rank_correlation(planted["d"][p], found["d"][f])
    r = rank_correlation(planted["r"][p], found["r"][f])
    assert d > 0.9
    assert r > 0.7
    cells = (data.obs["lab"] == lab).sum()
    np.testing.assert_allclose(printed(demo, lab), [cells, d, r], atol=6e-4)


def test_labs_mix_and_types_stay(demo: Run, data: anndata.AnnData) -> None:
    before, after, chance = (printed(demo, row) for row in ("before", "after", "by chance"))
    for row, basis in ((before, "X_pca"), (after, "X_bioren")):
        shares = [neighbor_shares(data.obsm[basis], data.obs[key]) for key in ("cell_type", "lab")]
        np.testing.assert_allclose(row, np.multiply(shares, 100), atol=0.6)
    assert after[0] >= before[0]
    assert before[1] > 90
    assert abs(after[1] - chance[1]) < 6


def test_chance_is_that_of_labs_drawn_anew_within_types(demo: Run, data: anndata.AnnData) -> None:
    """Shuffle labs among cells of one type, and see how often two of that type share a lab."""
    rng = np.random.default_rng(0)
    codes = data.obs["lab"].cat.codes.to_numpy()
    types = data.obs["cell_type"].cat.codes.to_numpy()
    hits = []
    for cell in range(len(codes)):
        others = rng.choice(np.flatnonzero(types == types[cell]), 50)
        hits.append((codes[others] == codes[cell]).mean())
    assert printed(demo, "by chance")[1] == pytest.approx(100 * np.mean(hits), abs=2)
    anyone = rng.integers(len(types), size=(len(types), 50))
    same_type = (types[anyone] == types[:, None]).mean()
    assert printed(demo, "by chance")[0] == pytest.approx(100 * same_type, abs=2)


def test_data_holds_all_that_is_promised(data: anndata.AnnData) -> None:
    assert data.shape == (700, 765)
    assert {"X_pca", "X_bioren", "X_umap_before", "X_umap_after"} <= set(data.obsm)
    assert data.layers["bioren"].shape == data.shape
