import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import fitted
from simulation import simulate, sparse_like
from slots import fingerprint

import bioren
from bioren.adata.genes import match_genes

N_GENES = 20
SYMBOLS = [f"Gene{g}A" for g in range(N_GENES)]
ENSEMBL = [f"ENSG{g:011d}" for g in range(N_GENES)]


def query_of(names, **var):
    names = list(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are not unique
        frame = pd.DataFrame(var, index=names)
        return AnnData(np.ones((3, len(names)), dtype=np.float32), var=frame)


def slow_match(names, genes):
    """Return pairs of positions of equal names."""
    return [(i, genes.index(name)) for i, name in enumerate(names) if name in genes]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_genes_are_matched_by_name_in_any_order(data):
    strangers = [f"stranger{i}" for i in range(5)]
    names = data.draw(st.permutations(SYMBOLS + strangers))[: data.draw(st.integers(18, 25))]
    shared = slow_match(names, SYMBOLS)
    found = match_genes(query_of(names), pd.Index(SYMBOLS), np.arange(20))
    assert sorted(zip(found.query, found.reference, strict=True)) == shared
    assert (np.diff(found.reference) > 0).all()


def test_a_column_names_the_genes():
    query = query_of([f"row{i}" for i in range(20)], symbol=SYMBOLS[::-1])
    found = match_genes(query, pd.Index(SYMBOLS), np.arange(20), genes_key="symbol")
    assert_array_equal(found.query, np.arange(20)[::-1])
    query.var["symbol"] = query.var["symbol"].astype("category")
    again = match_genes(query, pd.Index(SYMBOLS), np.arange(20), genes_key="symbol")
    assert_array_equal(again.query, found.query)


def test_names_missing_in_a_column_are_left_alone():
    symbols = [*SYMBOLS[:-4], None, np.nan, pd.NA, "nan"]
    query = query_of([f"row{i}" for i in range(20)], symbol=pd.array(symbols, dtype=object))
    found = match_genes(query, pd.Index(SYMBOLS), np.arange(20), genes_key="symbol")
    assert_array_equal(found.query, np.arange(16))


def test_genes_that_occur_twice_matter_only_if_the_reference_has_them():
    names = [*SYMBOLS, "stranger", "stranger"]
    found = match_genes(query_of(names), pd.Index(SYMBOLS), np.arange(20))
    assert_array_equal(found.query, np.arange(20))
    with pytest.raises(ValueError, match=r"1 genes that the reference has occur more.*Gene0A"):
        match_genes(query_of([*names, SYMBOLS[0]]), pd.Index(SYMBOLS), np.arange(20))


@pytest.mark.parametrize(("n", "warned"), [(20, 0), (10, 0), (9, 1), (3, 1)])
def test_less_than_half_of_the_variable_genes_is_warned_of(n, warned):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        match_genes(query_of(SYMBOLS[:n]), pd.Index(SYMBOLS), np.arange(20))
    assert len(seen) == warned


def test_genes_that_are_not_variable_do_not_place_cells():
    variable = np.arange(10)
    with pytest.raises(ValueError, match="0 of the 10 genes that tell"):
        match_genes(query_of(SYMBOLS[10:]), pd.Index(SYMBOLS), variable)


# Names that do not fit, and what is the matter with them


@pytest.mark.parametrize(
    ("names", "genes", "var", "genes_key", "advice"),
    [
        (ENSEMBL, SYMBOLS, {}, None, "query names genes by Ensembl identifiers, the reference by"),
        (SYMBOLS, ENSEMBL, {}, None, "query names genes by gene symbols, the reference by Ensembl"),
        ([f"{n}.3" for n in ENSEMBL], ENSEMBL, {}, None, "drop the versions"),
        (ENSEMBL, [f"{n}.3" for n in ENSEMBL], {}, None, "drop the versions"),
        ([n.replace("ENSG", "ENSMUSG") for n in ENSEMBL], ENSEMBL, {}, None, "check the species"),
        ([n.upper() for n in SYMBOLS], SYMBOLS, {}, None, "upper and lower case"),
        ([n.lower() for n in SYMBOLS], SYMBOLS, {}, None, "upper and lower case"),
        ([f"x{i}" for i in range(20)], SYMBOLS, {}, None, "is this the right reference"),
        (ENSEMBL, SYMBOLS, {"symbol": SYMBOLS}, None, "genes_key='symbol'"),
        (SYMBOLS, ENSEMBL, {"a": SYMBOLS, "gene_ids": ENSEMBL}, None, "genes_key='gene_ids'"),
        # A panel has few of the reference's genes, but all that it has are of the reference.
        (ENSEMBL[:5], SYMBOLS, {"symbol": SYMBOLS[:5]}, None, "genes_key='symbol'"),
        (SYMBOLS, SYMBOLS, {"wrong": ENSEMBL}, "wrong", "leave out genes_key"),
        ([str(i) for i in range(20)], SYMBOLS, {"number": range(20)}, None, "right reference"),
    ],
)
def test_a_mismatch_of_names_is_explained(names, genes, var, genes_key, advice):
    with pytest.raises(ValueError, match="has 0 of the 20 genes") as caught:
        match_genes(query_of(names, **var), pd.Index(genes), np.arange(20), genes_key=genes_key)
    assert advice in str(caught.value)
    assert str(caught.value).count("Ensembl") <= 2


# Bad queries, through the front door


@pytest.fixture(scope="module")
def cells():
    return sparse_like(simulate())


@pytest.fixture(scope="module")
def model(cells):
    cells = cells.copy()
    cells.var_names = SYMBOLS
    return fitted(cells)


@pytest.fixture
def query(cells):
    query = cells[cells.obs["sample"] == "a"].copy()
    query.var_names = SYMBOLS
    query.var["id"] = ENSEMBL
    query.obs["lab"] = "x"
    query.layers["log"] = query.X.copy()
    return query


def with_value(value, dtype=np.float32):
    def change(query):
        query.X = query.X.astype(dtype)
        query.X[1, 2] = value
        return query

    return change


def with_x(make):
    def change(query):
        return AnnData(make(query.X), obs=query.obs, var=query.var)

    return change


def renamed(names):
    def change(query):
        query.var_names = names
        return query

    return change


def labeled(**columns):
    def change(query):
        for name, values in columns.items():
            query.obs[name] = values(query)
        return query

    return change


def in_var(**columns):
    def change(query):
        for name, values in columns.items():
            query.var[name] = values
        return query

    return change


def same(query):
    return query


def first_missing(query):
    return pd.Series(["x"] * query.n_obs, index=query.obs_names).where(np.arange(query.n_obs) > 0)


COUNTS = with_x(lambda x: np.floor(3 * x))

BAD = {
    "counts": (COUNTS, {}, ValueError, "look like counts.*normalize_total"),
    "counts as integers": (with_x(lambda x: (3 * x).astype(int)), {}, ValueError, "like counts"),
    "not logarithms": (with_x(lambda x: 100 * x), {}, ValueError, "look like counts"),
    "NaN": (with_value(np.nan), {}, ValueError, r"1 values .* are missing \(NaN\)"),
    "inf": (with_value(np.inf), {}, ValueError, "1 values are infinite"),
    "-inf": (with_value(-np.inf, np.float64), {}, ValueError, "1 values are infinite"),
    "strings": (with_x(lambda x: x.astype("U5")), {}, ValueError, "expected numbers"),
    "objects": (with_x(lambda x: x.astype(object)), {}, ValueError, "expected numbers"),
    "complex": (with_x(lambda x: x.astype(complex)), {}, ValueError, "expected numbers"),
    "no X": (with_x(lambda x: None), {}, ValueError, "adata.X is empty"),
    "no cells": (lambda q: q[:0].copy(), {}, ValueError, "0 cells"),
    "no cells, samples": (lambda q: q[:0].copy(), {"batch_key": "lab"}, ValueError, "no cells"),
    "no genes": (lambda q: q[:, :0].copy(), {}, ValueError, "0 of the 20.*no genes at all"),
    "one gene": (lambda q: q[:, :1].copy(), {}, ValueError, "1 of the 20.*at least 3"),
    "two genes": (lambda q: q[:, :2].copy(), {}, ValueError, "2 of the 20.*at least 3"),
    "no overlap": (renamed([f"x{i}" for i in range(20)]), {}, ValueError, "0 of the 20"),
    "Ensembl": (lambda q: renamed(ENSEMBL)(q[:, :]), {}, ValueError, "Ensembl identifiers"),
    "upper case": (renamed([n.upper() for n in SYMBOLS]), {}, ValueError, "upper and lower case"),
    "lower case": (renamed([n.lower() for n in SYMBOLS]), {}, ValueError, "upper and lower case"),
    "another column": (
        lambda q: renamed(ENSEMBL)(in_var(symbol=SYMBOLS)(q)),
        {},
        ValueError,
        "genes_key='symbol'",
    ),
    "genes twice": (renamed([*SYMBOLS[:-1], "Gene0A"]), {}, ValueError, "more than once.*Gene0A"),
    "genes_key unknown": (same, {"genes_key": "ids"}, KeyError, "no column 'ids'; did you mean"),
    "genes_key wrong": (same, {"genes_key": "id"}, ValueError, "leave out genes_key"),
    "genes_key empty": (
        in_var(symbol=[np.nan] * 20),
        {"genes_key": "symbol"},
        ValueError,
        "0 of the 20.*leave out genes_key",
    ),
    "genes_key mostly empty": (
        in_var(symbol=[*SYMBOLS[:2], *[None] * 18]),
        {"genes_key": "symbol"},
        ValueError,
        "2 of the 20",
    ),
    "genes_key twice": (
        in_var(symbol=[SYMBOLS[0]] * 2 + SYMBOLS[2:]),
        {"genes_key": "symbol"},
        ValueError,
        "more than once",
    ),
    "layer unknown": (same, {"layer": "logs"}, KeyError, "no layer 'logs'; did you mean 'log'"),
    "batch_key unknown": (same, {"batch_key": "samples"}, KeyError, "did you mean 'sample'"),
    "batch_key of several": (same, {"batch_key": ["lab", "day"]}, KeyError, "'day'"),
    "batch_key empty": (same, {"batch_key": []}, ValueError, "empty list"),
    "batch_key a number": (same, {"batch_key": 3}, TypeError, "must name a column"),
    "batch missing": (labeled(lab=first_missing), {"batch_key": "lab"}, ValueError, "no label"),
    "barcodes": (
        labeled(barcode=lambda q: list(q.obs_names)),
        {"batch_key": "barcode"},
        ValueError,
        "look like barcodes",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("copy", [False, True])
def test_bad_queries_are_refused_and_stay_as_they_are(model, query, case, copy):
    change, options, error, message = BAD[case]
    query = change(query)
    before = fingerprint(query)
    with pytest.raises(error, match=f"(?s){message}"):
        bioren.tl.map_query(query, model, copy=copy, **options)
    assert fingerprint(query) == before
    assert set(query.obs) <= {"sample", "type", "lab", "barcode"}


def bad_models(folder):
    (folder / "text.bioren").write_text("not a model")
    (folder / "empty.bioren").write_bytes(b"")
    return {
        "missing": (folder / "nowhere.bioren", FileNotFoundError, "no such file"),
        "a folder": (folder, IsADirectoryError, "is a folder"),
        "text": (folder / "text.bioren", ValueError, "cannot be read as a file of bioren"),
        "empty": (str(folder / "empty.bioren"), ValueError, "cannot be read as a file of bioren"),
        "a population": (folder / "population.bioren", ValueError, "holds a population, expected"),
        "unfitted": (bioren.RenormAutoencoder(), RuntimeError, "not fitted yet"),
        "nothing": (None, TypeError, "model or the path of its file, received NoneType"),
    }


@pytest.mark.parametrize(
    "case", ["missing", "a folder", "text", "empty", "a population", "unfitted", "nothing"]
)
def test_bad_models_are_refused(model, query, tmp_path, case):
    model.population_.save(tmp_path / "population.bioren")
    path, error, message = bad_models(tmp_path)[case]
    before = fingerprint(query)
    with pytest.raises(error, match=message):
        bioren.tl.map_query(query, path)
    assert fingerprint(query) == before


def test_another_normalization_is_warned_of(cells):
    import scanpy as sc

    def normalized(total):
        adata = cells.copy()
        sc.pp.normalize_total(adata, target_sum=total)
        sc.pp.log1p(adata)
        return adata

    model = fitted(normalized(1e4))
    assert model.population_.target_sum == 1e4
    bioren.tl.map_query(normalized(1e4), model)
    with pytest.warns(UserWarning, match=r"normalized to 1,000,000.*target_sum=10000"):
        bioren.tl.map_query(normalized(1e6), model)
