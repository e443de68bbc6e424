"""Matrices of a backed AnnData as dask arrays: read chunk by chunk, whenever they are needed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from bioren.arrays.blocks import BLOCK_ENTRIES

__all__ = ["has_dask", "lazily"]


def has_dask() -> bool:
    """Return whether dask is installed."""
    return find_spec("dask") is not None


def lazily(x: Any) -> Any:
    """Return a matrix on disk as a dask array if there is dask, and anything else as it is.

    One in CSC form, whose rows cannot be read, is read into memory.
    """
    import h5py
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(x, CSCDataset):
        return x.to_memory()
    is_array = isinstance(x, h5py.Dataset) or type(x).__module__.split(".")[0] == "zarr"
    if not (isinstance(x, CSRDataset) or is_array) or not has_dask():
        return x
    n_rows = max(1, BLOCK_ENTRIES // x.shape[1])
    # What is compressed together is read together.
    together = (x.chunks or (1,))[0] if is_array else 1
    n_rows = n_rows if n_rows < together else n_rows // together * together
    return _read_lazily(x if is_array else x.group, n_rows)


def _read_lazily(stored: Any, n_rows: int) -> Any:
    from anndata import experimental

    # Its name until anndata 0.12.
    read = getattr(experimental, "read_elem_lazy", None) or experimental.read_elem_as_dask
    return read(stored, chunks=(n_rows, -1))
