"""Results in scanpy, MuData and files; expression from where scanpy's other tools leave it."""

import warnings
from types import SimpleNamespace

import dask.array as da
import mudata
import numpy as np
import pytest
import scanpy as sc
import torch
from anndata import concat, read_h5ad, read_zarr
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from reference import draw, effect, fitted, reference_cells
from scipy import sparse
from simulation import purity, sparse_like
from threadpoolctl import threadpool_limits

import bioren
from bioren import Moments
from bioren.adata.matrix import read_embedding
from bioren.arrays.blocks import on_host, row_blocks, to_dense


@pytest.fixture(autouse=True)
def _one_thread_again():
    # Numba gives all libraries that share its OpenMP as many threads as the machine has.
    yield
    torch.set_num_threads(1)
    threadpool_limits(1)


@pytest.fixture(scope="module")
def cells():
    return sparse_like(reference_cells())


@pytest.fixture(scope="module")
def model(cells):
    return fitted(cells).learn_labels(cells, "type")


@pytest.fixture(scope="module")
def queries():
    parts = [draw((50, 40, 30, 20), sample=s, seed=i, **effect(i)) for i, s in enumerate("qr")]
    queries = sparse_like(concat(parts))
    queries.obs["type"] = queries.obs["type"].cat.remove_unused_categories()
    return queries


@pytest.fixture(scope="module")
def mapped_once(model, queries):
    return bioren.tl.map_query(queries, model, batch_key="sample", copy=True)


@pytest.fixture
def query(queries):
    return queries.copy()


@pytest.fixture
def mapped(mapped_once):
    return mapped_once.copy()


# scanpy


def test_query_and_reference_share_neighbors(model, cells, mapped):
    both = concat([cells, mapped])
    both.obsm["X_bioren"] = np.vstack([model.embed(cells), mapped.obsm["X_bioren"]])
    sc.pp.neighbors(both, use_rep="X_bioren", n_neighbors=10)
    near = both.obsp["distances"]
    assert near.shape == (both.n_obs, both.n_obs)
    graph = near[cells.n_obs :].tocoo()
    kinds = both.obs["type"].astype(str).to_numpy()
    assert (kinds[graph.col] == kinds[cells.n_obs + graph.row]).mean() > 0.97
    assert (graph.col < cells.n_obs).mean() > 0.3  # they mix


@pytest.mark.filterwarnings("ignore")  # of what scanpy calls
def test_neighbors_serve_umap(mapped):
    sc.pp.neighbors(mapped, use_rep="X_bioren")
    sc.tl.umap(mapped, maxiter=50)
    assert mapped.obsm["X_umap"].shape == (280, 2)
    assert purity(mapped.obsm["X_umap"], mapped.obs["type"]) > 0.9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("groupby", ["type", "bioren_type"])
def test_corrected_expression_serves_tests_of_genes(mapped, groupby):
    sc.tl.rank_genes_groups(mapped, groupby, layer="bioren", method="t-test")
    names = mapped.uns["rank_genes_groups"]["names"]
    values = mapped.layers["bioren"]
    kinds = mapped.obs[groupby].astype(str).to_numpy()
    best = mapped.var_names.get_loc(names["type0"][0])
    rest = values[kinds != "type0", best].mean()
    assert values[kinds == "type0", best].mean() > rest + 0.5


def test_the_pipeline_goes_on_after_it(mapped):
    sc.pp.pca(mapped, layer="bioren", n_comps=5)
    sc.pp.highly_variable_genes(mapped, layer="bioren", n_top_genes=10, flavor="cell_ranger")
    part = mapped[mapped.obs["bioren_mapping_score"] > 0.1, mapped.var["bioren_mapped"]].copy()
    assert part.layers["bioren"].shape == part.shape
    bioren.tl.map_query(part, fitted(part))
    assert part.obsm["X_bioren"].shape[0] == part.n_obs


# MuData


def multimodal(adata):
    other = adata[:, :5].copy()
    other.var_names = [f"protein{i}" for i in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own coming defaults
        return mudata.MuData({"rna": adata, "protein": other})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_modality_is_mapped_in_place(model, query, mapped_once, tmp_path):
    together = multimodal(query)
    bioren.tl.map_query(together["rna"], model, batch_key="sample")
    assert_array_equal(together["rna"].obsm["X_bioren"], mapped_once.obsm["X_bioren"])
    assert "X_bioren" not in together["protein"].obsm
    together.update()
    together.pull_obs(mods=["rna"])
    assert_array_equal(
        together.obs["rna:bioren_mapping_score"], mapped_once.obs["bioren_mapping_score"]
    )
    together.write(tmp_path / "together.h5mu")
    again = mudata.read(tmp_path / "together.h5mu")["rna"]
    assert_array_equal(again.obsm["X_bioren"], mapped_once.obsm["X_bioren"])
    assert bioren.tl.batch_effects(again).equals(bioren.tl.batch_effects(mapped_once))
    view = mudata.read(tmp_path / "together.h5mu")[:100]["rna"]
    bioren.tl.map_query(view, model, batch_key="sample", key_added="X_part")
    assert view.obsm["X_part"].shape == (100, 10)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_modality_is_integrated_in_place(query, quick):
    together = multimodal(query)
    bioren.tl.integrate(together["rna"], "sample", training=quick, progress=False)
    bioren.pp.bridge(together["protein"], "sample")
    assert together["rna"].obsm["X_bioren"].shape[0] == query.n_obs
    assert together["protein"].layers["bioren"].shape == (query.n_obs, 5)


# CuPy, which no machine without a GPU has


class FakeGPU:
    """An array that knows its shape and type, gives parts and copies, and nothing else."""

    def __init__(self, x):
        self._x = x
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim
        if sparse.issparse(x):
            self.format = x.format

    def __getitem__(self, index):
        return type(self)(self._x[index])

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __len__(self):
        return self.shape[0]

    def get(self):
        return self._x.copy()


class FakeSparseGPU(FakeGPU):
    pass


FakeGPU.__module__ = "cupy"
FakeSparseGPU.__module__ = "cupyx.scipy.sparse._csr"

ON_GPU = {
    "dense": lambda x: FakeGPU(np.asarray(x)),
    "csr": lambda x: FakeSparseGPU(sparse.csr_matrix(x)),
    "csc": lambda x: FakeSparseGPU(sparse.csc_matrix(x)),
}


@pytest.mark.parametrize("form", ON_GPU)
def test_arrays_are_fetched_from_the_gpu(queries, form):
    there = ON_GPU[form](queries.X)
    for entries in (2**23, 100):
        found = np.vstack([to_dense(block) for _, block in row_blocks(there, entries=entries)])
        assert_array_equal(found, queries.X)
    found, expected = Moments.of(there), Moments.of(queries.X)
    assert_allclose(found.mean, expected.mean)
    assert_allclose(found.m2, expected.m2)


def test_what_lies_in_memory_is_left_alone(queries):
    class Like:
        def get(self):
            raise AssertionError

    like = Like()
    for thing in (queries.X, sparse.csr_matrix(queries.X), like, {"get": 1}):
        assert on_host(thing) is thing


def on_gpu(adata, form):
    adata = adata.copy()
    adata._X = ON_GPU[form](adata.X)  # AnnData asks for the real CuPy
    return adata


@pytest.mark.parametrize("form", ON_GPU)
def test_cells_on_the_gpu_are_mapped_and_corrected(model, queries, mapped_once, quick, form):
    query = on_gpu(queries, form)
    bioren.tl.map_query(query, model, batch_key="sample")
    assert_allclose(query.obsm["X_bioren"], mapped_once.obsm["X_bioren"], atol=1e-4)
    assert isinstance(query.layers["bioren"], np.ndarray)
    assert_allclose(query.layers["bioren"], mapped_once.layers["bioren"], atol=1e-4)
    for function, options in (
        (bioren.pp.bridge, {}),
        (bioren.tl.integrate, {"training": quick, "progress": False}),
    ):
        query, expected = on_gpu(queries, form), queries.copy()
        if form != "dense":
            expected.X = sparse.csr_matrix(expected.X)
        for adata in (query, expected):
            function(adata, "sample", **options)
        assert_allclose(query.layers["bioren"], expected.layers["bioren"], atol=1e-4)


def test_an_embedding_on_the_gpu_is_fetched():
    z = np.random.default_rng(0).normal(size=(30, 5))
    there = SimpleNamespace(obsm={"X_pca": FakeGPU(z)})  # AnnData asks for the real CuPy
    assert_array_equal(read_embedding(there, "X_pca"), z)


def test_blocks_that_dask_computes_on_the_gpu_are_fetched(queries):
    class Lazy:
        shape, dtype, format = queries.shape, queries.X.dtype, None

        def __getitem__(self, rows):
            return type("Part", (), {"compute": lambda _: FakeGPU(queries.X[rows])})()

    found = np.vstack([block for _, block in row_blocks(Lazy(), entries=1000)])
    assert_array_equal(found, queries.X)
    assert_array_equal(
        np.vstack([b for _, b in row_blocks(da.from_array(queries.X, chunks=50))]), queries.X
    )


# Files


def of_bridge(queries, model):
    return bioren.pp.bridge(queries, "sample", reference=model.population_, copy=True)


def of_integration(queries, model, **options):
    queries = queries.copy()
    queries.obs["depth"] = np.linspace(0, 1, queries.n_obs)
    return bioren.tl.integrate(
        queries,
        ["sample"],
        labels_key="type",
        covariates=["depth"],
        max_removed=(2, 1.5),
        training=bioren.network.training.TrainingOptions(max_epochs=0, progress=False),
        progress=False,
        copy=True,
        **options,
    )


def of_mapping(queries, model):
    few = queries[:, :30].copy()
    few.var["name"] = few.var_names.astype(object)
    return bioren.tl.map_query(few, model, batch_key=["sample"], genes_key="name", copy=True)


def of_mapping_without_score(queries, model):
    small = fitted(queries[:10].copy())
    return bioren.tl.map_query(queries, small, copy=True)


def plain(value):
    """Return a record with tuples, lists and strings as arrays, as files have them."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {key: plain(entry) for key, entry in value.items()}
    if value is None or isinstance(value, str | bool):
        return value
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind in "OU" else array


@pytest.mark.parametrize(
    ("write", "read"),
    [("write_h5ad", read_h5ad), ("write_zarr", read_zarr)],
    ids=["h5ad", "zarr"],
)
@pytest.mark.parametrize("make", [of_bridge, of_integration, of_mapping, of_mapping_without_score])
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_all_results_survive_a_file(model, queries, tmp_path, write, read, make):
    adata = make(queries, model)
    getattr(adata, write)(tmp_path / "cells")
    again = read(tmp_path / "cells")
    assert_equal(plain(again.uns["bioren"]), plain(adata.uns["bioren"]))
    for slot in ("obsm", "layers"):
        for key, values in getattr(adata, slot).items():
            assert_array_equal(getattr(again, slot)[key], values)
    for frame in ("obs", "var"):
        found, expected = getattr(again, frame), getattr(adata, frame)
        assert list(found) == list(expected)
        for column in expected:
            if column.startswith("bioren"):
                assert_array_equal(found[column].to_numpy(), expected[column].to_numpy())
    assert bioren.tl.batch_effects(again).equals(bioren.tl.batch_effects(adata))
    # A second file of what was read is the same.
    getattr(again, write)(tmp_path / "again")
    assert_equal(plain(read(tmp_path / "again").uns["bioren"]), plain(again.uns["bioren"]))
