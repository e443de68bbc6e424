"""Files that the commands read and write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bioren.cli.streams import Stored, is_zarr, read_stored

__all__ = ["atomic_targets", "read_file", "same_file"]


@contextmanager
def atomic_targets(
    source: Path, targets: list[Path], *, overwrite: bool
) -> Iterator[dict[Path, Path]]:
    """Yield what to write instead of each target, which takes its place when all went well."""
    from bioren.files.atomic import atomic_folder, atomic_write

    if len({path.resolve() for path in targets}) < len(targets):
        raise FileExistsError(f"{targets[0]} is named twice: name a file for each.")
    for path in targets:
        if path.exists() and not overwrite and (is_zarr(path) or not path.is_dir()):
            what = "is the input itself" if same_file(source, path) else "exists already"
            raise FileExistsError(f"{path} {what}; --overwrite replaces it.")
    with ExitStack() as files:
        yield {
            path: files.enter_context(
                (atomic_folder if is_zarr(path) else atomic_write)(path, overwrite=overwrite)
            )
            for path in targets
        }


def same_file(source: Path, target: Path) -> bool:
    """Return whether both are one file that exists."""
    return source.exists() and target.exists() and source.samefile(target)


def read_file(source: Path, say: Callable[[str], None]) -> Stored:
    """Return what an .h5ad file or a .zarr store holds, and say how much it is."""
    from bioren.adata.on_disk import has_dask

    kind = ".zarr" if is_zarr(source) else ".h5ad"
    if not (source.is_dir() if is_zarr(source) else source.is_file()):
        what = f"there is no such {'store' if is_zarr(source) else 'file'}"
        if source.is_dir():
            what = "this is a folder"
        raise FileNotFoundError(f"{source}: {what}. Name an .h5ad file, or a .zarr store.")
    try:
        stored = read_stored(source)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{source} cannot be read as {kind}: {reason}") from error
    adata = stored.adata
    say(f"{source}: {adata.n_obs:,} cells x {adata.n_vars:,} genes")
    if not has_dask():
        say("read into memory; chunk by chunk with dask: pip install 'bioren[dask]'")
    return stored
