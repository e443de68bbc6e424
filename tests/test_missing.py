"""Missing values: how they are counted, filled, and told."""

import numpy as np
import pytest
from anndata import AnnData, concat
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse
from simulation import simulate

import bioren
from bioren.adata.missing import missing_message, warn_missing
from bioren.arrays.groups import Batches
from bioren.arrays.missing import count_measured, filled


@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from([np.asarray, sparse.csr_matrix]))
def test_what_was_measured_is_counted_and_the_rest_is_filled(seed, form):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((9, 4)) < 0.4, np.nan, rng.integers(0, 3, (9, 4)))
    codes, table = rng.integers(0, 3, 9), rng.normal(size=(3, 4))
    expected = np.array([(~np.isnan(x[codes == s])).sum(axis=0) for s in range(3)])
    assert_array_equal(count_measured(form(x), codes, 3), expected)
    result = filled(form(x), codes, table)
    result = result.toarray() if sparse.issparse(result) else result
    for cell in range(9):
        for gene in range(4):
            value = table[codes[cell], gene] if np.isnan(x[cell, gene]) else x[cell, gene]
            assert result[cell, gene] == value


def batches(codes):
    return Batches("sample", ["a", "b"], np.array(codes))


def test_the_message_tells_how_many_of_which_genes_and_what_to_do():
    x = np.ones((4, 5))
    x[0, 0] = x[:2, 1] = x[:2, 2] = np.nan
    for form in (np.asarray, sparse.csr_matrix):
        message = missing_message(form(x))
        assert message.startswith("5 values (25.0%) are missing (NaN), of 3 of 5 genes. bioren.pp")
        assert "keep the 2 genes (40%) that are complete: adata[:, adata.to_df()" in message
    told = missing_message(x, batches([0, 0, 1, 1]))
    assert "2 genes have no value at all in sample 'a', as after an outer join" in told
    x[3] = np.nan
    assert "5 genes. 1 cells have no value at all: leave them out. bioren" in missing_message(x)
    x[3] = 1
    kept = AnnData(x)[:, AnnData(x).to_df().notna().all()].copy()
    assert kept.n_vars == 2


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ([0], "not measured, and stay missing.$"),
        ([0, 1], "1 genes have no value at all in sample 'a', and nothing"),
        ([0, 1, 2, 3], "1 genes have no value at all in sample 'a', 1 in sample 'b', and nothing"),
    ],
)
def test_the_warning_names_genes_that_samples_lack(missing, words):
    x = np.ones((4, 2))
    x[missing, 0] = np.nan
    of = batches([0, 0, 1, 1])
    with pytest.warns(UserWarning, match=words):
        warn_missing(count_measured(x, of.codes, 2), of)


def test_of_many_samples_that_lack_genes_some_are_named():
    of = Batches("sample", [f"s{i}" for i in range(9)], np.arange(9))
    with pytest.warns(UserWarning, match=r"in sample 's4' and some in 4 more, and nothing"):
        warn_missing(count_measured(np.full((9, 2), np.nan), of.codes, 9), of)


def joined():
    """Return two samples of which the second lacks three genes, joined as AnnData does."""
    adata = simulate((40, 40))
    first, second = (adata[adata.obs["sample"] == name].copy() for name in "ab")
    return concat([first, second[:, :-3].copy()], join="outer", fill_value=np.nan)


def test_genes_that_an_outer_join_left_out_are_named():
    message = r"120 values .*3 genes have no value at all in sample 'b'.*17 genes \(85%\)"
    with pytest.raises(ValueError, match=message):
        bioren.tl.integrate(joined(), "sample", progress=False)
    with pytest.warns(UserWarning, match="3 genes have no value at all in sample 'b'"):
        bioren.pp.bridge(joined(), "sample")


def test_a_population_takes_no_missing_values(adata):
    training = bioren.TrainingOptions(max_epochs=0, progress=False)
    model = bioren.RenormAutoencoder(3, training=training).fit(adata, "sample")
    query = adata.copy()
    query.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="not beside a population"):
        bioren.pp.bridge(query, "sample", reference=model.population_)
    with pytest.raises(ValueError, match=r"1 values .*are missing.*pp.bridge"):
        bioren.tl.map_query(query, model, batch_key="sample")
