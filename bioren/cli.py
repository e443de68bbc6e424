"""The command line: ``bioren demo`` and ``bioren integrate``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bioren

if TYPE_CHECKING:
    from anndata import AnnData

    from bioren.annotations import BatchKey

__all__ = ["app"]

# Plain help, not rich's: it fills lines, and square brackets are no markup.
app = typer.Typer(
    help="Remove batch effects from gene-expression data.",
    epilog="Start with `bioren demo`; `bioren COMMAND --help` says more about a command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bioren {bioren.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version, exit."),
    ] = False,
) -> None:
    pass


@app.command(short_help="Remove a known batch effect from real cells.")
def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where picture and data are put."),
    ] = Path("bioren-demo"),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of all randomness.")] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show the results only, no progress.")
    ] = False,
) -> None:
    """Remove a known batch effect from 700 real blood cells, and show what was recovered.

    The cells come with scanpy, nothing is downloaded.  They are divided over four "labs" with
    different compositions of cell types, and each lab gets a shift and a scale per gene that
    are known.  Takes less than a minute.

    FOLDER gets demo.png (the picture) and demo.h5ad (the integrated data), in place of older
    ones.
    """
    with _clear_errors(quiet):
        if not quiet:
            typer.echo("700 cells in four labs; a shift and a scale planted per lab and gene.")
        from bioren.demo import run

        found = run(output, rng=seed, progress=not quiet)
        typer.echo("\nPlanted against recovered, rank correlation over the genes:")
        typer.echo(found.recovery.to_string(float_format="{:.3f}".format))
        typer.echo("\nOf a cell's 15 nearest neighbours, how many are of the same type, or lab:")
        typer.echo(found.scores.to_string(float_format="{:.0%}".format))
        typer.echo(f"\nPicture:         {found.figure}\nIntegrated data: {found.data}")


@app.command(
    short_help="Remove batch effects from an .h5ad file.",
    epilog="Example: bioren integrate raw.h5ad integrated.h5ad --batch-key sample",
)
def integrate(
    source: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Data to integrate.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="File to write.")],
    batch_key: Annotated[
        list[str],
        typer.Option(
            "--batch-key",
            "-b",
            metavar="KEY",
            help="Column of obs that names each cell's sample.  Give it again for several: each "
            "combination is a sample.",
        ),
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SAMPLE",
            help="Bring all samples to the scale of this one.  Give it again for several.  "
            "Without it: to the scale of all samples together, each weighing the same.",
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Read log-expression here instead of in X.")
    ] = None,
    genes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=3,
            help="Build the embedding on so many variable genes, unless var['highly_variable'] "
            "marks some already.  All genes are corrected.",
        ),
    ] = 2000,
    latent: Annotated[
        int, typer.Option(metavar="N", min=2, help="Dimensions of the embedding.")
    ] = 20,
    strength: Annotated[
        float,
        typer.Option(metavar="S", min=0, max=1, help="Share of each batch effect to remove."),
    ] = 1.0,
    max_shift: Annotated[
        float | None,
        typer.Option(
            metavar="SD",
            min=0,
            help="Move no gene of a sample by more standard deviations than this.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Column of obs with known cell types, for all cells or some."
        ),
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Column of numbers to regress out.  May be repeated."),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Boolean column: take the effects from these cells."),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Column to be studied: warn if it cannot be told from the samples."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of all randomness: same seed, same file.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT.h5ad if it exists.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Remove batch effects from IN.h5ad and write the result to OUT.h5ad.

    Counts in X are normalised first (10,000 per cell, log1p, variable genes by batch) and kept
    in layers["counts"].  Log-expression is taken as it is.

    OUT.h5ad holds all that IN.h5ad holds, and in addition obsm["X_bioren"], the embedding for
    scanpy's neighbors; layers["bioren"], the corrected log-expression; and uns["bioren"], the
    batch effect of each sample on each gene, and signs of over-correction.

    If anything goes wrong, OUT.h5ad is left as it was, or absent, and the exit code is 1 (2 for
    a wrong option).
    """

    def say(text: str) -> None:
        if not quiet:
            typer.echo(text)

    with _clear_errors(quiet):
        if target.exists() and not target.is_dir() and not overwrite:
            what = "is the input itself" if _same_file(source, target) else "exists already"
            raise FileExistsError(f"{target} {what}; --overwrite replaces it.")
        from bioren.files import whole_file

        with whole_file(target, overwrite=overwrite) as path:
            adata = _read(source)
            say(f"{source}: {adata.n_obs:,} cells x {adata.n_vars:,} genes")
            key = batch_key[0] if len(batch_key) == 1 else batch_key
            _prepare(adata, key, layer, genes, say)
            say("comparing samples within cell states, then training while it helps")
            bioren.tl.integrate(
                adata,
                key,
                reference=reference or None,
                layer=layer,
                labels_key=labels,
                covariates=covariate,
                controls_key=controls,
                condition_key=condition,
                n_latent=latent,
                strength=strength,
                max_removed=(2.0, math.inf if max_shift is None else max_shift),
                rng=seed,
                progress=not quiet,
            )
            adata.write_h5ad(path)
        say(f"{target}: obsm['X_bioren'], layers['bioren'], uns['bioren'] written")


def _same_file(source: Path, target: Path) -> bool:
    return source.exists() and source.samefile(target)


def _read(source: Path) -> AnnData:
    import anndata

    if not source.is_file():
        what = "this is a folder" if source.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{source}: {what}. Name an .h5ad file.")
    try:
        return anndata.read_h5ad(source)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{source} cannot be read as .h5ad: {reason}") from error


def _prepare(
    adata: AnnData, batch_key: BatchKey, layer: str | None, genes: int, say: Callable[[str], None]
) -> None:
    from bioren.annotations import read_batches
    from bioren.cells import looks_like_counts, read_cells
    from bioren.recipe import mark_variable_genes, normalize_counts

    samples = read_batches(adata, batch_key).names
    cells = read_cells(adata, layer)
    say(f"{len(samples)} samples in obs[{batch_key!r}]")
    if layer is None:
        if normalize_counts(adata):
            say("X holds counts: brought to 10,000 per cell, log1p; kept in layers['counts']")
    elif looks_like_counts(cells.x):
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
def _clear_errors(quiet: bool) -> Iterator[None]:
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
