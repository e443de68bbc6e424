"""Files of the command line: read lazily, written chunk by chunk, whole or not at all."""

import warnings

import anndata
import h5py
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from test_cli import counts, integrate, logged, one_message, only

import bioren
from bioren.adata import on_disk
from bioren.arrays.blocks import is_lazy
from bioren.cli import streams
from bioren.cli.streams import read_stored, write_stored

pytest.importorskip("zarr")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(on_disk, "BLOCK_ENTRIES", 40 * 50)
    monkeypatch.setattr(streams, "BLOCK_ENTRIES", 40 * 50)
    monkeypatch.setattr(streams, "TOGETHER", 16)


def full(form=sparse.csr_matrix):
    """An AnnData that has something in every slot."""
    adata = logged()
    adata.X = form(adata.X.toarray())
    rng = np.random.default_rng(0)
    adata.layers["counts"] = counts().X
    adata.layers["csc"] = sparse.csc_matrix(adata.layers["counts"])
    adata.obsm["X_pca"] = rng.normal(size=(adata.n_obs, 3))
    adata.varm["PCs"] = rng.normal(size=(adata.n_vars, 3))
    adata.obsp["distances"] = sparse.random(adata.n_obs, adata.n_obs, 0.05, "csr", rng=0)
    adata.varp["graph"] = np.eye(adata.n_vars)
    adata.uns["colors"] = np.array(["red", "blue"], dtype=object)
    adata.raw = adata.copy()
    return adata


def write(adata, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path, **options)
    return path


def read(path):
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def same(a, b):
    return np.array_equal(*(x.toarray() if sparse.issparse(x) else np.asarray(x) for x in (a, b)))


def assert_holds(found, given):
    """Assert that all that was given is still there, and has not changed."""
    assert same(found.X, given.X)
    for slot in ("layers", "obsm", "varm", "obsp", "varp"):
        for key, x in getattr(given, slot).items():
            assert same(getattr(found, slot)[key], x), (slot, key)
    assert_array_equal(found.uns["colors"], given.uns["colors"])
    assert same(found.raw.X, given.raw.X)
    assert list(found.raw.var_names) == list(given.raw.var_names)
    assert found.obs.equals(given.obs)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
@pytest.mark.parametrize("written", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("name", ["in.h5ad", "in.zarr"])
def test_what_is_read_and_written_again_is_the_same(tmp_path, name, written, options, form):
    if name == "in.zarr" and options:
        pytest.skip("zarr compresses by itself")
    given = full(form)
    path = write(given, tmp_path / name, **options)
    stored = read_stored(path)
    assert is_lazy(stored.adata.X) == (form is not sparse.csc_matrix)
    write_stored(stored, tmp_path / written)
    assert_holds(read(tmp_path / written), given)


@pytest.mark.parametrize("target", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("source", ["in.h5ad", "in.zarr"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_integration_of_a_file_is_that_of_its_cells(tmp_path, source, target, form):
    given = full(form)
    path = write(given, tmp_path / source)
    result = integrate(path, tmp_path / target, "--genes", 30)
    assert result.exit_code == 0, result.output
    found = read(tmp_path / target)
    assert found.obs.equals(given.obs)
    expected = given.copy()
    expected.var["highly_variable"] = found.var["highly_variable"]
    bioren.tl.integrate(expected, "sample", n_latent=4, progress=False)
    assert_allclose(found.obsm["X_bioren"], expected.obsm["X_bioren"], atol=1e-5)
    assert_allclose(found.layers["bioren"], expected.layers["bioren"], atol=1e-5)
    del found.layers["bioren"]
    assert_holds(found, given)
    assert only(tmp_path, source, target)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_counts_are_normalized_as_in_memory(tmp_path, suffix):
    path = write(counts(), tmp_path / f"in{suffix}")
    target = tmp_path / f"out{suffix}"
    result = integrate(path, target, "--genes", 30)
    assert result.exit_code == 0, result.output
    found, expected = read(target), counts()
    from bioren.adata.normalize import mark_variable_genes, normalize_counts

    normalize_counts(expected)
    mark_variable_genes(expected, "sample", 30)
    assert_array_equal(found.var["highly_variable"], expected.var["highly_variable"])
    assert_allclose(found.X.toarray(), expected.X.toarray(), rtol=1e-5)
    assert same(found.layers["counts"], counts().X)
    assert found.uns["log1p"].get("base") is None
    bioren.tl.integrate(expected, "sample", n_latent=4, progress=False)
    assert_allclose(found.obsm["X_bioren"], expected.obsm["X_bioren"], atol=1e-4)


def test_variable_genes_alone_or_nothing_is_corrected(tmp_path):
    path = write(counts(), tmp_path / "in.h5ad")
    for choice in ("highly_variable", "none"):
        target = tmp_path / f"{choice}.h5ad"
        result = integrate(path, target, "--genes", 30, "--corrected", choice)
        assert result.exit_code == 0, result.output
        assert "layers['bioren']" not in result.stdout
        assert "bioren" not in read(target).layers
    assert read(tmp_path / "highly_variable.h5ad").obsm["bioren_corrected"].shape == (120, 30)
    assert "bioren_corrected" not in read(tmp_path / "none.h5ad").obsm


def test_without_the_layer_a_file_is_no_larger_than_its_input_and_the_embedding(tmp_path):
    rng = np.random.default_rng(0)
    given = logged()
    given.obs_names = given.obs_names.astype(str)
    given = anndata.concat([given] * 25, index_unique="-")
    given.X.data *= rng.uniform(0.9, 1.1, given.X.nnz).astype(np.float32)
    path = write(given, tmp_path / "in.h5ad", compression="gzip")
    result = integrate(path, tmp_path / "out.h5ad", "--corrected", "none")
    assert result.exit_code == 0, result.output
    found = read(tmp_path / "out.h5ad")
    embedding = found.obsm["X_bioren"].nbytes
    more = (tmp_path / "out.h5ad").stat().st_size - path.stat().st_size
    assert more < embedding + 100_000  # the record, of 40 genes and three samples


def test_compressed_matrices_are_copied_as_they_are(tmp_path):
    path = write(full(), tmp_path / "in.h5ad", compression="gzip", compression_opts=9)
    write_stored(read_stored(path), tmp_path / "out.h5ad")
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["X/data"].compression_opts == 9
    path = write(full(), tmp_path / "plain.h5ad")
    write_stored(read_stored(path), tmp_path / "out.h5ad")
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["X/data"].compression == "gzip"


@pytest.mark.parametrize("target", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("existing", [False, True])
def test_after_an_error_in_the_middle_nothing_is_left(tmp_path, monkeypatch, target, existing):
    path = write(logged(), tmp_path / "in.h5ad")
    if existing:
        write(logged(), tmp_path / target)
    before = read(tmp_path / target).X.toarray() if existing else None

    def full_disk(stored, path):
        streams_write(stored, path)
        raise OSError("No space left on device")

    from bioren.cli import commands

    streams_write = commands.write_stored
    monkeypatch.setattr(commands, "write_stored", full_disk)
    result = integrate(path, tmp_path / target, *(["--overwrite"] if existing else []))
    assert "No space left" in one_message(result)
    assert only(tmp_path, "in.h5ad", *([target] if existing else []))
    if existing:
        assert_array_equal(read(tmp_path / target).X.toarray(), before)


@pytest.mark.parametrize("target", ["out.h5ad", "out.zarr"])
def test_what_exists_is_replaced_only_if_that_is_asked_for(tmp_path, target):
    path = write(logged(), tmp_path / "in.h5ad")
    write(logged(), tmp_path / target)
    assert "exists already" in one_message(integrate(path, tmp_path / target))
    assert integrate(path, tmp_path / target, "--overwrite").exit_code == 0
    assert "X_bioren" in read(tmp_path / target).obsm
    assert only(tmp_path, "in.h5ad", target)


def test_a_file_can_take_the_place_of_its_input(tmp_path):
    path = write(counts(), tmp_path / "in.h5ad", compression="gzip")
    assert integrate(path, path, "--overwrite").exit_code == 0
    assert sorted(read(path).layers) == ["bioren", "counts"]
    assert only(tmp_path, "in.h5ad")


def test_without_dask_files_are_read_into_memory_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk, "find_spec", lambda name: None)
    path = write(counts(), tmp_path / "in.h5ad")
    result = integrate(path, tmp_path / "out.h5ad")
    assert result.exit_code == 0, result.output
    assert "pip install 'bioren[dask]'" in result.stdout
    assert isinstance(read(tmp_path / "out.h5ad").layers["bioren"], np.ndarray)


def test_a_store_that_is_none_is_named(tmp_path):
    (tmp_path / "in.zarr").mkdir()
    assert "cannot be read as .zarr" in one_message(
        integrate(tmp_path / "in.zarr", tmp_path / "out.h5ad")
    )
    assert "there is no such store" in one_message(
        integrate(tmp_path / "no.zarr", tmp_path / "out.h5ad")
    )
