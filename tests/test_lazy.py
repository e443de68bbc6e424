"""Matrices on disk or computed by dask: read block by block, results that are lazy as well."""

import warnings
from collections import Counter
from inspect import unwrap

import dask.array as da
import numpy as np
import pytest
from anndata import AnnData, experimental, read_h5ad, read_zarr
from h5py import File
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from simulation import simulate

import bioren
from bioren.adata import on_disk
from bioren.arrays.blocks import gather_rows, is_lazy, row_blocks, to_dense

zarr = pytest.importorskip("zarr")

N_CELLS = 120


@pytest.fixture(scope="module")
def cells():
    adata = simulate()
    adata.X = np.where(adata.X > 1, adata.X, 0).astype(np.float32)
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 4 > 0
    adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs)
    adata.obs["known"] = adata.obs["type"].astype("category")
    return adata


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    """The cells, stored in all ways."""
    path = tmp_path_factory.mktemp("cells")
    for name, form in {"dense": np.asarray, "csr": sparse.csr_matrix}.items():
        stored = cells.copy()
        stored.X = form(cells.X)
        stored.write_h5ad(path / f"{name}.h5ad")
        write_zarr(stored, path / f"{name}.zarr")
    return path


def write_zarr(adata, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata and zarr announce their next formats
        adata.write_zarr(path)


def chunks_of(form, chunks):
    def lazily(cells, folder):
        x = da.from_array(cells.X, chunks=chunks)
        return with_x(cells, x if form is np.asarray else x.map_blocks(form))

    return lazily


def with_x(cells, x):
    return AnnData(x, obs=cells.obs.copy(), var=cells.var.copy())


def backed(name):
    return lambda cells, folder: read_h5ad(folder / name, backed="r")


def lazy(name):
    def read(cells, folder):
        pytest.importorskip("xarray")  # read_lazy needs it
        return since_0_12("read_lazy")(folder / name)

    return read


def since_0_12(name):
    """Return a function that anndata has since then."""
    return getattr(experimental, name, None) or pytest.skip(f"this anndata has no {name}")


def element(name):
    def read(cells, folder):
        path = folder / name
        store = zarr.open_group(path, mode="r") if path.suffix == ".zarr" else File(path, "r")
        return with_x(cells, since_0_12("read_elem_lazy")(store["X"]))

    return read


KINDS = {
    "backed": backed("csr.h5ad"),
    "backed, dense": backed("dense.h5ad"),
    "read_lazy": lazy("csr.h5ad"),
    "read_lazy, dense": lazy("dense.h5ad"),
    "read_lazy, zarr": lazy("csr.zarr"),
    "read_lazy, dense zarr": lazy("dense.zarr"),
    "read_elem_lazy": element("csr.h5ad"),
    "read_elem_lazy, dense": element("dense.h5ad"),
    "read_elem_lazy, zarr": element("csr.zarr"),
    "read_elem_lazy, dense zarr": element("dense.zarr"),
    "arrays": chunks_of(np.asarray, (50, -1)),
    "arrays, small": chunks_of(np.asarray, (7, 3)),
    "arrays, uneven": chunks_of(np.asarray, ((1, 100, 19), (20,))),
    "arrays, one of them empty": chunks_of(np.asarray, ((50, 0, 70), (20,))),
    "csr_matrix": chunks_of(sparse.csr_matrix, (50, -1)),
    "csr_matrix, one of them empty": chunks_of(sparse.csr_matrix, ((50, 0, 70), (20,))),
    "csr_matrix, small": chunks_of(sparse.csr_matrix, (7, 3)),
    "csr_array": chunks_of(sparse.csr_array, (50, -1)),
    "csr_array, small": chunks_of(sparse.csr_array, (7, 3)),
}

OPTIONS = {"covariates": ["age"], "labels_key": "known", "progress": False}


@pytest.fixture(params=KINDS)
def kind(request, cells, folder, monkeypatch):
    """The cells in one form, read some 30 at a time."""
    monkeypatch.setattr(on_disk, "BLOCK_ENTRIES", 600)
    monkeypatch.setitem(unwrap(row_blocks).__kwdefaults__, "entries", 600)
    return KINDS[request.param](cells, folder)


@pytest.fixture(scope="module")
def model(cells):
    return bioren.RenormAutoencoder(n_latent=5).fit(cells, "sample", covariates=["age"])


@pytest.fixture(scope="module")
def integrated(cells):
    return bioren.tl.integrate(cells, "sample", **OPTIONS, copy=True)


@pytest.fixture(scope="module")
def bridged(cells):
    return bioren.pp.bridge(cells, "sample", copy=True)


@pytest.fixture(scope="module")
def mapped(cells, model):
    adata = cells.copy()
    bioren.tl.map_query(adata, model, batch_key="sample")
    return adata


def assert_same(found, expected):
    """Compare the layer, lazy, and the embedding, if there is one, with those in memory."""
    assert is_lazy(found.layers["bioren"])
    assert found.layers["bioren"].dtype == expected.layers["bioren"].dtype
    assert_allclose(found.layers["bioren"].compute(), expected.layers["bioren"], atol=1e-5)
    for key in expected.obsm:
        assert_allclose(found.obsm[key], expected.obsm[key], atol=1e-5)
    assert_allclose(found.uns["bioren"]["d"], expected.uns["bioren"]["d"], atol=1e-5)


class TestAllKindsOfInput:
    def test_integrate(self, kind, integrated):
        bioren.tl.integrate(kind, "sample", **OPTIONS)
        assert_same(kind, integrated)

    def test_bridge(self, kind, bridged):
        bioren.pp.bridge(kind, "sample")
        assert_same(kind, bridged)

    def test_map_query(self, kind, model, mapped):
        bioren.tl.map_query(kind, model, batch_key="sample")
        assert_same(kind, mapped)
        for key in ("bioren_mapping_score",):
            assert_allclose(np.asarray(kind.obs[key]), mapped.obs[key], atol=1e-5)

    def test_the_model(self, kind, cells, model):
        found = bioren.RenormAutoencoder(n_latent=5).fit(kind, "sample", covariates=["age"])
        assert_allclose(found.embed(kind), model.embed(cells), atol=1e-5)
        corrected = found.correct(kind)
        assert is_lazy(corrected)
        assert_allclose(corrected.compute(), model.correct(cells), atol=1e-5)

    def test_moments(self, kind, cells):
        found, expected = bioren.Moments.of(kind.X), bioren.Moments.of(cells.X)
        assert_allclose(found.mean, expected.mean)
        assert_allclose(found.m2, expected.m2)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_the_layer_is_written_as_it_is_computed(kind, tmp_path, suffix):
    bioren.tl.integrate(kind, "sample", **OPTIONS)
    layer, path = kind.layers["bioren"], tmp_path / f"layer{suffix}"
    alone = AnnData(layers={"bioren": layer})
    if suffix == ".zarr":
        write_zarr(alone, path)
    else:
        alone.write_h5ad(path)
    found = (read_zarr if suffix == ".zarr" else read_h5ad)(path).layers["bioren"]
    assert_array_equal(found, layer.compute())
    assert found.dtype == layer.dtype


@pytest.mark.parametrize("name", ["csr.h5ad", "dense.h5ad"])
def test_results_of_a_backed_file_are_written_beside_it(cells, folder, tmp_path, integrated, name):
    adata = read_h5ad(folder / name, backed="r")
    before = (folder / name).read_bytes()
    bioren.tl.integrate(adata, "sample", **OPTIONS)
    adata.write_h5ad(tmp_path / "written.h5ad")
    adata.file.close()
    written = read_h5ad(tmp_path / "written.h5ad")
    assert_allclose(written.layers["bioren"], integrated.layers["bioren"], atol=1e-5)
    assert (folder / name).read_bytes() == before


def test_the_layer_outlives_the_file_that_was_open(cells, folder, integrated):
    adata = read_h5ad(folder / "csr.h5ad", backed="r")
    bioren.tl.integrate(adata, "sample", **OPTIONS)
    adata.file.close()
    found = adata.layers["bioren"].compute()
    assert_allclose(found, integrated.layers["bioren"], atol=1e-5)


def test_the_layer_does_not_hold_what_it_is_made_of(cells):
    x = da.from_array(cells.X, chunks=(50, -1))
    adata = with_x(cells, x.map_blocks(lambda block: block))
    bioren.pp.bridge(adata, "sample")
    assert adata.layers["bioren"].chunks == ((50, 50, 20), (20,))
    assert is_lazy(adata.X)


@pytest.mark.parametrize("correct", [bioren.pp.bridge, bioren.tl.integrate])
def test_nothing_of_the_input_changes(kind, cells, correct):
    columns, genes = list(kind.obs), list(kind.var)
    correct(kind, "sample")
    assert list(kind.obs) == columns
    assert list(kind.var) == genes
    x = np.concatenate([to_dense(block) for _, block in row_blocks(kind.X)])
    assert_array_equal(x, cells.X)


def test_a_copy_of_a_lazy_anndata_is_lazy_and_one_of_a_backed_file_in_memory(cells, folder):
    adata = KINDS["csr_matrix"](cells, folder)
    found = bioren.pp.bridge(adata, "sample", copy=True)
    assert is_lazy(found.layers["bioren"])
    assert "bioren" not in adata.layers
    adata = KINDS["backed"](cells, folder)
    found = bioren.pp.bridge(adata, "sample", copy=True)
    assert isinstance(found.layers["bioren"], np.ndarray)
    assert "bioren" not in adata.layers


def test_a_view_of_a_lazy_anndata_becomes_one_of_its_own(cells, folder):
    adata = KINDS["read_lazy"](cells, folder)
    view = adata[::2]
    bioren.pp.bridge(view, "sample")
    expected = bioren.pp.bridge(cells[::2], "sample", copy=True)
    assert_allclose(view.layers["bioren"].compute(), expected.layers["bioren"], atol=1e-5)
    assert "bioren" not in adata.layers


def test_without_centering_the_layer_stays_sparse(kind, cells):
    bioren.pp.bridge(kind, "sample", center=False)
    form = sparse.csr_matrix if sparse.issparse(next(row_blocks(kind.X))[1]) else np.asarray
    expected = bioren.pp.bridge(with_x(cells, form(cells.X)), "sample", center=False, copy=True)
    found = kind.layers["bioren"].compute()
    assert sparse.issparse(found) == sparse.issparse(expected.layers["bioren"])
    assert_allclose(to_dense(found), to_dense(expected.layers["bioren"]), atol=1e-5)


def test_controls_are_read_lazily(kind, cells):
    control = np.random.default_rng(0).random(N_CELLS) < 0.7
    kind.obs["control"] = control
    bioren.tl.integrate(kind, "sample", controls_key="control", progress=False)
    there = with_x(cells, cells.X)
    there.obs["control"] = control
    bioren.tl.integrate(there, "sample", controls_key="control", progress=False)
    assert_same(kind, there)


def test_missing_values_stay_missing(kind_of_missing, cells):
    adata, expected = kind_of_missing
    with pytest.warns(UserWarning, match="missing"):
        bioren.pp.bridge(adata, "sample")
    with pytest.warns(UserWarning, match="missing"):
        bioren.pp.bridge(expected, "sample")
    assert_allclose(adata.layers["bioren"].compute(), expected.layers["bioren"], atol=1e-5)


@pytest.fixture
def kind_of_missing(cells):
    x = np.where(np.random.default_rng(0).random(cells.shape) < 0.05, np.nan, cells.X)
    return with_x(cells, da.from_array(x, chunks=(7, 3))), with_x(cells, x)


def test_counts_are_refused_as_in_memory(cells):
    adata = with_x(cells, da.from_array(np.round(cells.X * 10), chunks=(50, -1)))
    with pytest.raises(ValueError, match="look like counts"):
        bioren.tl.integrate(adata, "sample", progress=False)


def test_each_chunk_is_computed_once_in_a_pass(cells):
    seen = []

    def note(block, block_info=None):
        seen.append(block_info[None]["array-location"][0])
        return block

    x = da.from_array(cells.X, chunks=(7, -1)).map_blocks(note, dtype=cells.X.dtype)
    seen.clear()
    list(row_blocks(x, entries=20 * 16))
    assert sorted(seen) == [(i, min(i + 7, N_CELLS)) for i in range(0, N_CELLS, 7)]


@pytest.mark.parametrize("step", [1, 7, 16, 30, 120, 200])
def test_blocks_are_cut_as_in_memory(kind, cells, step):
    found = list(row_blocks(kind.X, entries=20 * step))
    expected = list(row_blocks(cells.X, entries=20 * step))
    assert [rows for rows, _ in found] == [rows for rows, _ in expected]
    for (_, block), (_, there) in zip(found, expected, strict=True):
        assert_array_equal(to_dense(block), there)


@pytest.mark.parametrize("chunks", [(50, -1), (7, 3), ((50, 0, 70), (20,))])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_a_lazy_matrix_gives_what_the_same_in_memory_gives_bit_for_bit(
    cells, folder, correct, form, chunks
):
    there, lazily = with_x(cells, form(cells.X)), chunks_of(form, chunks)(cells, folder)
    correct(there, "sample")
    correct(lazily, "sample")
    assert_array_equal(lazily.uns["bioren"]["d"], there.uns["bioren"]["d"])
    for key in there.obsm:
        assert_array_equal(lazily.obsm[key], there.obsm[key])
    assert_allclose(lazily.layers["bioren"].compute(), there.layers["bioren"], rtol=1e-6, atol=1e-6)


def test_rows_are_gathered_of_lazy_matrices(kind, cells):
    some = np.array([0, 3, 50, 51, 119])
    assert_array_equal(to_dense(gather_rows(kind.X, some)), cells.X[some])


def test_of_obs_only_named_columns_are_read(cells, folder, monkeypatch):
    pytest.importorskip("xarray")
    from anndata._core.xarray import Dataset2D

    read = []
    whole = Dataset2D.to_memory

    def spied(self, *args, **kwargs):
        read.append(sorted(self.columns))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Dataset2D, "to_memory", spied)
    bioren.tl.integrate(KINDS["read_lazy"](cells, folder), "sample", **OPTIONS)
    assert sorted(read) == [["age"], ["highly_variable"], ["known"], ["sample"]]


@pytest.fixture
def without_dask(monkeypatch):
    monkeypatch.setattr(on_disk, "find_spec", lambda name: None)


def test_without_dask_results_of_a_backed_file_are_in_memory(
    without_dask, cells, folder, integrated
):
    adata = KINDS["backed"](cells, folder)
    with pytest.warns(UserWarning, match=r"pip install 'bioren\[dask\]'"):
        bioren.tl.integrate(adata, "sample", **OPTIONS)
    assert isinstance(adata.layers["bioren"], np.ndarray)
    assert_allclose(adata.layers["bioren"], integrated.layers["bioren"], atol=1e-5)


class TestWhatIsCorrected:
    def test_variable_genes_alone(self, kind, cells, correct):
        correct(kind, "sample", corrected="highly_variable")
        whole = correct(cells, "sample", copy=True)
        genes = kind.uns["bioren"]["variable_genes"]
        assert_array_equal(genes, cells.var_names[cells.var["highly_variable"]])
        assert "bioren" not in kind.layers
        found = kind.obsm["bioren_corrected"]
        assert is_lazy(found)
        expected = whole[:, genes].layers["bioren"]
        assert_allclose(found.compute(), expected, atol=1e-5)

    @pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
    def test_variable_genes_in_memory(self, cells, correct, form):
        adata = with_x(cells, form(cells.X))
        correct(adata, "sample", corrected="highly_variable")
        whole = correct(with_x(cells, form(cells.X)), "sample", copy=True)
        expected = whole[:, adata.uns["bioren"]["variable_genes"]].layers["bioren"]
        assert_allclose(adata.obsm["bioren_corrected"], expected, atol=1e-5)
        assert not adata.layers

    def test_none(self, cells, correct):
        adata = cells.copy()
        correct(adata, "sample", corrected=None)
        assert not adata.layers
        assert "bioren_corrected" not in adata.obsm
        expected = correct(cells, "sample", copy=True)
        assert_array_equal(bioren.tl.batch_effects(adata), bioren.tl.batch_effects(expected))

    def test_another_choice_is_refused(self, cells, correct):
        with pytest.raises(ValueError, match="'all', 'highly_variable' or None, received 'some'"):
            correct(cells, "sample", corrected="some")

    def test_variable_genes_have_to_be_marked(self, cells, correct):
        adata = cells.copy()
        del adata.var["highly_variable"]
        with pytest.raises(KeyError, match=r"sc\.pp\.highly_variable_genes"):
            correct(adata, "sample", corrected="highly_variable")


def test_a_fit_reads_each_chunk_three_times(cells):
    seen = Counter()

    def note(block, block_info=None):
        seen[block_info[None]["array-location"][0]] += 1
        return block

    x = da.from_array(cells.X, chunks=(50, -1)).map_blocks(note, dtype=cells.X.dtype)
    adata = with_x(cells, x)
    seen.clear()
    bioren.tl.integrate(adata, "sample", corrected=None, progress=False)
    # The first million of entries, here all, tell once more what sum the cells were brought to.
    assert set(seen.values()) == {3 + 1}
