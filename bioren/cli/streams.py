"""AnnData files whose matrices stay on disk: read lazily, written chunk by chunk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bioren.arrays.blocks import BLOCK_ENTRIES, is_lazy, row_blocks

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Stored", "is_zarr", "read_stored", "write_stored"]

#: Rows of a dense matrix that are compressed together; such are written together.
TOGETHER = 64

#: What is read into memory, but for matrices of cells x genes.
IN_MEMORY = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp")


class Stored(NamedTuple):
    """An AnnData, and where its matrices lie on disk.

    Attributes
    ----------
    adata
        Lazy where there is dask: ``X`` and layers are dask arrays, all else is in memory.
    path
        The file that it was read from.
    places
        Of each lazy matrix, by its name for dask, the place in the file.
    """

    adata: AnnData
    path: Path
    places: dict[str, str]


def is_zarr(path: Path) -> bool:
    """Return whether a path is that of a zarr store, by its name."""
    return path.suffix == ".zarr"


def read_stored(path: Path) -> Stored:
    """Read an .h5ad file or a .zarr store; matrices of cells x genes are left on disk."""
    import anndata

    from bioren.adata.on_disk import has_dask

    if not has_dask():
        read = anndata.read_zarr if is_zarr(path) else anndata.read_h5ad
        return Stored(read(path), path, {})
    if is_zarr(path):
        import zarr

        return _read(zarr.open_group(path, mode="r"), path)
    import h5py

    with h5py.File(path, "r") as file:
        if file.attrs.get("encoding-type") != "anndata":  # of early versions, or none at all
            return Stored(anndata.read_h5ad(path), path, {})
        return _read(file, path)


def _read(file: Any, path: Path) -> Stored:
    import anndata

    parts = {key: anndata.io.read_elem(file[key]) for key in IN_MEMORY if key in file}
    places: dict[str, str] = {}

    def matrix(place: str) -> Any:
        x = _lazily(file[place])
        if is_lazy(x):
            places[x.name] = place
        return x

    layers = {name: matrix(f"layers/{name}") for name in file.get("layers", {})}
    x = matrix("X") if "X" in file else None
    adata = anndata.AnnData(x, layers=layers, **parts)
    raw = file.get("raw")
    if raw is not None and raw.attrs.get("encoding-type") == "raw":  # else it stands for None
        varm = anndata.io.read_elem(raw["varm"]) if "varm" in raw else None
        var = anndata.io.read_elem(raw["var"])
        adata.raw = anndata.AnnData(matrix("raw/X"), obs=parts["obs"][[]], var=var, varm=varm)
    return Stored(adata, path, places)


def _lazily(element: Any) -> Any:
    """Return a matrix that is stored, lazily if its rows can be read by themselves."""
    import anndata

    from bioren.adata.on_disk import lazily

    kind = element.attrs.get("encoding-type")
    if kind == "csr_matrix":
        return lazily(anndata.io.sparse_dataset(element))
    return lazily(element) if kind == "array" else anndata.io.read_elem(element)


def write_stored(stored: Stored, path: Path) -> None:
    """Write an AnnData as .h5ad or .zarr, compressed; lazy matrices are never held as a whole.

    Parameters
    ----------
    stored
        An AnnData that may have changed since it was read; what has not is copied as it is.
    path
        Written anew.
    """
    adata = stored.adata
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Writing zarr v2")  # anndata's next default
        if is_zarr(path):
            adata.write_zarr(path)
            return
        if not any(map(is_lazy, (adata.X, *adata.layers.values()))):
            adata.write_h5ad(path, compression="gzip")
            return
        _write_h5ad(stored, path)


def _write_h5ad(stored: Stored, path: Path) -> None:
    import anndata
    import h5py

    adata = stored.adata
    parts = {key: getattr(adata, key) for key in IN_MEMORY}
    # anndata writes all but the matrices, which are then added one by one.
    anndata.AnnData(**parts).write_h5ad(path, compression="gzip")
    with h5py.File(path, "a") as file:
        matrices = {"X": adata.X} | {f"layers/{name}": x for name, x in adata.layers.items()}
        if adata.raw is not None:
            matrices["raw/X"] = adata.raw.X
            for key, part in {"var": adata.raw.var, "varm": dict(adata.raw.varm)}.items():
                anndata.io.write_elem(file, f"raw/{key}", part)
            file["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
        for place, x in matrices.items():
            if x is None or (is_lazy(x) and _copied(stored, x.name, (file, place))):
                continue
            _write_matrix(file, place, x)


def _copied(stored: Stored, name: str, to: tuple[Any, str]) -> bool:
    """Copy a matrix that lies in the source, compressed, as it is; return whether it does."""
    import h5py

    place = stored.places.get(name)
    if place is None or is_zarr(stored.path):
        return False
    file, target = to
    with h5py.File(stored.path, "r") as source:
        found = source[place]
        values = found["data"] if isinstance(found, h5py.Group) else found
        if values.compression is None:
            return False
        if target in file:
            del file[target]
        source.copy(found, file, name=target)
    return True


def _write_matrix(file: Any, place: str, x: Any) -> None:
    """Write a matrix some rows at a time."""
    import anndata

    if not is_lazy(x):
        anndata.io.write_elem(file, place, x, dataset_kwargs={"compression": "gzip"})
        return
    n_rows = max(1, BLOCK_ENTRIES // x.shape[1] // TOGETHER) * TOGETHER
    blocks = row_blocks(x, entries=n_rows * x.shape[1])
    _, first = next(blocks)
    if not isinstance(first, np.ndarray):
        # Many values may follow, more than 32 bits count.
        first.indptr = first.indptr.astype(np.int64)
        options = {"compression": "gzip", "compression_opts": 1}
        anndata.io.write_elem(file, place, first, dataset_kwargs=options)
        written = anndata.io.sparse_dataset(file[place])
        for _, block in blocks:
            written.append(block)
        return
    # Dense values with noise are as large after gzip, which takes five times as long.
    chunks = min(TOGETHER, len(first)), x.shape[1]
    options = {"compression": "lzf", "shuffle": True, "chunks": chunks}
    anndata.io.write_elem(file, place, first[:0], dataset_kwargs={})
    attributes = dict(file[place].attrs)
    del file[place]
    written = file.create_dataset(place, x.shape, x.dtype, **options)
    written.attrs.update(attributes)
    written[: len(first)] = first
    for rows, block in blocks:
        written[rows] = block
