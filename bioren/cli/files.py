"""Files that the commands read and write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["atomic_targets", "read_file", "same_file", "write_file"]


@contextmanager
def atomic_targets(
    source: Path, targets: list[Path], *, overwrite: bool
) -> Iterator[dict[Path, Path]]:
    """Yield what to write instead of each target, which takes its place when all went well."""
    from bioren.files.atomic import atomic_write

    if len({path.resolve() for path in targets}) < len(targets):
        raise FileExistsError(f"{targets[0]} is named twice: name a file for each.")
    for path in targets:
        if path.exists() and not path.is_dir() and not overwrite:
            what = "is the input itself" if same_file(source, path) else "exists already"
            raise FileExistsError(f"{path} {what}; --overwrite replaces it.")
    with ExitStack() as files:
        yield {
            path: files.enter_context(atomic_write(path, overwrite=overwrite)) for path in targets
        }


def same_file(source: Path, target: Path) -> bool:
    """Return whether both are one file that exists."""
    return source.exists() and target.exists() and source.samefile(target)


def read_file(source: Path, say: Callable[[str], None]) -> AnnData:
    """Return what an .h5ad file holds, and say how much it is."""
    import anndata

    if not source.is_file():
        what = "this is a folder" if source.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{source}: {what}. Name an .h5ad file.")
    try:
        adata = anndata.read_h5ad(source)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{source} cannot be read as .h5ad: {reason}") from error
    say(f"{source}: {adata.n_obs:,} cells x {adata.n_vars:,} genes")
    return adata


def write_file(adata: AnnData, path: Path) -> None:
    """Write results as .h5ad."""
    adata.write_h5ad(path)
