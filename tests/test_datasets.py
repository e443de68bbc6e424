"""What is said to be planted is what is in the data."""

from __future__ import annotations

import socket

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from bioren import datasets


def planted_by_hand(x: np.ndarray, labels: pd.Series, planted: dict) -> np.ndarray:
    """Apply r and d cell by cell: ``x' = mean + sd * (r * z + d)``."""
    mean, sd = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / np.where(sd > 0, sd, 1)
    row = {name: position for position, name in enumerate(planted["samples"])}
    out = np.empty_like(x)
    for i, label in enumerate(labels.astype(str)):
        r, d = planted["r"][row[label]], planted["d"][row[label]]
        out[i] = np.where(sd > 0, mean + sd * (r * z[i] + d), mean)
    return out


def blood() -> np.ndarray:
    """Return the expression of scanpy's blood cells, before anything is planted."""
    return sc.datasets.pbmc68k_reduced().raw.X.toarray().astype(float)


@pytest.fixture(scope="module")
def labs() -> AnnData:
    return datasets.four_labs(rng=0)


@pytest.fixture
def plain() -> AnnData:
    rng = np.random.default_rng(3)
    x = rng.normal(2, 1, size=(60, 25))
    x[:, 4] = 1.5  # constant
    obs = pd.DataFrame({"sample": np.array(["b", "a", "c"])[np.arange(60) % 3]})
    return AnnData(x, obs=obs.set_index(obs.index.astype(str)))


class TestPlantBridge:
    @pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
    def test_planted_terms_are_in_the_data(self, plain: AnnData, kind: object) -> None:
        x = plain.X.copy()
        plain.X = kind(x)
        assert datasets.plant_bridge(plain, "sample", rng=0) is None
        expected = planted_by_hand(x, plain.obs["sample"], plain.uns["planted"])
        np.testing.assert_allclose(plain.X, expected, atol=1e-10)

    def test_constant_gene_stays_constant(self, plain: AnnData) -> None:
        datasets.plant_bridge(plain, "sample", rng=0)
        np.testing.assert_allclose(plain.X[:, 4], 1.5)

    def test_effects_are_zero_on_average(self, plain: AnnData) -> None:
        datasets.plant_bridge(plain, "sample", rng=0)
        planted = plain.uns["planted"]
        np.testing.assert_allclose(planted["d"].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(np.log(planted["r"]).mean(axis=0), 0, atol=1e-12)

    def test_shapes_and_names(self, plain: AnnData) -> None:
        datasets.plant_bridge(plain, "sample", rng=0)
        planted = plain.uns["planted"]
        assert list(planted["samples"]) == ["a", "b", "c"]
        assert planted["r"].shape == planted["d"].shape == (3, 25)

    def test_spread_is_as_asked(self) -> None:
        obs = pd.DataFrame({"sample": np.arange(40) % 20}, index=[str(i) for i in range(40)])
        adata = AnnData(np.random.default_rng(0).normal(size=(40, 800)), obs=obs)
        datasets.plant_bridge(adata, "sample", spread_r=0.1, spread_d=2.0, rng=0)
        planted = adata.uns["planted"]
        assert np.log(planted["r"]).std(ddof=0) == pytest.approx(0.1, rel=0.05)
        assert planted["d"].std(ddof=0) == pytest.approx(2.0, rel=0.05)

    def test_no_spread_changes_nothing(self, plain: AnnData) -> None:
        x = plain.X.copy()
        datasets.plant_bridge(plain, "sample", spread_r=0, spread_d=0)
        np.testing.assert_allclose(plain.X, x, atol=1e-12)

    def test_missing_column_is_refused(self, plain: AnnData) -> None:
        with pytest.raises(KeyError, match="no column 'lab'"):
            datasets.plant_bridge(plain, "lab")


class TestFourLabs:
    def test_needs_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        assert datasets.four_labs().shape == (700, 765)

    def test_cells_are_real_and_the_bridge_is_planted(self, labs: AnnData) -> None:
        expected = planted_by_hand(blood(), labs.obs["lab"], labs.uns["planted"])
        np.testing.assert_allclose(labs.X, expected, atol=1e-4)

    def test_cell_types_are_those_of_the_source(self, labs: AnnData) -> None:
        source = sc.datasets.pbmc68k_reduced()
        assert labs.obs_names.equals(source.obs_names)
        np.testing.assert_array_equal(
            labs.obs["cell_type"].astype(str), source.obs["bulk_labels"].astype(str)
        )

    def test_labs_differ_in_composition(self, labs: AnnData) -> None:
        share = pd.crosstab(labs.obs["lab"], labs.obs["cell_type"], normalize="index")
        assert len(share) == 4
        distance = max(
            0.5 * (share.loc[a] - share.loc[b]).abs().sum()
            for a in share.index
            for b in share.index
        )
        assert distance > 0.2  # total variation

    def test_nothing_else_is_left_from_the_source(self, labs: AnnData) -> None:
        assert list(labs.obs) == ["cell_type", "lab"]
        assert list(labs.uns) == ["planted"]
        assert not list(labs.obsm)
        assert labs.raw is None

    def test_seed(self, labs: AnnData) -> None:
        again, other = datasets.four_labs(rng=0), datasets.four_labs(rng=1)
        np.testing.assert_array_equal(labs.X, again.X)
        assert labs.obs.equals(again.obs)
        assert not np.array_equal(labs.X, other.X)


class TestSimulated:
    def test_reproducible(self) -> None:
        first, again = datasets.simulated(rng=5), datasets.simulated(rng=5)
        np.testing.assert_array_equal(first.X, again.X)
        assert first.obs.equals(again.obs)
        assert not np.array_equal(first.X, datasets.simulated(rng=6).X)

    def test_generator_is_used_up(self) -> None:
        rng = np.random.default_rng(0)
        first, second = datasets.simulated(rng=rng), datasets.simulated(rng=rng)
        assert not np.array_equal(first.X, second.X)

    def test_sizes_and_names(self) -> None:
        adata = datasets.simulated(50, 12, n_types=3, n_samples=5)
        assert adata.shape == (50, 12)
        assert adata.obs["sample"].nunique() == 5
        assert set(adata.obs["cell_type"]) <= {"type1", "type2", "type3"}
        assert adata.uns["planted"]["d"].shape == (5, 12)
        assert np.isfinite(adata.X).all()

    def test_planted_effect_shows_within_a_type(self) -> None:
        """With one type only, composition plays no part: sample means differ by d."""
        adata = datasets.simulated(3000, 30, n_types=1, rng=0)
        planted = adata.uns["planted"]
        means = np.stack(
            [
                adata.X[(adata.obs["sample"] == s).to_numpy()].mean(axis=0)
                for s in planted["samples"]
            ]
        )
        found = (means - means.mean(axis=0)) / adata.X.std(axis=0)
        assert np.corrcoef(found.ravel(), planted["d"].ravel())[0, 1] > 0.97
