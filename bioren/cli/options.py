"""What the commands share: files, preparation, errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from anndata import AnnData

    from bioren.arrays.groups import BatchKey

__all__ = [
    "atomic_targets",
    "clear_errors",
    "normalize",
    "one_or_several",
    "prepare",
    "read_file",
    "same_file",
    "speaker",
]


def speaker(quiet: bool) -> Callable[[str], None]:
    """Return what prints a line, or nothing at all."""
    return (lambda text: None) if quiet else typer.echo


def one_or_several(names: list[str] | None) -> Any:
    """Return what a repeatable option names: None, one name, or a list of names."""
    return names[0] if names and len(names) == 1 else names or None


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


def normalize(adata: AnnData, say: Callable[[str], None], target_sum: float | None = None) -> None:
    """Bring counts in X to log-expression, and say so."""
    from bioren.adata.normalize import TARGET_SUM, normalize_counts

    target_sum = target_sum or TARGET_SUM
    if normalize_counts(adata, target_sum):
        done = f"brought to {target_sum:,.0f} per cell, log1p; kept in layers['counts']"
        say(f"X holds counts: {done}")


def prepare(
    adata: AnnData,
    batch_key: BatchKey,
    layer: str | None,
    genes: int,
    say: Callable[[str], None],
    *,
    single: bool = False,
) -> None:
    """Bring counts to log-expression and mark variable genes, where need be, and say so."""
    from bioren.adata.matrix import read_cells
    from bioren.adata.normalize import mark_variable_genes
    from bioren.adata.obs import read_batches

    samples = read_batches(adata, batch_key, single=single).names
    cells = read_cells(adata, layer)
    say(f"{len(samples)} samples in obs[{batch_key!r}]")
    if layer is None:
        normalize(adata, say)
    elif cells.values.like_counts:
        msg = (
            f"layers[{layer!r}] holds counts, and --layer names log-expression. Counts are "
            "normalised where they are in X: move them there, and leave out --layer."
        )
        raise ValueError(msg)
    if "highly_variable" in adata.var:
        say(f"{len(cells.variable):,} variable genes, as var['highly_variable'] marks them")
    elif mark_variable_genes(adata, batch_key, genes, layer=layer):
        say(f"{genes:,} variable genes chosen by batch, in var['highly_variable']")


@contextmanager
def clear_errors(quiet: bool) -> Iterator[None]:
    """Turn what a user can repair into one message and exit code 1, warnings into one line."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        # Other packages' announcements to their callers are not for users.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"Warning: {message}", err=True)
        try:
            yield
        except (KeyError, ValueError, ArithmeticError, OSError, MemoryError) as error:
            # str() of a KeyError would quote the message.
            text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
            typer.echo(f"Error: {text or type(error).__name__}", err=True)
            raise typer.Exit(1) from error
