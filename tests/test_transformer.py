"""The bridge as a scikit-learn transformer."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import sklearn
import slow_missing
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_set_params

from bioren import BridgeTransformer

PER_BATCH, N_FEATURES = 200, 8


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of three batches whose effects are large and certain, in mixed order."""
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.repeat(["a", "b", "c"], PER_BATCH))
    code = np.searchsorted(["a", "b", "c"], batch)
    shift = rng.normal(0, 10, size=(3, N_FEATURES))
    scale = rng.uniform(0.8, 1.25, size=(3, N_FEATURES))
    return rng.normal(size=(len(batch), N_FEATURES)) * scale[code] + shift[code], batch


def moments_by_hand(x: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each batch's means and standard deviations, batches x features."""
    groups = [x[batch == name] for name in np.unique(batch)]
    return np.stack([g.mean(axis=0) for g in groups]), np.stack([g.std(axis=0) for g in groups])


class TestLaws:
    def test_batches_agree_afterwards(self) -> None:
        x, batch = problem()
        y = BridgeTransformer().fit_transform(x, batch=batch)
        mean, std = moments_by_hand(y, batch)
        np.testing.assert_allclose(mean, mean.mean(axis=0) * np.ones((3, 1)), atol=0.01)
        np.testing.assert_allclose(std, std.mean(axis=0) * np.ones((3, 1)), rtol=0.05)

    def test_equals_the_formula_where_effects_are_certain(self) -> None:
        """Means go to the mean of means; scales to the pooled one, which batches share alike.

        A batch's variance is drawn towards the reference's by 10 cells in 210 first.
        """
        x, batch = problem()
        mean, std = moments_by_hand(x, batch)
        pooled = (std**2).mean(axis=0)
        drawn = (PER_BATCH * std**2 + 10 * pooled) / (PER_BATCH + 10)
        z = np.empty_like(x)
        for s, name in enumerate("abc"):
            rows = batch == name
            z[rows] = (x[rows] - mean[s]) * np.sqrt(pooled / drawn[s]) + mean.mean(axis=0)
        np.testing.assert_allclose(
            BridgeTransformer().fit_transform(x, batch=batch), z, atol=0.02, rtol=1e-3
        )

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_inverse_leads_back(self, dtype: type) -> None:
        x, batch = problem()
        x = x.astype(dtype)
        bridge = BridgeTransformer().fit(x, batch=batch)
        back = bridge.inverse_transform(bridge.transform(x, batch=batch), batch=batch)
        assert back.dtype == dtype
        np.testing.assert_allclose(back, x, atol=1e-4 if dtype == np.float32 else 1e-10)

    def test_strength_zero_changes_nothing(self) -> None:
        x, batch = problem()
        y = BridgeTransformer(strength=0).fit_transform(x, batch=batch)
        np.testing.assert_allclose(y, x, atol=1e-10)

    def test_half_strength_goes_half_way(self) -> None:
        x, batch = problem()
        gap = [
            np.ptp(moments_by_hand(y, batch)[0], axis=0)
            for y in (x, BridgeTransformer(strength=0.5).fit_transform(x, batch=batch))
        ]
        # What stays of the shift is rescaled with the rest: by up to 5 % here.
        np.testing.assert_allclose(gap[1], gap[0] / 2, rtol=0.05)

    def test_reference_batch_stays(self) -> None:
        x, batch = problem()
        y = BridgeTransformer(reference="b").fit_transform(x, batch=batch)
        np.testing.assert_allclose(y[batch == "b"], x[batch == "b"], atol=1e-8)
        mean, _ = moments_by_hand(y, batch)
        np.testing.assert_allclose(mean[0], mean[1], atol=0.01)

    def test_order_of_rows_does_not_matter(self) -> None:
        x, batch = problem()
        order = np.random.default_rng(1).permutation(len(x))
        y = BridgeTransformer().fit_transform(x, batch=batch)
        shuffled = BridgeTransformer().fit_transform(x[order], batch=batch[order])
        np.testing.assert_allclose(shuffled, y[order], atol=1e-8)

    def test_new_rows_get_the_map_of_their_batch(self) -> None:
        x, batch = problem()
        bridge = BridgeTransformer().fit(x, batch=batch)
        y = bridge.transform(x, batch=batch)
        some = np.flatnonzero(batch == "c")[:7]
        np.testing.assert_array_equal(bridge.transform(x[some], batch=batch[some]), y[some])
        one = bridge.transform(x[:1], batch=batch[:1])
        np.testing.assert_array_equal(one, y[:1])

    def test_standardize_spares_composition(self) -> None:
        """Two kinds of rows, 90/10 and 10/90, no batch effect: same kinds stay in place."""
        rng = np.random.default_rng(0)
        batch = np.repeat(["a", "b"], 300)
        kind = np.concatenate([np.repeat([0, 1], [270, 30]), np.repeat([0, 1], [30, 270])])
        x = rng.normal(size=(600, 10)) + 6 * kind[:, None]

        def moved(standardize: bool) -> float:
            y = BridgeTransformer(standardize=standardize).fit_transform(x, batch=batch)
            return float(np.abs((y - x)[(batch == "a") & (kind == 0)].mean(axis=0)).max())

        assert moved(standardize=True) < 0.2
        assert moved(standardize=False) > 2

    def test_constant_features_and_single_rows_stay_finite(self) -> None:
        x, batch = problem()
        x[:, 0] = 3
        x[batch == "a", 1] = 2
        batch[0] = "alone"
        assert np.isfinite(BridgeTransformer().fit_transform(x, batch=batch)).all()


class TestMissingValues:
    """NaN is what was not measured: maps are found without it, and it stays."""

    @staticmethod
    def with_missing() -> tuple[np.ndarray, np.ndarray]:
        x, batch = problem()
        x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
        x[batch == "b", 2] = np.nan
        return x, batch

    def test_equals_an_oracle(self) -> None:
        x, batch = self.with_missing()
        bridge = BridgeTransformer().fit(x, batch=batch)
        codes = np.searchsorted(["a", "b", "c"], batch)
        expected, *_ = slow_missing.plain_bridge(x, codes, np.ones(3, dtype=bool))
        y = bridge.transform(x, batch=batch)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
        assert np.isnan(y[batch == "b", 2]).all()
        np.testing.assert_allclose(bridge.inverse_transform(y, batch=batch), x, atol=1e-9)

    def test_new_rows_keep_what_their_batch_never_measured(self) -> None:
        x, batch = self.with_missing()
        bridge = BridgeTransformer().fit(x, batch=batch)
        whole, labels = problem(1)
        y = bridge.transform(whole, batch=labels)
        assert np.isfinite(y).all()
        np.testing.assert_array_equal(y[labels == "b", 2], whole[labels == "b", 2])

    def test_states_are_found_all_the_same(self) -> None:
        rng = np.random.default_rng(0)
        batch, kind = np.repeat(["a", "b"], 300), np.repeat([0, 1, 0, 1], [270, 30, 30, 270])
        x = rng.normal(size=(600, 10)) + 6 * kind[:, None]
        x[rng.random(x.shape) < 0.2] = np.nan
        y = BridgeTransformer(standardize=True).fit_transform(x, batch=batch)
        moved = np.nanmean((y - x)[(batch == "a") & (kind == 0)], axis=0)
        assert np.abs(moved).max() < 0.3

    def test_scikit_learn_is_told(self) -> None:
        assert get_tags(BridgeTransformer()).input_tags.allow_nan
        x, batch = self.with_missing()
        sklearn.set_config(enable_metadata_routing=True)
        try:
            bridge = BridgeTransformer().set_fit_request(batch=True)
            bridge = bridge.set_transform_request(batch=True)
            steps = make_pipeline(bridge, SimpleImputer(), PCA(2))
            z = steps.fit(x, batch=batch).transform(x, batch=batch)
        finally:
            sklearn.set_config(enable_metadata_routing=False)
        assert np.isfinite(z).all()


def two_types(share: float = 0.9, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of two types in two batches, of which each holds mostly one; no batch effect."""
    rng = np.random.default_rng(0)
    batch, few = np.repeat(["a", "b"], n), round((1 - share) * n)
    kind = np.repeat([0, 1, 0, 1], [n - few, few, few, n - few])
    x = rng.normal(size=(2 * n, 10)) + 3 * kind[:, None]
    return x, batch, np.array(["x", "y"])[kind]


def gap(y: np.ndarray, kind: np.ndarray) -> float:
    return float(np.abs(y[kind == "x"].mean(axis=0) - y[kind == "y"].mean(axis=0)).mean())


class TestLabels:
    def test_types_that_are_named_are_no_batch_effect(self) -> None:
        x, batch, kind = two_types()
        plain = BridgeTransformer().fit_transform(x, batch=batch)
        within = BridgeTransformer().fit_transform(x, batch=batch, labels=kind)
        assert gap(plain, kind) < 0.6 * gap(x, kind)
        assert gap(within, kind) == pytest.approx(gap(x, kind), rel=0.05)
        some = pd.Series(kind, dtype=object).where(np.arange(len(kind)) % 3 > 0)
        partly = BridgeTransformer().fit_transform(x, batch=batch, labels=some)
        assert gap(partly, kind) == pytest.approx(gap(x, kind), rel=0.05)

    def test_classes_that_are_confounded_are_warned_of(self) -> None:
        x, batch, kind = two_types()
        with pytest.warns(UserWarning, match=r"batch, which determines it to 53%.*labels=\.\.\."):
            y = BridgeTransformer().fit_transform(x, kind, batch=batch)
        np.testing.assert_array_equal(y, BridgeTransformer().fit_transform(x, batch=batch))
        # Nothing is said, as warnings are errors: of labels, fair designs, measures and names.
        BridgeTransformer().fit(x, kind, batch=batch, labels=kind)
        fair, fair_batch, fair_kind = two_types(0.5)
        BridgeTransformer().fit(fair, fair_kind, batch=fair_batch)
        BridgeTransformer().fit(x, x[:, 0], batch=batch)
        BridgeTransformer().fit(x, np.arange(len(x)), batch=batch)

    def test_labels_are_routed_through_a_pipeline_as_documented(self) -> None:
        x, batch, kind = two_types()
        sklearn.set_config(enable_metadata_routing=True)
        try:
            bridge = BridgeTransformer().set_fit_request(batch=True, labels=True)
            bridge = bridge.set_transform_request(batch=True)
            steps = make_pipeline(bridge, PCA(3))
            steps.fit(x, batch=batch, labels=kind)
            z = steps.transform(x[:50], batch=batch[:50])
        finally:
            sklearn.set_config(enable_metadata_routing=False)
        y = BridgeTransformer().fit_transform(x, batch=batch, labels=kind)
        expected = PCA(3).fit(y).transform(y[:50])
        np.testing.assert_allclose(z, expected, atol=1e-8)

    def test_labels_that_no_two_batches_share(self) -> None:
        x, batch, kind = two_types()
        with pytest.raises(ValueError, match="No two batches share a label"):
            BridgeTransformer().fit(x, batch=batch, labels=batch)
        with pytest.raises(ValueError, match="labels has 119 labels for 120 rows"):
            BridgeTransformer().fit(x, batch=batch, labels=kind[1:])

    def test_confounded_bulk(self, real_data: Path) -> None:
        """Types explain .24 of the variance; plain batches take part of it, labels do not."""
        adata = anndata.read_h5ad(real_data / "bulk_bladderbatch.h5ad")
        x, kind = np.asarray(adata.X, dtype=float), adata.obs["cell_type"].to_numpy()

        def explained(y: np.ndarray) -> float:
            groups = [y[kind == name] for name in set(kind)]
            within = sum(np.square(rows - rows.mean(axis=0)).sum() for rows in groups)
            return float(1 - within / np.square(y - y.mean(axis=0)).sum())

        bridge, batch = BridgeTransformer(), adata.obs["batch"]
        with pytest.warns(UserWarning, match="y is confounded with batch.* to 58%"):
            plain = bridge.fit_transform(x, kind, batch=batch)
        within = bridge.fit_transform(x, kind, batch=batch, labels=kind)
        assert explained(plain) < 0.18 < 0.22 < explained(x) < 0.26
        assert explained(within) > 0.35


class TestRefusals:
    @pytest.mark.parametrize("method", ["transform", "inverse_transform"])
    def test_unknown_batch(self, method: str) -> None:
        x, batch = problem()
        bridge = BridgeTransformer().fit(x, batch=batch)
        for label in ("0", "bb", "z"):  # before, between and after the known ones
            with pytest.raises(ValueError, match=f"not seen in fit: {label}. Known: a, b, c"):
                getattr(bridge, method)(x[:1], batch=[label])

    @pytest.mark.parametrize("method", ["fit", "fit_transform", "transform", "inverse_transform"])
    def test_missing_batch(self, method: str) -> None:
        x, batch = problem()
        bridge = BridgeTransformer().fit(x, batch=batch)
        with pytest.raises(ValueError, match="batch is missing"):
            getattr(bridge, method)(x)

    @pytest.mark.parametrize(
        "nothing", [None, np.nan, pd.NA, pd.NaT], ids=["None", "nan", "NA", "NaT"]
    )
    @pytest.mark.parametrize("kind", [list, pd.Series, pd.Categorical])
    def test_missing_labels(self, nothing: object, kind: type) -> None:
        x, batch = problem()
        labels = kind([nothing, nothing, *batch[2:]])
        with pytest.raises(ValueError, match="no label for 2 rows"):
            BridgeTransformer().fit(x, batch=labels)

    def test_wrong_number_of_labels(self) -> None:
        x, batch = problem()
        with pytest.raises(ValueError, match="599 labels for 600 rows"):
            BridgeTransformer().fit(x, batch=batch[1:])
        with pytest.raises(ValueError, match="1 labels for 600 rows"):
            BridgeTransformer().fit(x, batch="a")

    def test_one_batch(self) -> None:
        x, batch = problem()
        with pytest.raises(ValueError, match="one batch only, 'a'"):
            BridgeTransformer().fit(x, batch=np.full(len(batch), "a"))

    def test_infinite_values(self) -> None:
        x, batch = problem()
        bridge = BridgeTransformer().fit(x, batch=batch)
        x[3, 2] = np.inf
        for method in (bridge.fit, bridge.transform):
            with pytest.raises(ValueError, match="infinity"):
                method(x, batch=batch)

    def test_sparse(self) -> None:
        x, batch = problem()
        with pytest.raises(TypeError, match="dense"):
            BridgeTransformer().fit(sparse.csr_matrix(x), batch=batch)

    def test_other_number_of_features(self) -> None:
        x, batch = problem()
        bridge = BridgeTransformer().fit(x, batch=batch)
        with pytest.raises(ValueError, match="8 features"):
            bridge.transform(x[:, :5], batch=batch)

    @pytest.mark.parametrize("method", ["transform", "inverse_transform"])
    def test_before_fit(self, method: str) -> None:
        x, batch = problem()
        with pytest.raises(NotFittedError):
            getattr(BridgeTransformer(), method)(x, batch=batch)

    @pytest.mark.parametrize("reference", ["z", ["a", "z"], [], 7])
    def test_unknown_reference(self, reference: object) -> None:
        x, batch = problem()
        with pytest.raises(ValueError, match="must name batches: a, b, c"):
            BridgeTransformer(reference=reference).fit(x, batch=batch)

    @pytest.mark.parametrize("strength", [-0.1, 1.5, np.nan])
    def test_strength_out_of_range(self, strength: float) -> None:
        x, batch = problem()
        with pytest.raises(ValueError, match="strength"):
            BridgeTransformer(strength=strength).fit(x, batch=batch)


class TestScikitLearn:
    def test_clone_and_parameters(self) -> None:
        x, batch = problem()
        bridge = BridgeTransformer(reference="a", strength=0.5, max_removed=None).fit(
            x, batch=batch
        )
        copy = clone(bridge)
        assert copy.get_params() == bridge.get_params()
        assert not hasattr(copy, "alignment_")
        check_set_params("BridgeTransformer", BridgeTransformer())

    def test_fit_leaves_parameters_and_data_alone(self) -> None:
        x, batch = problem()
        given = x.copy()
        bridge = BridgeTransformer()
        before = bridge.get_params()
        bridge.fit(x, batch=batch).transform(x, batch=batch)
        assert bridge.get_params() == before
        np.testing.assert_array_equal(x, given)

    def test_pickle(self) -> None:
        x, batch = problem()
        bridge = BridgeTransformer().fit(x, batch=batch)
        again = pickle.loads(pickle.dumps(bridge))
        np.testing.assert_array_equal(
            again.transform(x, batch=batch), bridge.transform(x, batch=batch)
        )

    def test_same_seed_same_result(self) -> None:
        x, batch = problem()
        results = []
        for _ in range(2):
            bridge = BridgeTransformer(standardize=True, random_state=3)
            with pytest.warns(UserWarning, match="hardly a cell state in common"):
                results.append(bridge.fit_transform(x, batch=batch))
        np.testing.assert_array_equal(*results)

    def test_data_frames(self) -> None:
        x, batch = problem()
        frame = pd.DataFrame(x, columns=[f"gene{i}" for i in range(N_FEATURES)])
        frame.index = [f"row{i}" for i in range(len(x))]
        labels = pd.Series(batch, index=frame.index)
        bridge = BridgeTransformer().set_output(transform="pandas")
        y = bridge.fit_transform(frame, batch=labels)
        assert isinstance(y, pd.DataFrame)
        assert y.index.equals(frame.index)
        assert list(y.columns) == list(bridge.get_feature_names_out()) == list(frame.columns)
        plain = BridgeTransformer().fit_transform(x, batch=batch)
        np.testing.assert_array_equal(y.to_numpy(), plain)
        with pytest.raises(ValueError, match="feature names"):
            bridge.transform(frame.rename(columns={"gene0": "other"}), batch=labels)

    @pytest.mark.parametrize(
        "labels",
        [
            lambda b: list(b),
            lambda b: pd.Categorical(b, categories=["unused", "c", "b", "a"]),
            lambda b: pd.Series(b, dtype="string"),
            lambda b: b[:, None],
        ],
        ids=["list", "category", "string", "column"],
    )
    def test_any_kind_of_labels(self, labels: object) -> None:
        x, batch = problem()
        expected = BridgeTransformer().fit_transform(x, batch=batch)
        y = BridgeTransformer().fit_transform(x, batch=labels(batch))
        np.testing.assert_array_equal(y, expected)

    def test_integer_labels_and_integer_reference(self) -> None:
        x, batch = problem()
        code = np.searchsorted(["a", "b", "c"], batch)
        y = BridgeTransformer(reference=1).fit_transform(x, batch=code)
        expected = BridgeTransformer(reference="b").fit_transform(x, batch=batch)
        np.testing.assert_array_equal(y, expected)

    def test_integer_values(self) -> None:
        x, batch = problem()
        y = BridgeTransformer().fit_transform(x.round().astype(int), batch=batch)
        assert y.dtype == np.float64

    def test_pipeline_routes_the_batch(self) -> None:
        x, batch = problem()
        with sklearn.config_context(enable_metadata_routing=True):
            bridge = BridgeTransformer()
            bridge.set_fit_request(batch=True).set_transform_request(batch=True)
            pipeline = make_pipeline(bridge, PCA(2, random_state=0))
            z = pipeline.fit_transform(x, batch=batch)
            again = clone(pipeline).fit(x, batch=batch).transform(x, batch=batch)
        bridged = BridgeTransformer().fit_transform(x, batch=batch)
        expected = PCA(2, random_state=0).fit_transform(bridged)
        np.testing.assert_allclose(z, expected, atol=1e-8)
        np.testing.assert_allclose(again, expected, atol=1e-8)

    def test_pipeline_without_request_says_so(self) -> None:
        x, batch = problem()
        with (
            sklearn.config_context(enable_metadata_routing=True),
            pytest.raises(ValueError, match=r"not explicitly set|not requested"),
        ):
            make_pipeline(BridgeTransformer(), PCA(2)).fit(x, batch=batch)


@pytest.fixture(scope="module")
def bladder() -> tuple[np.ndarray, pd.DataFrame]:
    """Return the 3,000 most variable genes of the bulk data, and what is known of its rows."""
    folder = os.environ.get("BIOREN_DATA")
    if not folder:
        pytest.skip("BIOREN_DATA does not name the folder of the shared data")
    adata = anndata.read_h5ad(Path(folder) / "bulk_bladderbatch.h5ad")
    top = np.argsort(adata.X.var(axis=0))[-3000:]
    return np.asarray(adata.X[:, top], dtype=float), adata.obs


class TestBladder:
    """57 bulk samples in 5 batches that are partly confounded with cancer status."""

    @staticmethod
    def explained(x: np.ndarray, labels: pd.Series) -> float:
        """Return the share of the variance that lies between groups, over all genes."""
        means = pd.DataFrame(x).groupby(labels.astype(str).to_numpy()).transform("mean").to_numpy()
        return float(means.var(axis=0).sum() / x.var(axis=0).sum())

    def test_batch_goes_cancer_stays(self, bladder: tuple[np.ndarray, pd.DataFrame]) -> None:
        x, obs = bladder
        y = BridgeTransformer().fit_transform(x, batch=obs["batch"])
        batch, cancer = (
            [self.explained(v, obs[key]) for v in (x, y)] for key in ("batch", "cancer")
        )
        assert batch[1] < 0.5 * batch[0]
        # Batches differ in cancer status as well: some of that goes too, most stays.
        assert cancer[1] > 0.5 * cancer[0]

    def test_three_replicates_a_batch(self, bladder: tuple[np.ndarray, pd.DataFrame]) -> None:
        x, obs = bladder
        few = np.concatenate(
            [index[:3] for index in obs.groupby("batch", observed=True).indices.values()]
        )
        assert len(few) == 15
        batch = obs["batch"].iloc[few]
        bridge = BridgeTransformer().fit(x[few], batch=batch)
        y = bridge.transform(x[few], batch=batch)
        assert np.isfinite(y).all()
        assert self.explained(y, batch) < self.explained(x[few], batch)
        np.testing.assert_allclose(bridge.inverse_transform(y, batch=batch), x[few], atol=1e-8)
