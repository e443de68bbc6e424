"""The command line: ``bioren demo`` and ``bioren integrate``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bioren

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["app"]

app = typer.Typer(
    help="Remove batch effects from gene-expression data: one affine bridge per sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bioren {bioren.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the picture and the data.")
    ] = Path("bioren-demo"),
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Remove a known batch effect from 700 real blood cells, and show what was recovered.

    The cells come with scanpy, nothing is downloaded. They are divided over four "labs" with
    different compositions of cell types, and each lab gets a shift and a scale per gene that
    are known. Takes less than a minute.
    """
    with _clear_errors():
        typer.echo("Four labs, 700 cells, 765 genes; a shift and a scale planted per lab and gene.")
        from bioren.demo import run

        found = run(output, rng=seed, progress=not quiet)
        typer.echo("\nPlanted against recovered, rank correlation over the genes:")
        typer.echo(found.recovery.to_string(float_format="{:.3f}".format))
        typer.echo("\nOf a cell's 15 nearest neighbours, how many are of the same type, or lab:")
        typer.echo(found.scores.to_string(float_format="{:.0%}".format))
        typer.echo(f"\nPicture:         {found.figure}\nIntegrated data: {found.data}")


@app.command()
def integrate(
    source: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Data to integrate.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="File to write.")],
    batch_key: Annotated[
        str, typer.Option("--batch-key", "-b", help="Column of obs that names each cell's sample.")
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Sample to whose scale all are brought; may be given again. All pooled."),
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to read instead of X.")] = None,
    genes: Annotated[
        int, typer.Option(min=2, help="Variable genes for the embedding; all genes are corrected.")
    ] = 2000,
    latent: Annotated[int, typer.Option(min=1, help="Dimensions of the embedding.")] = 30,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each batch effect that is removed.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT.h5ad if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Remove batch effects from IN.h5ad and write the result to OUT.h5ad.

    Counts are normalised first (10,000 per cell, log1p, variable genes by batch), and kept in
    layers["counts"]; log-expression is taken as it is.

    Written are obsm["X_bioren"] (embedding, for scanpy's neighbors), layers["bioren"]
    (corrected log-expression) and uns["bioren"] (the batch effects, per sample and gene). The
    file is either whole or absent.
    """

    def say(text: str) -> None:
        if not quiet:
            typer.echo(text)

    with _clear_errors():
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists already; --overwrite replaces it.")
        from bioren.files import whole_file

        with whole_file(target, overwrite=overwrite) as path:
            adata = _read(source)
            say(f"{source}: {adata.n_obs:,} cells x {adata.n_vars:,} genes")
            _prepare(adata, batch_key, layer, genes, say)
            say("comparing samples within cell states, then training")
            bioren.tl.integrate(
                adata,
                batch_key,
                reference=reference or None,
                layer=layer,
                n_latent=latent,
                strength=strength,
                rng=seed,
                progress=not quiet,
            )
            adata.write_h5ad(path)
        say(f"{target}: obsm['X_bioren'], layers['bioren'], uns['bioren'] written")


def _read(source: Path) -> AnnData:
    import anndata

    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such file.")
    try:
        return anndata.read_h5ad(source)
    except Exception as error:
        raise OSError(f"{source} cannot be read as .h5ad: {error}") from error


def _prepare(
    adata: AnnData, batch_key: str, layer: str | None, genes: int, say: Callable[[str], None]
) -> None:
    from bioren.cells import read_batches
    from bioren.recipe import mark_variable_genes, normalize_counts

    samples = read_batches(adata, batch_key).names
    say(f"{len(samples)} samples in obs[{batch_key!r}]")
    if layer is None and normalize_counts(adata):
        say("X holds counts: brought to 10,000 per cell, log1p; kept in layers['counts']")
    if layer is None and mark_variable_genes(adata, batch_key, genes):
        say(f"{genes:,} variable genes chosen by batch, in var['highly_variable']")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn what a user can repair into one message and exit code 1."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # other packages', not for users
    try:
        yield
    except (KeyError, ValueError, OSError, MemoryError) as error:
        # str() of a KeyError would quote the message.
        text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(1) from error
