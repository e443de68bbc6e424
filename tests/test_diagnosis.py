import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from simulation import simulate

import bioren
from bioren.effects.diagnosis import (
    ConditionDesign,
    confounded_message,
    confounding,
    structure_removed,
    unmatched,
    warn_structure,
)
from bioren.network.training import TrainingOptions

QUIET = {"training": TrainingOptions(max_epochs=0), "progress": False}


# Structure


def test_a_shift_of_all_cells_alike_changes_no_structure():
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(90, 4)), np.arange(90) % 3
    shift = 5 * rng.normal(size=(3, 4))
    assert_allclose(structure_removed(x, x + shift[codes], codes, n_samples=3), 0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0, 1), seed=st.integers(0, 9))
def test_shrinking_a_sample_removes_the_square_of_what_it_loses(scale, seed):
    x = np.random.default_rng(seed).normal(size=(40, 3))
    codes = np.zeros(40, dtype=int)
    assert_allclose(
        structure_removed(x, scale * x, codes, n_samples=1), [(1 - scale) ** 2], atol=1e-12
    )


def test_a_single_cell_has_no_structure():
    x = np.ones((3, 2))
    assert_allclose(structure_removed(x, 2 * x, np.array([0, 1, 2]), n_samples=4), 0)


# States for itself


def test_states_of_one_sample():
    count = np.array([[50.0, 50, 0], [50, 0, 50], [50, 1, 50]])
    assert_allclose(unmatched(count), [0.5, 0, 0])


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 500), min_size=2, max_size=5))
def test_even_mixing_leaves_no_sample_alone(sizes):
    assert_allclose(unmatched(np.outer(sizes, [0.2, 0.3, 0.5])), 0)


# A condition


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), min_size=1, max_size=60))
def test_confounding_by_the_definition_of_entropy(pairs):
    codes, condition = np.array(pairs).T
    known = condition >= 0

    def entropy(values):
        share = np.unique(values, return_counts=True)[1] / len(values)
        return -np.sum(share * np.log(share))

    found = confounding(codes, condition)
    if len(np.unique(condition[known])) < 2:
        assert found == 0
        return
    whole = entropy(condition[known])
    both = entropy(codes[known] * 10 + condition[known])
    assert_allclose(found, (whole + entropy(codes[known]) - both) / whole, atol=1e-9)


def test_the_ends_of_confounding():
    codes = np.repeat([0, 1, 2, 3], 25)
    assert confounding(codes, codes // 2) == pytest.approx(1)
    assert confounding(codes, np.arange(100) % 5) == pytest.approx(0)


def said_of(codes, condition):
    design = ConditionDesign.of(np.array(codes), np.array(condition))
    return confounded_message("obs['lab']", "obs['drug']", design)


def test_nested_samples_are_told_from_identical_and_from_partly_confounded_ones():
    six = np.repeat(np.arange(6), 10)
    nested = said_of(six, (six >= 2).astype(int))
    for words in (
        "The samples of obs['lab'] are nested in obs['drug']",
        "each condition 2 to 4 samples",
        "such as the run (batch_key=...)",
        "controls_key=...",
        "strength=...",
        "pseudobulk",
    ):
        assert words in nested
    identical = said_of(six, 5 - six)
    assert "obs['drug'] and obs['lab'] divide the cells alike" in identical
    assert "all of it is removed" in identical
    assert "nested" not in identical
    partly = said_of(six, np.where(np.arange(60) % 10 == 0, 1, six >= 3).astype(int))
    assert "partly confounded with obs['lab'], which determines it to 7" in partly
    assert "3 samples have one condition only" in partly
    assert said_of(six, np.arange(60) % 2) == ""
    assert said_of(six, np.zeros(60, int)) == ""  # one condition alone
    # Cells without a condition do not count.
    assert "nested" in said_of([0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, -1])
    assert said_of([0, 1], [-1, -1]) == ""


def test_the_batch_as_the_condition_is_called_that():
    adata = simulate((60, 60))
    with pytest.warns(UserWarning, match=r"The condition is the batch itself, obs\['sample'\]"):
        bioren.pp.bridge(adata, "sample", condition_key="sample")


def test_warnings_name_what_to_do():
    with pytest.warns(UserWarning, match=r"b \(60%\).*over-correction"):
        warn_structure(["a", "b", "c"], np.array([0.1, 0.6, 0.9]), np.array([90, 90, 5]))
    # Warnings are errors.
    warn_structure(["a", "b"], np.array([0.1, 0.2]), np.array([90, 90]))


# On AnnData


def test_a_confounded_condition_is_warned_of_and_changes_nothing():
    adata = simulate((60, 60, 60))
    adata.obs["drug"] = adata.obs["sample"].map({"a": "yes", "b": "no", "c": "no"})
    plain = bioren.tl.integrate(adata, "sample", copy=True, **QUIET)
    with pytest.warns(UserWarning, match="nested in"):
        warned = bioren.tl.integrate(adata, "sample", condition_key="drug", copy=True, **QUIET)
    assert_allclose(warned.obsm["X_bioren"], plain.obsm["X_bioren"])
    adata.obsm["X_pca"] = adata.X[:, :5]
    with pytest.warns(UserWarning, match="nested in"):
        bioren.tl.integrate(adata, "sample", use_rep="X_pca", condition_key="drug")
    with pytest.warns(UserWarning, match="nested in"):
        bioren.pp.bridge(adata, "sample", condition_key="drug")


def test_random_halves_lose_no_structure():
    adata = simulate((150, 150), shift=0, log_scale=0)
    bioren.tl.integrate(adata, "sample", **QUIET)
    table = bioren.tl.diagnose(adata)
    assert list(table.index) == ["a", "b"]
    assert list(table["cells"]) == [150, 150]
    assert (table["structure_removed"] < 0.01).all()
    assert (table["unmatched"] == 0).all()


def test_a_type_of_its_own_is_told():
    adata = simulate((150, 150), composition=[[0.5, 0.5, 0], [0.4, 0.3, 0.3]], n_genes=60)
    bioren.tl.integrate(adata, "sample", **QUIET)
    assert_allclose(bioren.tl.diagnose(adata)["unmatched"], [0, 0.3], atol=0.1)


def test_no_diagnosis_without_integration():
    with pytest.raises(KeyError, match="holds no diagnosis"):
        bioren.tl.diagnose(simulate((20, 20)))
