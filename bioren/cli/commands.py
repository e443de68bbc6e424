"""The command line: ``bioren demo``, ``integrate``, ``map`` and ``effects``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

import bioren
from bioren.cli.files import atomic_targets, read_file, same_file
from bioren.cli.messages import clear_errors, in_own_words, speaker
from bioren.cli.preparation import chosen_genes, normalize, prepare
from bioren.cli.shared_options import Condition, Corrected, Layer, Overwrite, Quiet, one_or_several
from bioren.cli.streams import write_stored

if TYPE_CHECKING:
    from anndata import AnnData


__all__ = ["app"]

#: So many variable genes make the embedding, if none are marked.
VARIABLE_GENES = 2000

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
    with clear_errors(quiet, command="demo"):
        if not quiet:
            typer.echo("700 cells in four labs; a shift and a scale planted per lab and gene.")
        from bioren.demo import run

        found = run(output, rng=seed, progress=not quiet)
        typer.echo("\nPlanted against recovered, rank correlation over the genes:")
        typer.echo(found.recovery.to_string(float_format="{:.3f}".format))
        typer.echo("\nOf a cell's 15 nearest neighbors, how many are of the same type, or lab:")
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
            help="Bring all samples to the scale of this one, or of the population in this file.  "
            "Give it again for several samples.  Without it: to the scale of all samples "
            "together, each weighing the same.",
        ),
    ] = None,
    layer: Layer = None,
    genes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=3,
            help="Build the embedding on so many variable genes, unless var['highly_variable'] "
            "marks some already.",
        ),
    ] = VARIABLE_GENES,
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
    condition: Condition = None,
    corrected: Annotated[
        Corrected,
        typer.Option(
            help="Genes whose corrected expression is written: all; the variable ones, to "
            "obsm['bioren_corrected']; or none, which makes a small file."
        ),
    ] = Corrected.all,
    save_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the fitted model as well, for `bioren map` and Python."
        ),
    ] = None,
    publish: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what others need to map their samples, without moments, names or labels of "
            "fewer than 10 cells.",
        ),
    ] = None,
    learn: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Column of labels that `bioren map` is to carry over.  May be repeated.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of all randomness: same seed, same file.")
    ] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Remove batch effects from IN.h5ad and write the result to OUT.h5ad.

    Both may be .zarr stores instead.  Matrices of cells x genes are read and written some rows at a
    time (where dask is installed), so that they need not fit in memory.

    Counts in X are normalized first (10,000 per cell, log1p, variable genes by batch) and kept
    in layers["counts"].  Log-expression is taken as it is.

    OUT.h5ad holds all that IN.h5ad holds, and in addition obsm["X_bioren"], the embedding for
    scanpy's neighbors; layers["bioren"], the corrected log-expression; and uns["bioren"], the
    batch effect of each sample on each gene, and signs of over-correction.

    If anything goes wrong, all files are left as they were, or absent, and the exit code is 1 (2
    for a wrong option).
    """
    models = [path for path in (save_model, publish) if path is not None]
    if learn and not models:
        raise typer.BadParameter(
            "labels are learned for a model: --save-model FILE, --publish FILE, or both.",
            param_hint="'--learn'",
        )

    say = speaker(quiet)
    with clear_errors(quiet, command="integrate"):
        with (
            atomic_targets(source, [target, *models], overwrite=overwrite) as paths,
            TemporaryDirectory() as folder,
        ):
            stored = read_file(source, say)
            adata = stored.adata
            key = one_or_several(batch_key)
            from bioren.adata.obs import read_labels

            for labels_key in learn or []:
                read_labels(adata, labels_key)  # before the work of fitting
            prepare(adata, key, layer, genes=genes, say=say, single=bool(models or reference))
            say("comparing samples within cell states, then correcting")
            fitted = Path(folder) / "model" if models else None
            bioren.tl.integrate(
                adata,
                key,
                reference=one_or_several(reference),
                layer=layer,
                labels_key=labels,
                covariates=covariate,
                controls_key=controls,
                condition_key=condition,
                n_latent=latent,
                strength=strength,
                corrected=chosen_genes(adata, corrected),
                max_removed=(2.0, math.inf if max_shift is None else max_shift),
                rng=seed,
                save_model=fitted,
                progress=not quiet,
            )
            write_stored(stored, paths[target])
            if fitted is not None:
                model = bioren.load(fitted)
                for labels_key in learn or []:
                    model.learn_labels(adata, labels_key)
                if save_model is not None:
                    model.save(paths[save_model], overwrite=True)
                if publish is not None:
                    model.publish(paths[publish], overwrite=True)
        written = {"all": "layers['bioren'], ", "none": ""}
        more = written.get(corrected.value, "obsm['bioren_corrected'], ")
        say(f"{target}: obsm['X_bioren'], {more}uns['bioren'] written")
        for path in models:
            say(f"{path}: model written, for `bioren map`")


@app.command(
    "map",
    short_help="Map new cells onto a fitted reference.",
    epilog="Example: bioren map new.h5ad mapped.h5ad --reference blood.bioren --batch-key sample",
)
def map_query(
    source: Annotated[Path, typer.Argument(metavar="QUERY.h5ad", help="Cells to map.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="File to write.")],
    reference: Annotated[
        Path,
        typer.Option(
            metavar="MODEL", help="Written by `bioren integrate` --save-model or --publish."
        ),
    ],
    batch_key: Annotated[
        list[str] | None,
        typer.Option(
            "--batch-key",
            "-b",
            metavar="KEY",
            help="Column of obs that names each cell's sample.  Give it again for several.  "
            "Without it, all cells are one sample.",
        ),
    ] = None,
    layer: Layer = None,
    genes_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Column of var that names genes as the reference does, such as Ensembl "
            "identifiers.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT.h5ad if it exists.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Map the cells of QUERY.h5ad onto the reference in MODEL, and write them to OUT.h5ad.

    Nothing is trained, and no cell of the reference is needed.  Counts in X are normalized first,
    as those of the reference were, and kept in layers["counts"].  Give all genes that were
    measured: those that the reference does not have are left alone.

    OUT.h5ad holds all that QUERY.h5ad holds, and in addition obsm["X_bioren"], the embedding;
    layers["bioren"], expression on the reference's scale; obs["bioren_mapping_score"], the
    probability that the reference holds the cell's type; labels that the model learned; and
    uns["bioren"], the effect of each sample on each gene.

    If anything goes wrong, OUT.h5ad is left as it was, or absent, and the exit code is 1 (2 for
    a wrong option).
    """
    say = speaker(quiet)
    with (
        clear_errors(quiet, command="map"),
        atomic_targets(source, [target], overwrite=overwrite) as paths,
    ):
        if same_file(reference, target):
            raise FileExistsError(f"{target} is the reference itself: name another file.")
        model = bioren.load(reference)
        say(f"{reference}: {model.population_}")
        stored = read_file(source, say)
        adata = stored.adata
        if layer is None:
            normalize(adata, say, model.population_.target_sum)
        key = one_or_several(batch_key)
        bioren.tl.map_query(adata, model, batch_key=key, layer=layer, genes_key=genes_key)
        n_genes = int(adata.var["bioren_mapped"].sum())
        say(f"{n_genes:,} of its genes are among the reference's {len(model.genes_):,}")
        record = adata.uns["bioren"]
        for name, score in zip(record["samples"], record["mapping_score"], strict=True):
            say(f"{name}: mapping score {score:.2f}")
        write_stored(stored, paths[target])
    say(f"{target} written")


@app.command(
    short_help="Report the batch effects of an .h5ad file.",
    epilog="Example: bioren effects cells.h5ad --batch-key sample --report effects.html",
)
def effects(
    source: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="Data to look at.")],
    batch_key: Annotated[
        list[str] | None,
        typer.Option(
            "--batch-key",
            "-b",
            metavar="KEY",
            help="Column of obs that names each cell's sample.  Give it again for several.  Not "
            "needed where IN.h5ad comes from `bioren integrate`.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Page to write, for any browser.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.csv", help="Table to write, a row per sample and gene; or OUT.csv.gz."
        ),
    ] = None,
    condition: Condition = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Report the batch effect of each sample on each gene, as a page, a table, or both.

    If IN.h5ad comes from `bioren integrate`, the effects are those that were found then.  If
    not, or if --batch-key names another column than then, they are found now, with the defaults
    of `bioren integrate`; IN.h5ad stays as it is.

    OUT.html holds a summary, warnings, plots and the most affected genes.  It is one file that
    loads nothing from anywhere.

    If anything goes wrong, OUT.html and OUT.csv are left as they were, or absent, and the exit
    code is 1 (2 for a wrong option).
    """
    if report is None and table is None:
        raise typer.BadParameter(
            "name what to write: --report OUT.html, --table OUT.csv, or both.",
            param_hint="'--report'",
        )

    say = speaker(quiet)
    targets = [path for path in (report, table) if path is not None]
    with clear_errors(quiet, command="effects"):
        for path in targets:
            if same_file(source, path):
                raise FileExistsError(f"{path} is the input itself: name another file.")
        with atomic_targets(source, targets, overwrite=overwrite) as paths:
            adata = read_file(source, say).adata
            _find_effects(adata, batch_key or [], condition, say=say, progress=not quiet)
            if table is not None:
                bioren.tl.batch_effects(adata).to_csv(paths[table], index=False)
            if report is not None:
                from bioren.report.page import render

                html = render(
                    adata,
                    condition_key=condition,
                    source=source.name,
                    table=None if table is None else table.name,
                    wording=partial(in_own_words, command="effects"),
                )
                paths[report].write_text(html, encoding="utf-8")
        say(f"{' and '.join(map(str, targets))} written")


def _find_effects(
    adata: AnnData,
    batch_key: list[str],
    condition: str | None,
    *,
    say: Callable[[str], None],
    progress: bool,
) -> None:
    """Leave effects in ``uns["bioren"]``: those found before, if they are the ones asked for."""
    from bioren.adata.obs import list_of
    from bioren.adata.record import read_effects
    from bioren.wording import listed

    try:
        before = read_effects(adata, "bioren")
    except KeyError as error:
        if not batch_key:
            reason = str(error.args[0]).partition(". ")[0]
            msg = (
                f"{reason}. Name the samples, and the effects are found now: --batch-key KEY; obs "
                f"holds: {listed(adata.obs)}."
            )
            raise KeyError(msg) from error
    else:
        if not batch_key or batch_key == list_of(before.batch_key):
            say(f"effects of {len(before.samples)} samples, found before, from uns['bioren']")
            return
    key = one_or_several(batch_key)
    prepare(adata, key, None, genes=VARIABLE_GENES, say=say)
    say("comparing samples within cell states, then correcting")
    bioren.tl.integrate(adata, key, condition_key=condition, progress=progress)
