import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from reference import digest, draw, effect, fitted, reference_cells
from sklearn.linear_model import LogisticRegression

import bioren
from bioren.reference.labels import LabelTransfer

seeds = st.integers(0, 2**32 - 1)
NAMES = [f"label{i}" for i in range(6)]


def embedding(seed, n_labels, n_cells=120, apart=6.0):
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(n_labels), rng.integers(0, n_labels, n_cells - n_labels)])
    centers = apart * np.linalg.qr(rng.normal(size=(8, 8)))[0][:n_labels]
    return centers[codes] + rng.normal(0, 0.5, (n_cells, 8)), codes


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n_labels=st.integers(1, 6), apart=st.floats(0, 3), scale=st.floats(1e-3, 1e3))
def test_probabilities_are_at_least_one_over_the_number_of_labels(seed, n_labels, apart, scale):
    z, codes = embedding(seed, n_labels, apart=apart)
    found, probability = LabelTransfer.fit(scale * z, codes, NAMES).predict(scale * z)
    assert ((probability >= 1 / n_labels - 1e-12) & (probability <= 1 + 1e-12)).all()
    assert ((found >= 0) & (found < n_labels)).all()


@pytest.mark.parametrize("n_labels", [1, 2, 3, 6])
def test_separable_labels_are_found(n_labels):
    z, codes = embedding(1, n_labels)
    transfer = LabelTransfer.fit(z[:80], codes[:80], NAMES)
    assert transfer.names == NAMES[:n_labels]
    found, probability = transfer.predict(z[80:])
    assert_array_equal(found, codes[80:])
    assert (probability > 0.9).all()


@pytest.mark.parametrize("n_labels", [2, 3, 6])
def test_probabilities_are_those_of_scikit_learn(n_labels):
    z, codes = embedding(2, n_labels, apart=1.0)
    found, probability = LabelTransfer.fit(z, codes, NAMES).predict(z)
    unit = z.std()
    expected = LogisticRegression(max_iter=2000).fit(z / unit, codes).predict_proba(z / unit)
    assert_allclose(probability, expected.max(axis=1), rtol=1e-6)
    assert_array_equal(found, expected.argmax(axis=1))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_of_the_embedding_plays_no_part(scale):
    z, codes = embedding(3, 3, apart=1.0)
    found = LabelTransfer.fit(scale * z, codes, NAMES).predict(scale * z)[1]
    assert_allclose(found, LabelTransfer.fit(z, codes, NAMES).predict(z)[1], rtol=1e-4)


def test_cells_without_a_label_teach_nothing():
    z, codes = embedding(4, 3, apart=1.0)
    missing = np.arange(120) % 3 == 0
    found = LabelTransfer.fit(z, np.where(missing, -1, codes), NAMES)
    expected = LabelTransfer.fit(z[~missing], codes[~missing], NAMES)
    assert found.names == expected.names
    assert_array_equal(found.weights, expected.weights)
    assert_array_equal(found.level, expected.level)


def test_labels_of_no_cell_are_left_out():
    z, codes = embedding(5, 2)
    transfer = LabelTransfer.fit(z, np.where(codes == 0, 1, 4), NAMES)
    assert transfer.names == ["label1", "label4"]
    assert_array_equal(transfer.predict(z)[0], codes)


def test_an_embedding_that_tells_nothing_says_so():
    probability = LabelTransfer.fit(np.zeros((10, 4)), np.arange(10) % 2, NAMES).predict(
        np.zeros((3, 4))
    )[1]
    assert_allclose(probability, 0.5, atol=1e-6)


# In a model


@pytest.fixture(scope="module")
def cells():
    cells = reference_cells()
    cells.obs["broad"] = np.where(cells.obs["type"] == "type0", "first", "other")
    cells.obs["same"] = "all"
    cells.obs["number"] = cells.obs["type"].cat.codes.astype(int)
    partly = cells.obs["type"].astype(object)
    cells.obs["partly"] = partly.where(np.arange(cells.n_obs) % 3 > 0, None)
    return cells


@pytest.fixture
def model(cells):
    return fitted(cells)


@pytest.fixture(scope="module")
def query():
    return draw((50, 40, 30, 20), seed=41, **effect(41))


KEYS = ("type", "broad", "same", "number", "partly")


def test_several_kinds_of_labels_are_carried_over(model, cells, query, tmp_path):
    for key in KEYS:
        assert model.learn_labels(cells, key) is model
    found = bioren.tl.map_query(query, model, copy=True)
    types = query.obs["type"].astype(str)
    expected = {
        "type": types,
        "broad": types.map(lambda kind: "first" if kind == "type0" else "other"),
        "same": types.map(lambda kind: "all"),
        "number": types.str[-1],
        "partly": types,
    }
    for key, truth in expected.items():
        assert (found.obs[f"bioren_{key}"].astype(str) == truth).mean() > 0.97
        probability = found.obs[f"bioren_{key}_probability"]
        assert probability.between(1 / truth.nunique() - 1e-12, 1 + 1e-12).all()
        assert probability.mean() > 0.9
    model.save(tmp_path / "model.bioren")
    again = bioren.tl.map_query(query, tmp_path / "model.bioren", copy=True)
    for key in KEYS:
        assert_array_equal(again.obs[f"bioren_{key}"], found.obs[f"bioren_{key}"])
        column = f"bioren_{key}_probability"
        assert_allclose(again.obs[column], found.obs[column], atol=1e-6)


def test_learning_labels_changes_nothing_else(model, cells, query):
    def without_labels():
        settings = {k: v for k, v in vars(model).items() if k != "fitted_"}
        parts = {k: v for k, v in vars(model.fitted_).items() if k != "mapper"}
        mapper = {k: v for k, v in vars(model.mapper_).items() if k != "labels"}
        return digest([settings, parts, mapper])

    before, expected = without_labels(), model.map(query)
    model.learn_labels(cells, "type")
    assert without_labels() == before
    found = model.map(query)
    assert_array_equal(found.embedding, expected.embedding)
    assert_array_equal(found.score, expected.score)
    assert expected.labels == {}


def test_labels_are_learned_anew(model, cells, query):
    cells = cells.copy()
    model.learn_labels(cells, "type")
    cells.obs["type"] = "other"
    model.learn_labels(cells, "type")
    labels, probability = model.map(query).labels["type"]
    assert set(labels) == {"other"}
    assert_array_equal(probability, 1)


def test_some_of_the_cells_may_teach(model, cells, query):
    some = cells[cells.obs["sample"] != "b"].copy()
    labels, _ = model.learn_labels(some, "type").map(query).labels["type"]
    assert (labels == query.obs["type"].astype(str)).mean() > 0.97


@pytest.mark.parametrize(
    ("key", "change", "error", "message"),
    [
        ("kind", {}, KeyError, "no column 'kind'"),
        ("none", {"none": None}, ValueError, "no cell has a label"),
        ("nan", {"nan": np.nan}, ValueError, "no cell has a label"),
    ],
)
def test_labels_that_are_not_there_are_refused(model, cells, key, change, error, message):
    cells = cells.copy()
    for name, value in change.items():
        cells.obs[name] = pd.Series([value] * cells.n_obs, index=cells.obs_names, dtype=object)
    before = digest(model)
    with pytest.raises(error, match=message):
        model.learn_labels(cells, key)
    assert digest(model) == before


def test_cells_of_strange_samples_teach_nothing(model, query):
    with pytest.raises(ValueError, match="not fitted on: query"):
        model.learn_labels(query, "type")
